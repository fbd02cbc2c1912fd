"""Stages: what is frozen stays, text perplexity is watched, and a step does not depend on how it is divided."""

import json
from dataclasses import replace
from functools import partial

import pytest
import torch

from speechgpt2.errors import UserError
from speechgpt2.lm import train as lm_train
from speechgpt2.lm import train_plan
from speechgpt2.lm.adapters import LoraConfig
from speechgpt2.lm.config import PatchDecoderConfig, released
from speechgpt2.lm.example import TurnPair, training_example
from speechgpt2.lm.model import SpeechLM
from speechgpt2.lm.train import LMTrainConfig, LMTrainer, RateScale, train
from speechgpt2.nn.quantized import FrozenLinear, Quantization
from speechgpt2.training import distributed
from tests.lm.tiny import tiny_config, tiny_tokenizer

STAGE = LMTrainConfig(
    patch_decoder=PatchDecoderConfig(16, 1, 2, 32), steps=4, rows=2, row_patches=96, warmup=1, save_every=2,
    report_every=2, corrupt=0.3,
)  # fmt: skip


class Numbers:
    """Spoken questions and spoken replies in the released layout, of several lengths."""

    phones = ("",)

    def __init__(self, prompt, texts=("Hello there, what is the weather like?",)):
        self.prompt, self.texts = prompt, texts

    def example(self, random):
        codes = torch.from_numpy(random.integers(0, 1000, (int(random.integers(5, 20)), 3)))
        return training_example(
            self.prompt, "s2s", [TurnPair(codes, "Hello", self.prompt.align_speech(codes, [("Hello", 0.0, 0.2)]))]
        )

    def held_out_texts(self):
        return self.texts


def model():
    torch.manual_seed(0)
    lm = SpeechLM(tiny_config(tied_embeddings=True), tiny_tokenizer())
    with torch.no_grad():
        lm.patch_decoder.codes.table[:, -1] = 0  # as in a model that begins with a text model
    return lm


def trainer_of(config, lm=None):
    lm = lm or model()
    return LMTrainer(config, lm, Numbers(lm.prompt), torch.device("cpu"))


@pytest.fixture(autouse=True)
def precise(monkeypatch):
    monkeypatch.setattr("speechgpt2.lm.train.has_fast_bf16", lambda device: False)


def in_float32(config):
    """What the fixture does, in a process of its own."""
    torch.set_num_threads(1)
    lm_train.has_fast_bf16 = lambda device: False
    return config


def test_alignment_changes_no_weight_of_the_text_model(tmp_path):
    config = replace(STAGE, freeze=("backbone.*", "text_embedding.*"), new_tokens=True, peak_lr=0.01, average=0.0)
    lm, before = model(), model()
    train(config, lm, Numbers(lm.prompt), str(tmp_path))
    after = SpeechLM.from_pretrained(tmp_path)
    special = sorted(t for t in lm.prompt.special_ids if t >= 0)
    for name, tensor in before.state_dict().items():
        now = after.state_dict()[name]
        if name == "text_embedding.weight":
            changed = (now != tensor).any(1).nonzero()[:, 0].tolist()
            assert changed == special
        else:
            assert torch.equal(now, tensor) == name.startswith("backbone"), name


def test_frozen_weights_are_not_in_the_checkpoint():
    trainer = trainer_of(replace(STAGE, freeze=("backbone.*", "text_embedding.*")))
    content = trainer.content(0)
    assert not any("backbone" in name or "text_embedding" in name for name in content["trained"])
    assert content["average"].keys() == content["trained"].keys()


