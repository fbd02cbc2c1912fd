"""Validation: it changes no step, keeps the best model, ends a run early if wanted, and goes on after a resumption."""

import json
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from speechgpt2.codec.model import Codec
from speechgpt2.codec.train import CodecTrainer
from speechgpt2.codec.train import train as train_codec
from speechgpt2.codec.validation import HeldOutSpeech
from speechgpt2.errors import UserError
from speechgpt2.lm.model import SpeechLM
from speechgpt2.lm.train import LMTrainer, train
from speechgpt2.lm.validation import HeldOutLosses, HeldOutTask
from speechgpt2.training import run
from speechgpt2.training.validation import ValidationConfig
from tests.training import test_resume, test_stages
from tests.training.test_stages import STAGE, Numbers

tiny_codec = test_resume.tiny_codec
precise = test_stages.precise
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Config:
    validation: ValidationConfig
    steps: int = 12
    report_every: int = 4
    save_every: int = 4


class Curve:
    """A trainer whose held-out values are given; what it exports is its step."""

    def __init__(self, values, name="loss"):
        self.values, self.name, self.steps = values, name, 0

    def step(self, step):
        self.steps = step + 1
        return {"loss": torch.tensor(1.0)}

    def validate(self):
        return {self.name: self.values[self.steps // 2], "text/loss": 1.0}

    def content(self, step):
        return {"step": step}

    def restore(self, content):
        self.steps = content["step"] if content else 0
        return self.steps

    def export(self, folder):
        (folder / "model").write_text(str(self.steps))

    def log_samples(self, run, step):
        pass


def log_of(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def held_out_log(folder, name="loss"):
    return {line["step"]: line[f"held_out/{name}"] for line in log_of(folder) if f"held_out/{name}" in line}


def test_values_are_logged_and_the_best_model_is_kept(tmp_path, capsys):
    curve = Curve([5.0, 4.0, 2.0, 3.0, 3.5, 4.0, 6.0])
    run.train(curve, Config(ValidationConfig(every=2)), tmp_path, False, "curve")
    assert held_out_log(tmp_path) == {0: 5.0, 2: 4.0, 4: 2.0, 6: 3.0, 8: 3.5, 10: 4.0, 12: 6.0}
    assert (tmp_path / "best" / "model").read_text() == "4" and (tmp_path / "model").read_text() == "12"
    assert json.loads((tmp_path / "best" / "validation.json").read_text()) == {"step": 4, "loss": 2.0, "text/loss": 1.0}
    assert "curve 6 held out: loss 3.000; best: step 4" in capsys.readouterr().err


def test_patience_ends_the_run_and_more_patience_goes_on(tmp_path, capsys):
    values = [0.0, 4.0, 2.0, 3.0, 3.5, 1.0, 1.0]
    run.train(Curve(values), Config(ValidationConfig(every=2, patience=2)), tmp_path, False, "curve")
    said = capsys.readouterr().err
    assert "curve ends at step 8: 2 validations without a better loss than at step 4" in said
    assert torch.load(tmp_path / "checkpoint.pt")["step"] == 8 and (tmp_path / "best" / "model").read_text() == "4"
    run.train(Curve(values), Config(ValidationConfig(every=2, patience=2)), tmp_path, True, "curve")
    assert "curve ends at step 8" in capsys.readouterr().err
    run.train(Curve(values), Config(ValidationConfig(every=2, patience=3)), tmp_path, True, "curve")
    assert torch.load(tmp_path / "checkpoint.pt")["step"] == 12 and (tmp_path / "best" / "model").read_text() == "10"


def test_a_resumed_run_remembers_its_best(tmp_path):
    config = Config(ValidationConfig(every=2))
    run.train(Curve([9.0, 1.0, 2.0]), replace(config, steps=4), tmp_path, False, "curve")
    run.train(Curve([9.0, 1.0, 2.0, 1.5, 1.5, 1.5, 1.5]), config, tmp_path, True, "curve")
    assert (tmp_path / "best" / "model").read_text() == "2"


def test_another_value_may_decide(tmp_path):
    values = [0.0, 0.5, 0.9, 0.7, 0.1, 0.1, 0.1]
    run.train(Curve(values, "stoi"), Config(ValidationConfig(every=2, by="stoi")), tmp_path / "a", False, "curve")
    assert (tmp_path / "a" / "best" / "model").read_text() == "4"
    with pytest.raises(UserError, match="there is no 'pesq'; the values are stoi"):
        run.train(Curve(values, "stoi"), Config(ValidationConfig(every=2, by="pesq")), tmp_path / "b", False, "curve")
    config = Config(ValidationConfig(every=2, keep_best=False))
    run.train(Curve(values), config, tmp_path / "c", False, "curve")
    assert not (tmp_path / "c" / "best").exists()
    with pytest.raises(UserError, match="at least 0"):
        ValidationConfig(examples=-1)


def held_out(prompt):
    source = Numbers(prompt)
    spoken = [source.example(np.random.default_rng((9, i))) for i in range(5)]
    texts = [e._replace(code_loss_mask=torch.zeros_like(e.code_loss_mask)) for e in spoken[:2]]
    return [HeldOutTask("s2s", 0.75, spoken), HeldOutTask("text", 0.25, texts)]


def run_stage(folder, every, resume=False, **more):
    lm = test_stages.model()
    config = replace(STAGE, validation=ValidationConfig(every=every, **more), average=0.9)
    train(config, lm, Numbers(lm.prompt), str(folder), resume, held_out=held_out(lm.prompt))
    return SpeechLM.from_pretrained(folder).state_dict()


def test_training_is_the_same_with_and_without_validation(tmp_path):
    plain, validated = run_stage(tmp_path / "plain", 0), run_stage(tmp_path / "validated", 1)
    assert all(torch.equal(plain[name], validated[name]) for name in plain)
    losses = [
        [
            (line["step"], line["text"], line["codes"], line["grad_norm"])
            for line in log_of(tmp_path / name)
            if "text" in line
        ]
        for name in ("plain", "validated")
    ]
    assert losses[0] == losses[1] and len(losses[0]) == 2
    values = [line for line in log_of(tmp_path / "validated") if "held_out/loss" in line]
    assert [line["step"] for line in values] == [0, 1, 2, 3, 4]
    assert {"held_out/text", "held_out/code_2", "held_out/s2s/codes", "held_out/text/text"} <= values[0].keys()
    assert "held_out/text/codes" not in values[0]
    best = min(values[1:], key=lambda line: line["held_out/loss"])
    kept = SpeechLM.from_pretrained(tmp_path / "validated" / "best").state_dict()
    assert json.loads((tmp_path / "validated" / "best" / "validation.json").read_text())["step"] == best["step"]
    assert best["step"] < 4 or all(torch.equal(kept[name], validated[name]) for name in kept)


def test_a_rise_of_text_perplexity_stops_before_a_model_is_kept(tmp_path):
    lm = test_stages.model()
    config = replace(
        STAGE, peak_lr=0.5, steps=8, save_every=8, max_perplexity_ratio=1.01, average=0.0,
        validation=ValidationConfig(every=4),
    )  # fmt: skip
    with pytest.raises(UserError, match="validation: the perplexity of held-out text rose"):
        train(config, lm, Numbers(lm.prompt), str(tmp_path), held_out=held_out(lm.prompt))
    assert not (tmp_path / "best").exists()


def test_validation_measures_the_averaged_model_as_saved(tmp_path):
    weights = run_stage(tmp_path, 2)
    lm = test_stages.model()
    lm.load_state_dict(weights)
    trainer = LMTrainer(STAGE, lm, Numbers(lm.prompt), CPU, held_out(lm.prompt))
    assert trainer.validate()["loss"] == pytest.approx(held_out_log(tmp_path)[4], abs=2e-6)


def test_held_out_losses_do_not_depend_on_packing_and_weigh_tasks_as_the_mix():
    lm = test_stages.model()
    tasks = held_out(lm.prompt)
    losses = LMTrainer(STAGE, lm, Numbers(lm.prompt), CPU).losses
    eos = lm.prompt.special_ids.eos
    one, other = (
        HeldOutLosses(tasks, rows, length, eos).evaluate(losses, CPU) for rows, length in ((1, 120), (3, 200))
    )
    assert one == pytest.approx(other, rel=1e-4)
    alone = HeldOutLosses(tasks[:1], 4, 200, eos)
    (_, batch), *more = alone.batches
    assert not more
    with torch.no_grad():
        _, terms, _ = losses(batch, losses.totals(batch))
    values = alone.evaluate(losses, CPU)
    assert values["text"] == pytest.approx(float(terms["text"]), rel=1e-5)
    assert values["codes"] == pytest.approx(float(terms["codes"]), rel=1e-5)
    assert values["loss"] == pytest.approx(values["text"] + 0.5 * values["codes"])
    assert values["s2s/text"] == pytest.approx(values["text"])
    assert min(one["s2s/text"], one["text/text"]) <= one["text"] <= max(one["s2s/text"], one["text/text"])


def vowels(count=3):
    return [
        HeldOutSpeech(test_resume.Vowels().crops(np.random.default_rng(i), 1, 25).pcm[0], "a", "en")
        for i in range(count)
    ]


def test_codec_training_is_the_same_with_and_without_validation(tiny_codec, tmp_path):
    config = replace(tiny_codec, adversarial_from=None, steps=8, validation=ValidationConfig(every=2, by="stoi"))

    def judge(original, decoded, clip):
        assert original.shape == decoded.shape and clip.text == "a"
        return {"stoi": 0.5, "asr_errors": float("nan")}

    plain = train_codec(config, test_resume.Vowels(), str(tmp_path / "plain"))
    validated = train_codec(config, test_resume.Vowels(), str(tmp_path / "a"), held_out=vowels(), judge=judge)
    assert test_resume.same(plain.state_dict(), validated.state_dict())
    steps = held_out_log(tmp_path / "a", "stoi")
    assert steps == {4: 0.5, 6: 0.5, 8: 0.5}  # before step 3 nothing is quantized
    values = next(line for line in log_of(tmp_path / "a") if "held_out/loss" in line)
    assert values["held_out/loss"] > 0 and 1 <= values["held_out/perplexity_0"] <= 32
    assert "held_out/asr_errors" not in values
    assert Codec.from_pretrained(tmp_path / "a" / "best").config == plain.config


def test_codec_is_validated_as_it_is_saved(tiny_codec, tmp_path):
    config = replace(tiny_codec, adversarial_from=None, steps=6, validation=ValidationConfig(every=6))
    train_codec(config, test_resume.Vowels(), str(tmp_path), held_out=vowels())
    saved = CodecTrainer(replace(config, init=str(tmp_path)), test_resume.Vowels(), CPU, vowels())
    assert saved.validate()["loss"] == pytest.approx(held_out_log(tmp_path)[6], abs=1e-4)
