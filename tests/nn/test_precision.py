"""Devices without float64, such as Apple's GPUs: nothing forms it there, and streams stay exact."""

import re
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from speechgpt2.lm.generation import generate
from speechgpt2.lm.sampling import SamplingParams
from speechgpt2.nn import precision
from speechgpt2.nn.precision import rotary_angle, rotary_frequencies
from tests.engine.results import audio_of
from tests.engine.tiny import SHORT, noise, say, talk, tiny_codec, tiny_engine, tiny_lm

PACKAGE = Path(precision.__file__).parents[1]
ON_DEVICES = ("nn", "codec", "lm", "engine", "styletts")  # packages whose tensors lie on a device


def test_only_one_module_forms_float64():
    """Others ask it for the widest type that a device has. A table of phases says which types there are."""
    form = re.compile(r"\.double\(|dtype=torch\.float64|\.to\(torch\.float64|view\(torch\.float64")
    found = [
        f"{path.relative_to(PACKAGE)}:{number}"
        for package in ON_DEVICES
        for path in sorted((PACKAGE / package).rglob("*.py"))
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if form.search(line) and path != Path(precision.__file__)
    ]
    assert not found


class NoFloat64(TorchDispatchMode):
    """Computes as a device without float64 does: an operation that reads or gives it fails."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        wide = [
            x for x in tree_leaves((args, kwargs, result)) if isinstance(x, torch.Tensor) and x.dtype == torch.float64
        ]
        if wide and not ON_CPU.active:
            raise TypeError(f"{function}: float64 does not exist here")
        return result


class ON_CPU:
    """Where float64 may be formed all the same: in the table of frequencies, which is made on the CPU."""

    active = False


@pytest.fixture
def no_float64(monkeypatch):
    def on_cpu(work):
        def call(*args):
            ON_CPU.active = True
            try:
                return work(*args)
            finally:
                ON_CPU.active = False

        return call

    monkeypatch.setattr(precision, "has_float64", lambda device: False)
    monkeypatch.setattr(precision, "_fixed_point", on_cpu(precision._fixed_point))
    for module in ("speechgpt2.nn.transformer", "speechgpt2.lm.rotary"):
        monkeypatch.setattr(f"{module}.rotary_frequencies", on_cpu(precision.rotary_frequencies))


def test_the_guard_sees_float64(no_float64):
    with pytest.raises(TypeError, match="float64 does not exist"), NoFloat64():
        torch.ones(1).double()


def test_codec_forms_no_float64(no_float64):
    codec, pcm = tiny_codec(), torch.from_numpy(noise(0.6))[None]
    wanted = codec.encode(pcm)
    with NoFloat64():
        codes = codec.encode(pcm)
        sound = codec.decode(codes)
    assert torch.equal(codes, wanted) and sound.abs().max() > 0


def test_language_model_forms_no_float64(no_float64):
    lm = tiny_lm(chain_of_modality=True)
    with NoFloat64():
        state = lm.init_state(1, 64)
        hidden, state = lm.prefill(lm.prompt.system_prompt("s2s"), state)
        steps = list(generate(lm, hidden, state, SamplingParams.for_batch(1), 8))
    assert steps


def test_engine_forms_no_float64(no_float64):
    engine = tiny_engine(tiny_lm())
    with NoFloat64():
        session = engine.open(SHORT)
        say(session, noise(0.4))
        session.respond()
        found = talk(engine, [session])[session]
    assert found and len(audio_of(found)) >= 0
    engine.close()


@pytest.mark.parametrize("position", [0, 1, 777, 2**20 + 3, 10**9 + 7])
def test_angles_without_float64_are_exact(position, no_float64):
    place = torch.tensor([[position]])
    frequency = rotary_frequencies(64, 1e6, place.device)
    exact = place[..., None].double() * frequency
    angle = rotary_angle(place, frequency)
    assert angle.dtype == torch.float32
    tolerance = 5e-7 + 1e-16 * position  # float64 itself rounds the product
    assert (angle.cos() - exact.cos()).abs().max() < tolerance
    assert (angle.sin() - exact.sin()).abs().max() < tolerance