@pytest.mark.parametrize("more", ({}, {"lora": LoraConfig(rank=2), "freeze": ("backbone.*",), "new_tokens": True}))
def test_stages_resume_exactly(more, tmp_path):
    config = replace(STAGE, **more)
    if more:
        config = replace(config, freeze=("backbone.*", "text_embedding.*"))
    whole, part = model(), model()
    train(config, whole, Numbers(whole.prompt), str(tmp_path / "whole"))
    train(replace(config, steps=2), part, Numbers(part.prompt), str(tmp_path / "part"))
    # a schedule of other length has other rates: take the first steps of the whole run instead
    killed = trainer_of(config)
    killed.step(0), killed.step(1)
    torch.save(killed.content(2), tmp_path / "part" / "checkpoint.pt")
    again = model()
    train(config, again, Numbers(again.prompt), str(tmp_path / "part"), resume=True)
    first, second = SpeechLM.from_pretrained(tmp_path / "whole"), SpeechLM.from_pretrained(tmp_path / "part")
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values()))


def losses_of(config):
    trainer = trainer_of(config)
    return [float(trainer.step(step)["text"]) for step in range(3)]


def test_accumulation_gives_the_losses_of_one_large_batch():
    whole = losses_of(replace(STAGE, rows=4))
    assert losses_of(replace(STAGE, rows=1, accumulate=4)) == pytest.approx(whole, abs=1e-5)
    assert losses_of(replace(STAGE, rows=4, checkpoint_activations=True)) == pytest.approx(whole, abs=1e-5)


def save_losses(config, path):
    found = losses_of(in_float32(config))
    if distributed.rank() == 0:
        torch.save(found, path)


def test_two_processes_give_the_losses_of_one(tmp_path):
    distributed.launch(2, partial(save_losses, replace(STAGE, rows=2), tmp_path / "losses.pt"))
    assert torch.load(tmp_path / "losses.pt") == pytest.approx(losses_of(replace(STAGE, rows=4)), rel=1e-4)


def train_sharded(config, folder, resume):
    lm = model()
    train(in_float32(config), lm, Numbers(lm.prompt), str(folder), resume)


