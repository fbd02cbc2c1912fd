"""Semantic teachers: CTC on text, features of a frozen speech model, and a codec that learns from them."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from speechgpt2 import config as configs
from speechgpt2.codec import config as presets
from speechgpt2.codec.config import HiFiGANConfig
from speechgpt2.codec.crops import Crops
from speechgpt2.codec.teachers import CTCConfig, CTCTeacher, DistillationConfig, DistillationTeacher, Teachers
from speechgpt2.codec.train import CodecTrainConfig, CodecTrainer
from speechgpt2.errors import UserError
from tests import needs
from tests.training import test_resume

tiny_codec = test_resume.tiny_codec
CPU = torch.device("cpu")


def crops(texts=("Ab", None), frames=12):
    pcm = torch.from_numpy(
        np.random.default_rng(0).standard_normal((len(texts), frames * 960)).astype(np.float32) * 0.1
    )
    return Crops(pcm, pcm, torch.zeros(len(texts), 4 * frames), torch.zeros(len(texts), frames).long() - 1, texts)


def logits_of(labels):
    """Logits `[1, T, 257]` that are sure of the labels."""
    return torch.nn.functional.one_hot(torch.tensor([labels]), 257).float() * 50


def test_ctc_knows_the_text_in_any_alignment():
    teacher = CTCTeacher(CTCConfig(), CPU)
    a, b = ord("a") + 1, ord("b") + 1
    for labels in ([0, a, 0, b], [a, a, a, b], [a, b, 0, 0]):
        assert teacher.loss(logits_of(labels), crops(("Ab",))) < 1e-3
    for labels in ([0, b, 0, a], [a, 0, a, b], [0, 0, 0, 0]):
        assert teacher.loss(logits_of(labels), crops(("Ab",))) > 10


def test_ctc_leaves_out_what_is_unknown():
    teacher = CTCTeacher(CTCConfig(), CPU)
    predicted = torch.randn(2, 9, 257, requires_grad=True)
    loss = teacher.loss(predicted, crops(("ab", None)))
    (gradient,) = torch.autograd.grad(loss, predicted)
    assert loss == teacher.loss(predicted[:1], crops(("ab",))) and gradient[0].any() and not gradient[1].any()
    assert teacher.loss(predicted, crops((None, None))) == 0
    assert teacher.loss(predicted, crops((None, "a" * 99))) == 0  # more text than frames: nothing fits


@pytest.mark.parametrize("kind", ("whisper", "hubert"))
def test_features_of_a_frozen_model(kind, tmp_path):
    transformers = needs.module("transformers", "teachers")
    save_tiny(transformers, kind, tmp_path)
    teachers = Teachers([DistillationConfig(model=str(tmp_path))], 16, CPU)
    teacher = teachers.teachers[0]
    given = crops(("", ""), frames=12)
    features = teacher.features(given.pcm, 12)
    assert features.shape == (2, 12, 16) and features.isfinite().all()
    assert torch.equal(features, teacher.features(given.pcm, 12))
    vectors = torch.randn(2, 12, 16, requires_grad=True)
    loss = teachers(vectors, given)["distillation"]
    loss.backward()
    assert 0 < loss < 2 and vectors.grad.any() and teachers.heads[0].weight.grad.any()
    assert all(p.grad is None for p in teacher.model.network.parameters())
    assert {name.split(".")[0] for name in teachers.state_dict()} == {"heads"}  # the model is in no checkpoint
    same = DistillationTeacher(DistillationConfig(model=str(tmp_path)), CPU)
    assert same.loss(features[:, :9], given) == pytest.approx(0, abs=1e-6)


def test_features_of_a_converted_whisper(tmp_path):
    transformers = needs.module("transformers", "teachers")
    needs.module("faster_whisper", "eval")
    save_converted(transformers, tmp_path)
    teacher = DistillationTeacher(DistillationConfig(model=str(tmp_path)), CPU)
    given = crops(("", ""), frames=12)
    features = teacher.features(given.pcm, 12)
    assert features.shape == (2, 12, 16) and features.isfinite().all() and not torch.equal(features[0], features[1])
    assert teacher.loss(features[:, :9], given) == pytest.approx(0, abs=1e-6)
    with pytest.raises(UserError, match="only its last layer"):
        DistillationTeacher(DistillationConfig(model=str(tmp_path), layer=2), CPU)
    (tmp_path / "model.bin").write_bytes(b"no model")
    with pytest.raises(UserError, match=f"^teacher {tmp_path}: "):
        DistillationTeacher(DistillationConfig(model=str(tmp_path)), CPU)


def save_converted(transformers, folder):
    """Save a tiny Whisper model as faster-whisper reads it."""
    from ctranslate2.converters.transformers import WhisperLoader

    torch.manual_seed(0)
    spec = WhisperLoader().get_model_spec(
        transformers.WhisperForConditionalGeneration(whisper_config(transformers, 80))
    )
    spec.register_vocabulary([str(token) for token in range(60)])
    for name in ("suppress_ids", "suppress_ids_begin", "lang_ids", "alignment_heads"):
        setattr(spec.config, name, [])
    spec.validate()
    spec.save(str(folder))


def whisper_config(transformers, bins):
    sizes = {f"{part}_{name}": size for part in ("encoder", "decoder") for name, size in LAYERS.items()}
    tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
    return transformers.WhisperConfig(d_model=16, vocab_size=60, num_mel_bins=bins, **sizes, **tokens)


def save_tiny(transformers, kind, folder):
    torch.manual_seed(0)
    if kind == "whisper":
        transformers.WhisperModel(whisper_config(transformers, 8)).save_pretrained(folder)
        transformers.WhisperFeatureExtractor(feature_size=8).save_pretrained(folder)
        return
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = transformers.HubertConfig(conv_dim=(8,) * 7, num_conv_pos_embeddings=4, **sizes)
    transformers.HubertModel(config).save_pretrained(folder)
    transformers.Wav2Vec2FeatureExtractor().save_pretrained(folder)


LAYERS = {"layers": 1, "attention_heads": 2, "ffn_dim": 16}


def test_mistakes_are_named(tmp_path):
    with pytest.raises(UserError, match="give each kind once"):
        Teachers([CTCConfig(), CTCConfig(delay=1)], 4, CPU)
    with pytest.raises(UserError, match="needs `model`"):
        DistillationConfig()
    needs.module("transformers", "teachers")
    with pytest.raises(UserError, match=r"teacher .*absent"):
        Teachers([DistillationConfig(model=str(tmp_path / "absent"))], 4, CPU)


class Spelled(test_resume.Vowels):
    """Crops that say their vowel, as text."""

    def crops(self, random, batch, frames):
        given = super().crops(random, batch, frames)
        return replace(given, texts=tuple("ae"[int(label)] for label in given.phones[:, 0]))


def test_a_codec_learns_from_a_teacher_and_resumes_exactly(tiny_codec):
    config = replace(
        tiny_codec, adversarial_from=None, freeze_from=None, teachers=(CTCConfig(),), steps=30, peak_lr=3e-3
    )
    trainer = CodecTrainer(config, Spelled(), CPU)
    losses = [float(trainer.step(step)["ctc"].detach()) for step in range(10)]
    content = copy.deepcopy(trainer.content(10))
    assert "teachers.heads.0.weight" in content["modules"]
    again = CodecTrainer(config, Spelled(), CPU)
    assert again.restore(content) == 10
    later = [float(trainer.step(step)["ctc"].detach()) for step in range(10, 14)]
    assert [float(again.step(step)["ctc"].detach()) for step in range(10, 14)] == later
    assert np.mean(later) < 0.9 * np.mean(losses[:3])


def test_the_released_layout_trains_in_its_stages(tiny_codec, monkeypatch):
    small = replace(
        presets.PRESETS["tiny"](), head=HiFiGANConfig(channels=16, dilations=(1,)), delay=0, normalized_latent=False
    )
    monkeypatch.setitem(presets.PRESETS, "tiny", lambda: small)
    stages = {"quantize_from": 2, "freeze_from": 4, "adversarial_from": 4}
    config = replace(tiny_codec, teachers=(CTCConfig(),), batch=1, frames=8, **stages)
    trainer = CodecTrainer(config, Spelled(), CPU)
    values = []
    for step in range(6):
        before = {name: tensor.clone() for name, tensor in trainer.codec.state_dict().items()}
        values.append(trainer.step(step))
        after = trainer.codec.state_dict()
        moved = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
        assert ("encoder" in moved) == (step < 4) and "decoder" in moved
    assert "ctc" in values[0] and "commitment" not in values[1] and "commitment" in values[2]
    assert "ctc" not in values[4] and values[4].keys() >= {"discriminator", "adversarial", "features"}
    assert all(value.isfinite() for found in values for value in found.values())


def test_teachers_in_a_configuration():
    values = {"teachers": [{"kind": "ctc", "weight": 2.0}, {"kind": "distillation", "model": "openai/whisper-base"}]}
    teachers = configs.from_dict(CodecTrainConfig, values).teachers
    assert teachers == (CTCConfig(weight=2.0), DistillationConfig(model="openai/whisper-base"))
