"""Data-parallel training: averaged gradients, gathered data, and the same model in all processes."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch

from speechgpt2.errors import UserError
from speechgpt2.lm.config import BackboneConfig, LMConfig, PatchDecoderConfig, PromptConfig
from speechgpt2.lm.example import TurnPair, training_example
from speechgpt2.lm.model import SpeechLM
from speechgpt2.lm.tokenizer import train_tokenizer
from speechgpt2.lm.train import LMTrainConfig, train
from speechgpt2.training import distributed
from tests import needs

WORDS = ("one", "two", "three", "four", "five")


class Counting:
    """The user says a number in codes, the model writes and says the next. `drawn` lists the numbers."""

    phones = ("", "a", "b")

    def __init__(self, prompt):
        self.prompt, self.drawn = prompt, []

    def example(self, random):
        i = int(random.integers(4))
        self.drawn.append(i)
        codes = torch.full((6, 3), i)
        spoken = self.prompt.align_speech(codes + 1, [(WORDS[i + 1], 0.0, 0.2)])
        pair = TurnPair(codes, WORDS[i + 1], spoken, WORDS[i], user_phones=codes[:, 0] % 3)
        return training_example(self.prompt, "s2s", [pair])


def exchange_messages(folder: Path) -> None:
    rank = distributed.rank()
    parameter = torch.nn.Parameter(torch.zeros(3))
    untouched = torch.nn.Parameter(torch.zeros(2))
    parameter.grad = torch.tensor([1.0, 2.0, 3.0]) * (rank + 1)
    sometimes = torch.nn.Parameter(torch.zeros(1))
    sometimes.grad = torch.tensor([4.0]) if rank else None
    distributed.average_gradients([parameter, untouched, sometimes])
    gradients = (parameter.grad, untouched.grad, sometimes.grad)
    torch.save((*gradients, distributed.gather(torch.tensor([[rank]]))), folder / f"{rank}.pt")


def train_tiny(folder: Path, steps: int) -> None:
    tokenizer = train_tokenizer([" ".join(WORDS)] * 50, 300)
    backbone = BackboneConfig(tokenizer.get_vocab_size(), 32, 2, 2, 2, 48)
    decoder = PatchDecoderConfig(16, 1, 2, 32)
    torch.manual_seed(distributed.rank())  # they begin with different weights unless the run sees to it
    model = SpeechLM(LMConfig(backbone, decoder, PromptConfig(chain_of_modality=True, system="{input}")), tokenizer)
    source = Counting(model.prompt)
    config = LMTrainConfig(backbone, decoder, steps=steps, rows=1, row_patches=64, save_every=2, report_every=2)
    train(config, model, source, str(folder / "run"), resume=True)
    torch.save((model.state_dict(), source.drawn), folder / f"{distributed.rank()}-{steps}.pt")


def test_gradients_are_averaged_and_parts_gathered(tmp_path):
    distributed.launch(2, partial(exchange_messages, tmp_path))
    for rank in range(2):
        gradient, none, sometimes, joined = torch.load(tmp_path / f"{rank}.pt")
        assert gradient.tolist() == [1.5, 3.0, 4.5] and none is None and sometimes.tolist() == [2.0]
        assert joined.tolist() == [[0], [1]]


def test_processes_draw_different_data_and_keep_one_model(tmp_path):
    for steps in (2, 4):  # the second goes on from the first's checkpoint
        distributed.launch(2, partial(train_tiny, tmp_path, steps))
        (first, drawn), (second, other) = (torch.load(tmp_path / f"{rank}-{steps}.pt") for rank in range(2))
        assert all(torch.equal(first[name], second[name]) for name in first)
        assert drawn != other


def wait_for_ever(folder: Path) -> None:
    (folder / str(distributed.rank())).write_text(str(os.getpid()))
    while True:
        distributed.average_gradients([with_gradient()])


def with_gradient() -> torch.Tensor:
    parameter = torch.nn.Parameter(torch.zeros(2))
    parameter.grad = torch.ones(2)
    return parameter


@needs.condition(hasattr(signal, "SIGKILL"), "the system has no SIGKILL")
def test_processes_end_when_the_first_is_killed(tmp_path):
    code = (
        "from functools import partial; from pathlib import Path; from speechgpt2.training import distributed;"
        "from tests.training.test_distributed import wait_for_ever;"
        f"distributed.launch(2, partial(wait_for_ever, Path({str(tmp_path)!r})))"
    )
    first = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    other = tmp_path / "1"
    wait_until(lambda: other.exists() and other.read_text())
    follower = int(other.read_text())
    first.kill()
    first.wait()
    wait_until(lambda: not alive(follower))


@needs.condition(hasattr(signal, "SIGKILL"), "the system has no SIGKILL")
def test_a_lost_process_is_one_line(tmp_path):
    def kill() -> None:
        other = tmp_path / "1"
        wait_until(lambda: other.exists() and other.read_text())
        os.kill(int(other.read_text()), signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(UserError, match=r"process 1 of the run ended \(exit code -9\); go on with --resume"):
        distributed.launch(2, partial(wait_for_ever, tmp_path))
    killer.join()


def wait_until(true: Callable[[], object], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{pid}/stat")
    return not status.exists() or status.read_text().rsplit(")", 1)[1].split()[0] != "Z"


def test_user_error_is_reported_once(tmp_path, capfd):
    with pytest.raises(UserError, match="no such thing"):
        distributed.launch(2, partial(refuse, "no such thing"))
    assert "Traceback" not in capfd.readouterr().err


def refuse(reason: str) -> None:
    raise UserError(reason)


def test_single_process_runs_in_place():
    called = []
    distributed.launch(1, lambda: called.append(distributed.world_size()))
    assert called == [1] and distributed.rank() == 0
    x = torch.ones(2, requires_grad=True)
    assert not distributed.gather(x).requires_grad


@pytest.mark.parametrize(
    ("devices", "processes", "name"),
    [(0, 2, "gloo"), (1, 2, "gloo"), (2, 2, "cpu:gloo,cuda:nccl"), (8, 1, "cpu:gloo,cuda:nccl")],
)
def test_nccl_connects_only_processes_with_a_gpu_each(devices, processes, name):
    assert distributed.backend(devices, processes) == name