@pytest.mark.parametrize("lora", (None, LoraConfig(rank=2)))
def test_sharded_run_equals_one_process_and_resumes_there(lora, tmp_path):
    frozen = ("backbone.*", "text_embedding.*") if lora else ()
    config = replace(STAGE, rows=4, lora=lora, freeze=frozen, new_tokens=bool(lora), max_perplexity_ratio=9.0)
    sharded = replace(config, rows=2, sharded=True)
    train_sharded(config, tmp_path / "one", False)
    distributed.launch(2, partial(train_sharded, sharded, tmp_path / "two", False))
    one, two = (
        [json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    )
    for a, b in zip(one, two, strict=True):
        for name in ("text", "codes", "grad_norm"):
            assert b[name] == pytest.approx(a[name], rel=1e-3), name
    first, second = (SpeechLM.from_pretrained(tmp_path / name).state_dict() for name in ("one", "two"))
    for name, tensor in first.items():
        torch.testing.assert_close(second[name], tensor, atol=1e-4, rtol=0)
    # one process goes on with the run of two
    train_sharded(replace(config, steps=6), tmp_path / "two", True)
    assert torch.load(tmp_path / "two" / "checkpoint.pt")["step"] == 6


def test_rates_of_parts():
    trainer = trainer_of(replace(STAGE, rates=(RateScale("backbone.*", 0.1),)))
    trainer.step(0)
    rates = {group["scale"]: group["lr"] for group in trainer.optimizer.param_groups}
    assert rates[0.1] == pytest.approx(0.1 * rates[1.0])


def test_a_rise_of_text_perplexity_stops_the_run_unsaved(tmp_path):
    lm = model()
    config = replace(STAGE, peak_lr=0.3, steps=8, max_perplexity_ratio=1.01, average=0.0)
    with pytest.raises(UserError, match=r"perplexity of held-out text rose from .* this state is not saved"):
        train(config, lm, Numbers(lm.prompt), str(tmp_path))
    assert not (tmp_path / "checkpoint.pt").exists()
    with pytest.raises(UserError, match="needs held-out text"):
        LMTrainer(config, lm, Numbers(lm.prompt, ()), torch.device("cpu")).step(0)


def test_frozen_backbone_keeps_its_perplexity():
    config = replace(
        STAGE, freeze=("backbone.*", "text_embedding.*"), max_perplexity_ratio=1.0001, peak_lr=0.01, average=0.0
    )
    trainer = trainer_of(config)
    before = trainer.text_perplexity()
    for step in range(4):
        trainer.step(step)
    assert trainer.text_perplexity() == before


@pytest.mark.parametrize(
    "change, message",
    (
        ({"freeze": ("decoder.*",)}, "no parameter matches 'decoder"),
        ({"freeze": ("*",)}, "everything is frozen"),
        ({"code_weights": (1.0,)}, "code_weights needs 3"),
    ),
)
def test_mistakes_in_a_stage_are_named(change, message):
    with pytest.raises(UserError, match=message):
        trainer_of(replace(STAGE, **change))


@pytest.mark.parametrize("width, layers", ((32, 2), (64, 3), (96, 4)))
def test_planned_memory_is_what_a_run_takes(width, layers):
    shape = tiny_config(width=width, layers=layers, ffn=2 * width, tied_embeddings=True)
    config = replace(STAGE, row_patches=256, freeze=("text_embedding.*",))
    trainer = trainer_of(config, SpeechLM(shape, tiny_tokenizer()))
    batch = trainer.batches(0)[0]
    totals = trainer.losses.totals(batch)
    learnt = [float(mask[:, 1:].sum()) / mask.numel() for mask in (batch.text_loss_mask, batch.code_loss_mask)]
    cost = train_plan.step_cost(config, shape, half=False, fused=False, shares=tuple(learnt))
    planned = train_plan.plan(config, cost, 1, 1e12)
    with train_plan.SavedBytes(trainer.losses.parameters()) as saved:
        outputs = trainer.losses(batch, totals)  # kept, and with them what they saved
    assert outputs[0].isfinite()
    trainer.step(0)
    weights = sum(p.numel() * 4 for p in trainer.model.parameters())
    states = sum(t.numel() * 4 for s in trainer.optimizer.state.values() for t in s.values() if t.dim())
    gradients = sum(p.grad.numel() * 4 for p in trainer.trained.values() if p.grad is not None)
    averages = sum(t.numel() * 4 for t in trainer.average.values.values())
    assert planned.weights == pytest.approx(weights, rel=0.01)
    assert planned.states == pytest.approx(states + gradients + averages, rel=0.05)
    logits = int(batch.text_loss_mask[:, 1:].sum()) * shape.backbone.vocab * 4
    measured = weights + states + gradients + averages + saved.bytes + 2 * logits  # with the gradients of the logits
    assert planned.memory == pytest.approx(measured, rel=0.15)
    fewer = train_plan.step_cost(replace(config, checkpoint_activations=True), shape, False, False, tuple(learnt))
    assert fewer.kept < cost.kept


QLORA = replace(
    STAGE, freeze=("backbone.*", "text_embedding.*", "patch_decoder.*"), lora=LoraConfig(rank=2),
    quantize=Quantization("int4"), peak_lr=0.01, average=0.0, max_perplexity_ratio=9.0,
)  # fmt: skip


def divisible(width=32, layers=2):
    """A model whose widths divide into groups of 32, stored in bfloat16."""
    torch.manual_seed(0)
    shape = tiny_config(width=width, layers=layers, ffn=2 * width, tied_embeddings=True)
    shape = replace(shape, patch_decoder=replace(shape.patch_decoder, width=32))
    return SpeechLM(shape, tiny_tokenizer()).bfloat16()


def test_qlora_trains_adapters_on_a_quantized_base_and_resumes_exactly(tmp_path):
    lm = divisible()
    killed = trainer_of(QLORA, divisible())
    base = [m.matrix.values.clone() for m in killed.model.modules() if isinstance(m, FrozenLinear)]
    killed.step(0), killed.step(1)
    after = [m.matrix.values for m in killed.model.modules() if isinstance(m, FrozenLinear)]
    assert base and all(torch.equal(a, b) for a, b in zip(base, after, strict=True))
    assert all(".up" in name or ".down" in name for name in killed.trained if ".layers." in name)
    (tmp_path / "part").mkdir()
    torch.save(killed.content(2), tmp_path / "part" / "checkpoint.pt")
    train(QLORA, lm, Numbers(lm.prompt), str(tmp_path / "whole"))
    again = divisible()
    train(QLORA, again, Numbers(again.prompt), str(tmp_path / "part"), resume=True)
    whole, part = SpeechLM.from_pretrained(tmp_path / "whole"), SpeechLM.from_pretrained(tmp_path / "part")
    assert whole.dtype == torch.bfloat16
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), part.state_dict().values()))


