"""Training: exact resumption, falling losses, atomic checkpoints."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from speechgpt2.codec import config as presets
from speechgpt2.codec.config import CodecConfig, HarmonicConfig, MelConfig, QuantizerConfig
from speechgpt2.codec.discriminators import DiscriminatorConfig
from speechgpt2.codec.model import Codec
from speechgpt2.codec.train import CodecTrainConfig, CodecTrainer, Crops
from speechgpt2.codec.train import train as train_codec
from speechgpt2.errors import UserError
from speechgpt2.lm.config import BackboneConfig, LMConfig, PatchDecoderConfig, PromptConfig
from speechgpt2.lm.example import TurnPair, training_example
from speechgpt2.lm.generation import generate
from speechgpt2.lm.model import SpeechLM
from speechgpt2.lm.packing import corrupt, pack
from speechgpt2.lm.tokenizer import train_tokenizer
from speechgpt2.lm.train import LMTrainConfig, LMTrainer
from speechgpt2.lm.train import train as train_lm
from speechgpt2.nn.convnext import ConvNeXtConfig
from speechgpt2.nn.transformer import TransformerConfig
from speechgpt2.training.run import WeightAverage, learning_rate


class Vowels:
    """Crops of a buzzing source at a pitch, with two "phones"."""

    phones = ("low", "high")

    def crops(self, random, batch, frames):
        f0 = random.uniform(90, 300, size=(batch, 1))
        n = np.arange(frames * 960)
        pcm = sum(np.sin(2 * np.pi * k * f0 * n / 24_000) / k for k in range(1, 12)) * 0.1
        labels = np.repeat((f0 > 180).astype(np.int64), frames, axis=1)
        pitch = np.repeat(f0, frames * 4, axis=1).astype(np.float32)
        pcm, pitch, labels = (torch.from_numpy(part) for part in (pcm.astype(np.float32), pitch, labels))
        return Crops(pcm, pcm, pitch, labels)


@pytest.fixture
def tiny_codec(monkeypatch):
    transformer = TransformerConfig(16, 2, 1, 32, context=20)
    config = CodecConfig(
        MelConfig(20, mean=-7.0, std=3.0), ConvNeXtConfig((1,), (16,)), transformer, QuantizerConfig(3, 32),
        TransformerConfig(16, 2, 1, 32, context=10), transformer, ConvNeXtConfig((1,), (16,)),
        HarmonicConfig(harmonic_bands=30, noise_bands=10), delay=480, normalized_latent=True,
    )  # fmt: skip
    monkeypatch.setitem(presets.PRESETS, "tiny", lambda: config)
    return CodecTrainConfig(
        codec="tiny", steps=12, batch=2, frames=16, warmup=2, quantize_from=3, save_every=6, report_every=6,
        adversarial_from=8, freeze_from=10, discriminators=DiscriminatorConfig(2, (3,), (512,)),
    )  # fmt: skip


@pytest.fixture(scope="module")
def tiny_lm():
    tokenizer = train_tokenizer(["one two three four five"] * 50, 300)
    backbone = BackboneConfig(tokenizer.get_vocab_size(), 32, 2, 2, 2, 48)
    prompt = PromptConfig(chain_of_modality=True, system="{input}")
    config = LMConfig(backbone, PatchDecoderConfig(16, 1, 2, 32, chained=True), prompt, draft_tokens=2)

    def build():
        torch.manual_seed(0)
        return SpeechLM(config, tokenizer)

    train = LMTrainConfig(
        backbone, config.patch_decoder, steps=8, rows=2, row_patches=64, warmup=2, save_every=4, report_every=4
    )
    return build, train


class Counting:
    """The user says a number in codes, the model writes and says the next."""

    words = ("one", "two", "three", "four", "five")

    phones = ("", "a", "b")

    def __init__(self, prompt, mode="s2s"):
        self.prompt, self.mode = prompt, mode

    def example(self, random):
        i = int(random.integers(4))
        codes = torch.full((6, 3), i)
        spoken = self.prompt.align_speech(codes + 1, [(self.words[i + 1], 0.0, 0.2)], phones=(codes[:, 0] + 1) % 3)
        pair = TurnPair(codes, self.words[i + 1], spoken, self.words[i], user_phones=codes[:, 0] % 3)
        return training_example(self.prompt, self.mode, [pair])


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_codec_resumes_exactly_through_every_phase(tiny_codec, tmp_path):
    whole = train_codec(tiny_codec, Vowels(), str(tmp_path / "whole"))
    killed = CodecTrainer(tiny_codec, Vowels(), torch.device("cpu"))
    for step in range(6):
        killed.step(step)
    part = tmp_path / "part"
    part.mkdir()
    torch.save(killed.content(6), part / "checkpoint.pt")
    resumed = train_codec(tiny_codec, Vowels(), str(part), resume=True)
    assert same(whole.state_dict(), resumed.state_dict())
    assert same(Codec.from_pretrained(tmp_path / "whole").state_dict(), Codec.from_pretrained(part).state_dict())


def test_codec_trains_without_phone_labels(tiny_codec):
    class Unlabelled(Vowels):
        def crops(self, random, batch, frames):
            crops = super().crops(random, batch, frames)
            return Crops(crops.pcm, crops.augmented, crops.f0, torch.full_like(crops.phones, -1))

    values = CodecTrainer(tiny_codec, Unlabelled(), torch.device("cpu")).step(0)
    assert values["phone"] == 0 and values["grad_norm"].isfinite()


def test_frozen_codec_keeps_its_codes(tiny_codec):
    trainer = CodecTrainer(replace(tiny_codec, freeze_from=6, adversarial_from=None), Vowels(), torch.device("cpu"))
    for step in range(6):
        trainer.step(step)
    before = {n: t.clone() for n, t in trainer.codec.state_dict().items()}
    trainer.step(6)
    after = trainer.codec.state_dict()
    moved = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"decoder"}


def test_continued_codec_keeps_its_codebooks(tiny_codec, tmp_path):
    before = train_codec(tiny_codec, Vowels(), str(tmp_path / "first"))
    config = replace(tiny_codec, init=str(tmp_path / "first"), freeze_from=None, delay=720, codebook_decay=0.98)
    trainer = CodecTrainer(config, Vowels(), torch.device("cpu"))
    trainer.step(0)
    for old, new in zip(before.quantizer.codebooks, trainer.codec.quantizer.codebooks, strict=True):
        used = new.usage > 0.99  # what a batch of 32 frames has used it has moved, and the rest stayed
        assert torch.allclose(old.embed[~used], new.embed[~used], atol=1e-5) and not torch.equal(old.embed, new.embed)
        # 32 vectors at one entry have a weight of 0.4 in its average, and lie at most twice the largest entry away.
        assert (old.embed - new.embed).abs().max() < 0.8 * old.embed.abs().max()
    assert trainer.codec.config.delay == 720
    with pytest.raises(UserError, match="multiple of 240"):
        replace(config, delay=500)


def test_codec_loss_falls(tiny_codec):
    config = replace(tiny_codec, steps=60, quantize_from=10, peak_lr=3e-3, adversarial_from=None, freeze_from=None)
    trainer = CodecTrainer(config, Vowels(), torch.device("cpu"))
    mel = [float(trainer.step(step)["mel"].detach()) for step in range(60)]
    assert np.mean(mel[-10:]) < 0.85 * np.mean(mel[:5])


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_lm_resumes_exactly(tiny_lm, tmp_path, dropout):
    build, config = tiny_lm
    config = replace(config, dropout=dropout)
    model = build()
    train_lm(config, model, Counting(model.prompt), str(tmp_path / "whole"))
    other = build()
    killed = LMTrainer(config, other, Counting(other.prompt), torch.device("cpu"))
    for step in range(4):
        killed.step(step)
    part = tmp_path / "part"
    part.mkdir()
    torch.save(killed.content(4), part / "checkpoint.pt")
    resumed = build()
    train_lm(config, resumed, Counting(resumed.prompt), str(part), resume=True)
    assert same(model.state_dict(), resumed.state_dict())
    lines = [json.loads(line) for line in (part / "log.jsonl").read_text().splitlines()]
    assert lines[-1]["step"] == 8 and lines[-1]["text"] > 0


def test_dropout_changes_training_and_no_evaluation(tiny_lm):
    build, config = tiny_lm
    plain, dropping = build(), build()
    trainers = [
        LMTrainer(replace(config, dropout=share), model, Counting(model.prompt), torch.device("cpu"))
        for share, model in ((0.0, plain), (0.5, dropping))
    ]
    patches = trainers[0].batches(0)[0].patches
    with torch.no_grad():
        assert torch.equal(plain(patches), dropping(patches))
    assert trainers[0].step(0)["text"] != trainers[1].step(0)["text"]


def test_lm_learns_to_transcribe_write_and_speak(tiny_lm):
    """Free running: transcript of the number, the next number as text, and its codes."""
    build, config = tiny_lm
    model = build()
    config = replace(config, steps=150, peak_lr=1e-2, corrupt=0.0)
    trainer = LMTrainer(config, model, Counting(model.prompt), torch.device("cpu"))
    for step in range(150):
        values = trainer.step(step)
    assert values["phones_right"] > 0.95 and values["draft_1_right"] > 0.95 and values["draft_2_right"] > 0.95
    model.eval()
    from speechgpt2.lm.reply import parse_reply
    from speechgpt2.lm.sampling import SamplingParams
    from speechgpt2.types import Patches

    prompt = model.prompt
    state = model.init_state(1, 128)
    _, state = model.prefill(prompt.system_prompt("s2s"), state)
    hidden, state = model.prefill(prompt.user_speech(torch.full((6, 3), 2)), state)
    written = model.draft_and_verify(hidden, state, torch.tensor([True]))
    assert written.counts.tolist() == [3]  # all that was foretold: what was heard, its end, the answer's beginning
    assert (
        written.patches.text[0].tolist()
        == [*prompt.encode("three"), prompt.special_ids.transcript_end, *prompt.encode("four")][:3]
    )
    steps = [s.patches for s in generate(model, hidden, state, SamplingParams.greedy(1), 40)]
    reply = parse_reply(
        prompt, Patches(torch.cat([s.text for s in steps], 1), torch.cat([s.codes for s in steps], 1)), True
    )
    assert (reply.transcript, reply.text, reply.ended) == ("three", "four", True)
    assert (reply.codes[3:9] == 3).all()


def test_lm_learns_the_phones_that_it_is_about_to_speak(tiny_lm):
    build, config = tiny_lm
    model = build()
    config = replace(config, steps=100, peak_lr=1e-2, corrupt=0.0, spoken_phones_weight=0.5)
    trainer = LMTrainer(config, model, Counting(model.prompt), torch.device("cpu"))
    values = [trainer.step(step) for step in range(100)]
    assert values[-1]["spoken_right"] > 0.95 > values[0]["spoken_right"]
    assert values[-1]["spoken_phones"] < 0.2 * values[0]["spoken_phones"]


def test_phones_of_the_models_speech_cost_nothing_unless_they_are_asked_for(tiny_lm):
    """A run that does not learn them takes the same steps whether they are labelled or not."""

    class Unlabelled(Counting):
        def example(self, random):
            example = super().example(random)
            own = example.code_loss_mask[..., None]
            return example._replace(phones=example.phones.masked_fill(own, -1))

    build, config = tiny_lm
    steps = []
    for counting in (Counting, Unlabelled):
        model = build()
        trainer = LMTrainer(config, model, counting(model.prompt), torch.device("cpu"))
        steps.append([trainer.step(step) for step in range(2)])
    assert all(same(a, b) for a, b in zip(*steps, strict=True)) and "spoken_phones" not in steps[0][0]


def test_lm_trains_without_speech(tiny_lm):
    build, config = tiny_lm
    model = build()
    values = LMTrainer(config, model, Counting(model.prompt, "s2t"), torch.device("cpu")).step(0)
    assert values["codes"] == 0 and values["text"] > 0
    assert all(p.isfinite().all() for p in model.parameters())


def test_lm_trains_without_phone_labels(tiny_lm):
    class Unlabelled(Counting):
        def example(self, random):
            example = super().example(random)
            return example._replace(phones=torch.full_like(example.phones, -1))

    build, config = tiny_lm
    model = build()
    values = LMTrainer(config, model, Unlabelled(model.prompt), torch.device("cpu")).step(0)
    assert values["phones"] == values["phones_right"] == 0 and values["text"] > 0
    assert all(p.isfinite().all() for p in model.parameters())


def test_packing_keeps_examples_apart(tiny_lm):
    """A packed example has the same hidden states as alone."""
    build, _ = tiny_lm
    model = build().eval()
    source = Counting(model.prompt)
    batch = pack(source, [np.random.default_rng(0)], 200, model.prompt.special_ids.eos)
    first = source.example(np.random.default_rng(0)).patches
    count = int((batch.segments[0] == 0).sum())
    start = int((batch.segments[0] == 1).nonzero()[0])
    length = int((batch.segments[0] == 1).sum())
    second = type(first)(batch.patches.text[:, start : start + length], batch.patches.codes[:, start : start + length])
    with torch.no_grad():
        packed = model(batch.patches, batch.segments)
        assert torch.allclose(packed[:, :count], model(first), atol=1e-5)
        assert torch.allclose(packed[:, start : start + length], model(second), atol=1e-5)
    assert not batch.text_loss_mask[0, start] and not batch.text_loss_mask[batch.segments == -1].any()


def test_corruption_touches_own_speech_only():
    codes = torch.arange(10 * 9).view(10, 3, 3)
    own = torch.arange(10) >= 5
    noisy = corrupt(codes, own, 0.5, np.random.default_rng(0))
    assert torch.equal(noisy[~own], codes[~own]) and not torch.equal(noisy[own], codes[own])


def test_existing_run_is_not_overwritten(tiny_codec, tmp_path):
    (tmp_path / "checkpoint.pt").write_bytes(b"")
    with pytest.raises(UserError, match="--resume"):
        train_codec(tiny_codec, Vowels(), str(tmp_path))


def test_learning_rate_rises_and_falls():
    rates = [learning_rate(step, 100, 1.0, 10) for step in range(100)]
    assert rates[0] == 0.1 and rates[9] == 1.0 and rates[99] < 0.06 and type(rates[50]) is float


def test_weight_average_follows_the_weights(tiny_lm):
    model = torch.nn.Linear(2, 2)
    average = WeightAverage(model, 0.9)
    with torch.no_grad():
        model.weight.add_(1.0)
    for step in range(300):
        average.update(model, step)
    assert torch.allclose(average.values["weight"], model.weight, atol=1e-4)
