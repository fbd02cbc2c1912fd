"""Smoke runs: a recipe in small, which takes some seconds on two CPU cores and must lower its losses.

The speech is made of tones (tone_speech.py), and the models are small and random, so a run shows that a recipe's
phases, tasks, frozen parts and schedule work together, and nothing of what it would learn. `shrunken` alone knows how
a configuration shrinks: sizes are limited by their names, and steps keep their share of the schedule.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch

from speechgpt2.codec import config as codec_presets
from speechgpt2.codec import train as codec_train
from speechgpt2.codec.model import Codec
from speechgpt2.codec.teachers import DistillationConfig
from speechgpt2.codec.train import CodecTrainConfig
from speechgpt2.corpus.codec_dataset import CorpusCrops
from speechgpt2.corpus.codes import CodedData, encode_data
from speechgpt2.corpus.data_config import DataConfig
from speechgpt2.corpus.model_setup import PROMPT_TEXTS, planned_shape, silence_frame
from speechgpt2.corpus.task_dataset import TaskSource
from speechgpt2.corpus.tone_speech import WORDS, tone_corpus
from speechgpt2.errors import UserError
from speechgpt2.lm import tasks
from speechgpt2.lm import train as lm_train
from speechgpt2.lm.config import LMConfig
from speechgpt2.lm.model import SpeechLM
from speechgpt2.lm.tokenizer import train_tokenizer
from speechgpt2.lm.train import LMTrainConfig
from speechgpt2.training.validation import ValidationConfig

C = TypeVar("C")
STEPS = 40
REPORTS = 4  # of a run; the first and the last are compared
FALLS = {"mel": 0.9, "text": 0.8, "codes": 0.9}  # each loss that is learnt must fall to this share of the first report
PEAK_LR = {CodecTrainConfig: 0.003, LMTrainConfig: 0.01}  # at least: so few steps need large ones
PHONES = ("", *WORDS)
FROZEN_SCALE = 5.0  # of frozen matrices, because those of a trained model tell more apart than new ones
PERPLEXITY_RATIO = 100.0  # at least: the text model knows no text that it could forget
VOCABULARY = 400  # tokens
LIMITS = {  # of every field of this name
    "width": 64, "layers": 2, "heads": 2, "kv_heads": 2, "ffn": 128, "context": 25, "depths": 1, "dims": 64,
    "channels": 32, "rank": 4, "alpha": 8, "batch": 2, "frames": 16, "rows": 2, "row_patches": 256, "accumulate": 2,
    "workers": 0,
}  # fmt: skip
MOMENTS = ("warmup", "quantize_from", "freeze_from", "adversarial_from")  # in steps


def shrunken(config: C) -> C:
    """Return a configuration in small: of a run, or of a model. The sizes in it fit each other as before."""
    values = {field.name: _limited(field.name, getattr(config, field.name)) for field in dataclasses.fields(config)}  # type: ignore[arg-type]
    if isinstance(config, (LMTrainConfig, CodecTrainConfig)):
        values |= _schedule(config)
    return replace(config, **values)  # type: ignore[type-var]


def _limited(name: str, value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return shrunken(value)
    if isinstance(value, tuple):
        return tuple(_limited(name, item) for item in value)
    return min(value, LIMITS[name]) if isinstance(value, int) and name in LIMITS else value


def _schedule(config: LMTrainConfig | CodecTrainConfig) -> dict[str, Any]:
    """Return what changes with the number of steps."""
    moments = {name: getattr(config, name, None) for name in MOMENTS}
    scaled = {name: at * STEPS // config.steps for name, at in moments.items() if at is not None}
    every = STEPS // REPORTS
    return {
        **scaled, "steps": STEPS, "report_every": every, "save_every": STEPS // 2,
        "validation": ValidationConfig(STEPS // 2, examples=4), "peak_lr": max(config.peak_lr, PEAK_LR[type(config)]),
    }  # fmt: skip


def smoke_codec(config: CodecTrainConfig, folder: Path, device: str = "cpu") -> None:
    """Train a codec by a recipe in small.

    Args:
        config: The recipe.
        folder: Folder of the run; it must not hold one.
        device: Device of the run.

    Raises:
        UserError: If the distance of spectra does not fall enough.
    """
    left_out = [teacher.model for teacher in config.teachers if isinstance(teacher, DistillationConfig)]
    if left_out:
        print(f"smoke: without the teacher {', '.join(left_out)}, which would be loaded", file=sys.stderr)
    teachers = tuple(teacher for teacher in config.teachers if not isinstance(teacher, DistillationConfig))
    small = shrunken(replace(config, teachers=teachers, mix={}))
    torch.manual_seed(config.seed)
    codec = Codec(shrunken(codec_train.preset(config.grow_to or config.codec)))
    source = CorpusCrops(tone_corpus(folder / "corpus"), phones=PHONES)
    codec_train.train(small, source, str(folder), False, device, source.held_out(4), codec=codec)
    check_falls(folder)


def smoke_lm(
    config: LMTrainConfig, folder: Path, init: str | None = None, text_model: str | None = None, device: str = "cpu"
) -> None:
    """Train a language model by a recipe in small.

    Args:
        config: The recipe.
        folder: Folder of the run; it must not hold one.
        init: As for `planned_shape`: the model whose layout the run takes; "released" for the released one.
        text_model: The same.
        device: Device of the run.

    Raises:
        UserError: If the recipe's layout is not given, or a loss that is learnt does not fall enough.
    """
    small, shape = shrunken(config), shrunken(planned_shape(config, init, text_model))
    if config.max_perplexity_ratio is not None:
        small = replace(small, max_perplexity_ratio=max(config.max_perplexity_ratio, PERPLEXITY_RATIO))
    torch.manual_seed(config.seed)
    codec = Codec(shrunken(codec_presets.mini())).eval()
    tones = DataConfig(str(tone_corpus(folder / "corpus").path))
    coded = encode_data([tones], codec, folder / "codes", torch.device(device))
    model = _small_model(small, shape, coded, codec)
    source = TaskSource(coded, model.prompt, small.mix, phones=PHONES)
    lm_train.train(small, model, source, str(folder), False, device, source.held_out(4))
    check_falls(folder)


def _small_model(config: LMTrainConfig, shape: LMConfig, coded: CodedData, codec: Codec) -> SpeechLM:
    """Return a random model of this layout, with a tokenizer of its prompt and the data's words.

    The matrices that the recipe freezes are larger than new ones.
    """
    prompt = replace(shape.prompt, silence=silence_frame(codec))
    lines = [prompt.system, tasks.TRANSCRIBE, tasks.READ_ALOUD, tasks.CONTINUE, tasks.INTERLEAVE] * 100
    tokenizer = train_tokenizer([*coded.texts(), *PROMPT_TEXTS, *lines], VOCABULARY)
    backbone = replace(shape.backbone, vocab=tokenizer.get_vocab_size())
    draft_tokens = config.draft_tokens or shape.draft_tokens
    model = SpeechLM(replace(shape, backbone=backbone, prompt=prompt, draft_tokens=draft_tokens), tokenizer)
    lm_train.freeze(model, config.freeze)
    for parameter in model.parameters():
        if not parameter.requires_grad and parameter.dim() > 1:
            parameter.data.mul_(FROZEN_SCALE)
    return model


def check_falls(folder: Path, falls: Mapping[str, float] = FALLS) -> None:
    """Print how the losses of a run fell.

    Raises:
        UserError: If one did not fall to its share of the first report, or none is reported.
    """
    reports = [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    learnt = {name: [report[name] for report in reports if report.get(name)] for name in falls}  # 0: nothing is learnt
    lines = {
        name: f"{name} {values[0]:.3f} → {values[-1]:.3f}, {values[-1] / values[0]:.2f} of it (at most {falls[name]})"
        for name, values in learnt.items()
        if values
    }
    if not lines:
        raise UserError(f"the run reports none of {', '.join(falls)}")
    for line in lines.values():
        print(f"smoke: {line}")
    failed = [line for name, line in lines.items() if not learnt[name][-1] <= falls[name] * learnt[name][0]]
    if failed:
        raise UserError(f"the losses did not fall enough: {'; '.join(failed)}")