@pytest.mark.parametrize("width, layers", ((64, 2), (128, 3), (192, 4)))
def test_planned_memory_of_qlora(width, layers):
    config = replace(QLORA, row_patches=256, max_perplexity_ratio=None)
    trainer = trainer_of(config, divisible(width, layers))
    batch = trainer.batches(0)[0]
    learnt = [float(mask[:, 1:].sum()) / mask.numel() for mask in (batch.text_loss_mask, batch.code_loss_mask)]
    cost = train_plan.step_cost(config, trainer.model.config, half=False, fused=False, shares=tuple(learnt))
    with train_plan.SavedBytes(trainer.losses.parameters()) as saved:
        outputs = trainer.losses(batch, trainer.losses.totals(batch))
    assert outputs[0].isfinite()
    trainer.step(0)
    tensors = {
        t.untyped_storage().data_ptr(): t.nbytes for t in (*trainer.model.parameters(), *trainer.model.buffers())
    }
    states = sum(t.numel() * 4 for s in trainer.optimizer.state.values() for t in s.values() if t.dim())
    gradients = sum(p.grad.numel() * 4 for p in trainer.trained.values() if p.grad is not None)
    logits = int(batch.text_loss_mask[:, 1:].sum()) * trainer.model.config.backbone.vocab * 4
    measured = sum(tensors.values()) + states + gradients + saved.bytes + 2 * logits
    planned = train_plan.plan(config, cost, 1, 1e12).memory - cost.workspace  # which test_qlora_memory.py measures
    assert planned == pytest.approx(measured, rel=0.15)
    plain = train_plan.step_cost(replace(config, quantize=None), trainer.model.config, False, False, tuple(learnt))
    assert cost.quantized and cost.weights < plain.weights and cost.frozen == plain.frozen


def test_plan_of_qlora_for_the_released_model():
    config = replace(
        QLORA, lora=LoraConfig(rank=32), rows=1, row_patches=1024, checkpoint_activations=True,
        freeze=("backbone.*", "text_embedding.*", "text_head.*"),
    )  # fmt: skip
    cost = train_plan.step_cost(config, released())
    plans = [train_plan.plan(replace(config, sharded=True), cost, n, 4e14) for n in (1, 8)]
    assert plans[0].memory / train_plan.GIB < 14 and 3.5 < cost.quantized / train_plan.GIB < 4.5
    assert plans[1].weights > cost.quantized


def test_plan_of_the_released_model():
    config = replace(
        STAGE,
        freeze=("*",),
        lora=LoraConfig(rank=32),
        rows=1,
        row_patches=1024,
        checkpoint_activations=True,
        average=0.0,
    )
    cost = train_plan.step_cost(config, released())
    assert 7.5e9 < cost.frozen < 8e9 and cost.trained < 1e8
    plans = [train_plan.plan(replace(config, sharded=True), cost, n, 4e14) for n in train_plan.DEVICES]
    assert 14 < plans[0].memory / train_plan.GIB < 24  # a card of 24 GB, nearly
    assert [p.memory for p in plans] == sorted((p.memory for p in plans), reverse=True)
