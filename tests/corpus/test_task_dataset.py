"""From a corpus to what the two trainers see: crops, codes, dialogues in all modes."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from speechgpt2.codec.config import CodecConfig, HarmonicConfig, MelConfig, QuantizerConfig
from speechgpt2.codec.model import Codec
from speechgpt2.corpus import codes as coding
from speechgpt2.corpus.codec_dataset import CorpusCrops
from speechgpt2.corpus.codes import encode_data
from speechgpt2.corpus.data_config import DataConfig
from speechgpt2.corpus.model_setup import new_model, silence_frame
from speechgpt2.corpus.store import CorpusItem, CorpusWriter, Record
from speechgpt2.corpus.task_dataset import FINAL_SILENCE, LEADING_SILENCE, TaskSource
from speechgpt2.errors import UserError
from speechgpt2.lm.config import BackboneConfig, PatchDecoderConfig
from speechgpt2.lm.packing import pack
from speechgpt2.lm.tasks import GO_ON, TaskMix
from speechgpt2.lm.train import LMTrainConfig
from speechgpt2.nn.convnext import ConvNeXtConfig
from speechgpt2.nn.transformer import TransformerConfig
from speechgpt2.tts.utterance import Phone, Word
from speechgpt2.types import UNFINISHED


@pytest.fixture(scope="module")
def codec():
    torch.manual_seed(0)
    narrow = TransformerConfig(16, 2, 1, 32, context=9)
    wide = TransformerConfig(16, 2, 1, 32, context=5)
    convnext = ConvNeXtConfig((1,), (16,))
    head = HarmonicConfig(harmonic_bands=20, noise_bands=10)
    return Codec(CodecConfig(MelConfig(20), convnext, narrow, QuantizerConfig(), wide, narrow, convnext, head)).eval()


def random_clip(random, seconds):
    return (random.standard_normal(int(24_000 * seconds)) * 0.1).astype(np.float32)


def asked_words(question):
    """ "so question 0" word by word, Mandarin character by character, 0.2 s each."""
    parts = question.split() if " " in question else question
    return tuple(Word(part, 0.1 + 0.2 * k, 0.3 + 0.2 * k) for k, part in enumerate(parts))


def items():
    """Four spoken exchanges, one typed, two texts read aloud; the second half belongs to the test split."""
    random = np.random.default_rng(0)
    for i in range(4):
        lang, split = ("en", "zh")[i % 2], "train"
        question, reply = (f"so question {i}", f"reply {i}") if lang == "en" else (f"再问{i}", f"答{i}")
        fields = {"lang": lang, "split": split}
        asked = {"exchange": f"e{i}", "typed": [question.upper()]}
        f0 = np.full(400, 150.0, np.float32)
        phones = tuple(Phone("ab"[k % 2], 0.1 * k, 0.1 * k + 0.1) for k in range(8))
        yield CorpusItem(
            Record(f"e{i}-q", question, role="user", words=asked_words(question), extra=asked, phones=phones, **fields),
            random_clip(random, 1 + i / 4),
            f0,
        )
        words = (Word(reply, 0.1, 0.5),)
        yield CorpusItem(
            Record(f"e{i}-a", reply, role="assistant", words=words, extra={"exchange": f"e{i}"}, **fields),
            random_clip(random, 1),
            f0,
        )
        say = Record(
            f"s{i}", f"say {i}", role="assistant", words=(Word(f"say {i}", 0.0, 0.4),), extra={"skill": "say"}, **fields
        )
        yield CorpusItem(say, random_clip(random, 0.8), f0)
        text = f"hear {i}" if lang == "en" else f"听{i}"
        words = (Word(text, 0.1, 0.4),)
        yield CorpusItem(
            Record(f"h{i}", text, role="user", words=words, extra={"skill": "dictation"}, **fields),
            random_clip(random, 0.6),
            f0,
        )
    yield CorpusItem(Record("t-q", "typed?", "en", role="user", extra={"exchange": "t", "typed": ["TYPED"]}))
    yield CorpusItem(Record("t-a", "typed.", "en", role="assistant", extra={"exchange": "t"}))
    yield CorpusItem(
        Record("x-q", "held out", "en", role="user", split="test", extra={"exchange": "x", "typed": []}),
        random_clip(random, 1),
        np.zeros(100),
    )


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    writer = CorpusWriter(tmp_path_factory.mktemp("corpus"), {})
    writer.write_part(0, items())
    return writer.finish(1)


def encoded(corpus, codec, folder, precise=True):
    with pytest.MonkeyPatch.context() as patch:
        if precise:
            patch.setattr(coding, "has_fast_bf16", lambda device: False)
        return encode_data([DataConfig(str(corpus.path))], codec, folder)


@pytest.fixture(scope="module")
def data(corpus, codec, tmp_path_factory):
    return encoded(corpus, codec, tmp_path_factory.mktemp("codes") / "run" / "codes")  # the folder is not there yet


@pytest.fixture(scope="module")
def source(data, codec):
    config = LMTrainConfig(BackboneConfig(400, 32, 1, 2, 2, 48), PatchDecoderConfig(16, 1, 2, 32))
    return TaskSource(data, new_model(config, data, codec).prompt, TaskMix())


def test_held_out_examples_are_those_of_the_test_split(data, source):
    assert source.held_out(8) == []  # a question without a reply is no example of any task
    records = tuple(replace(r, split="test" if r.id.endswith(("s1", "h1", "h3")) else "train") for r in data.records)
    training = TaskSource(replace(data, records=records), source.prompt, TaskMix(), phones=source.phones)
    first, again = training.held_out(8), training.held_out(8)
    assert {task.name: len(task.examples) for task in first} == {"synthesis": 2, "transcription": 6}
    assert sum(task.share for task in first) == pytest.approx(1)
    for one, other in zip(first, again, strict=True):
        assert all(torch.equal(a.targets, b.targets) for a, b in zip(one.examples, other.examples, strict=True))
    texts = source.prompt.tokenizer.decode([t for task in first for e in task.examples for t in e.targets[0].tolist()])
    assert "say 1" in texts and "say 0" not in texts


def test_crops_know_what_is_said_in_them(corpus):
    source = CorpusCrops(corpus)
    source.records = [r for r in source.records if r.id in ("e0-q", "e1-q")]
    source.cumulative = np.array([0.5, 1.0])
    texts = {text for seed in range(8) for text in source.crops(np.random.default_rng(seed), 2, 20).texts}
    assert "so question 0" in texts and "再问1" in texts
    source.records = [replace(source.records[0], words=()), source.records[1]]
    assert None in source.crops(np.random.default_rng(0), 8, 20).texts


def test_held_out_speech_of_the_codec(corpus):
    speech = CorpusCrops(corpus).held_out(5)
    assert [(clip.text, clip.lang, len(clip.pcm)) for clip in speech] == [("held out", "en", 24_000)]


def test_batch_encoding_equals_single_encoding(data, corpus, codec):
    for coded, record in zip(data.records, corpus.records, strict=True):
        if record.length:
            alone = codec.encode(torch.from_numpy(corpus.pcm(record))[None])[0]
            assert torch.equal(data.codes(coded), alone), record.id


def test_half_precision_gives_mostly_the_same_codes(corpus, codec, data, tmp_path):
    half = encoded(corpus, codec, tmp_path, precise=False)
    same = np.concatenate(half.shards) == np.concatenate(data.shards)
    assert 0.5 < same.mean() <= 1


def test_silence_is_what_silence_encodes_to(source, codec):
    assert tuple(source.prompt.template.silence) == silence_frame(codec)
    assert all(type(code) is int for code in silence_frame(codec))


@pytest.fixture
def single(source, monkeypatch):
    """The source without further exchanges."""
    monkeypatch.setattr(source, "mix", TaskMix(next_turn=0.0))
    return source


@pytest.mark.parametrize("mode", ("s2s", "s2t", "t2s", "t2t", "synthesis"))
def test_examples_of_every_kind(single, mode):
    source = single
    ids, no_speech = source.prompt.special_ids, source.prompt.config.no_speech
    for seed in range(8):
        example = source.example_of(mode, np.random.default_rng(seed))
        text = example.patches.text[0]
        learnt = text[example.text_loss_mask[0]].tolist()
        assert text[-1] == ids.eos and learnt[-1] == ids.eos
        assert (ids.transcript_end in learnt) == mode.startswith("s2")
        assert (ids.speech_start in text[text != ids.eos].tolist()) == (mode != "t2t")
        assert bool(example.code_loss_mask.any()) == (mode in ("s2s", "t2s", "synthesis"))
        assert (example.patches.codes[example.code_loss_mask] != no_speech).all()
        if mode == "synthesis":  # the text is given; only its sound is to be learnt
            assert source.prompt.tokenizer.decode(learnt).strip().startswith("synthesis") or ids.filler in learnt
            assert not example.text_loss_mask[0, : int((text == ids.speech_start).nonzero()[0]) + 1].any()


def test_dictation_is_transcribed_and_not_answered(source):
    ids = source.prompt.special_ids
    for seed in range(8):
        example = source.example_of("transcription", np.random.default_rng(seed))
        learnt = example.targets[example.text_loss_mask].tolist()
        text = source.prompt.tokenizer.decode(learnt)
        assert learnt[-1] == ids.transcript_end and ids.eos not in learnt and not example.code_loss_mask.any()
        assert "hear" in text or "听" in text


def test_broken_off_question_is_transcribed_and_not_answered(source):
    decode, ids, ends = source.prompt.tokenizer.decode, source.prompt.special_ids, set()
    for seed in range(12):
        example = source.example_of("unfinished", np.random.default_rng(seed))
        learnt = example.targets[example.text_loss_mask].tolist()
        written = learnt[: learnt.index(ids.transcript_end)]
        question, reply = decode(written), decode(learnt[learnt.index(ids.transcript_end) + 1 :])
        assert question.endswith(UNFINISHED) and "question 0" not in question and "问0" not in question
        assert reply.startswith(tuple(GO_ON.values())) and not example.code_loss_mask.any()
        ends.add(learnt[-1] == ids.eos)
        speech = (example.patches.codes[..., 0, 0] != source.prompt.config.no_speech).sum()
        assert (
            speech * 3 / 25 < 1.1 + (LEADING_SILENCE + FINAL_SILENCE + 6) / 25
        )  # the questions last 1 to 1.75 s, words after 0.7 s
    assert ends == {True, False}  # where it should be spoken, the end is not learnt


def test_speech_of_the_user_falls_anywhere_in_its_patches(source):
    firsts = {
        tuple(drawn.patches.codes[drawn.patches.codes[..., 0] != source.prompt.config.no_speech][:3].flatten().tolist())
        for drawn in (source.example_of("transcription", np.random.default_rng(seed)) for seed in range(40))
    }
    assert len(firsts) > 4


def test_dialogues_go_on(source, monkeypatch):
    monkeypatch.setattr(source, "mix", TaskMix(next_turn=0.8))
    ends = [
        int((source.example_of("t2t", np.random.default_rng(s)).patches.text == source.prompt.special_ids.eos).sum())
        for s in range(10)
    ]
    assert max(ends) > 2


def test_second_voice_answers_after_a_greeting_only(data, codec):
    def voiced(record):  # texts and replies 0 and 3 are read by the first voice, 1 and 2 by the second
        if record.role != "assistant" or not record.length:
            return record
        return replace(record, extra={**record.extra, "assistant_voice": int(record.text[-1] in "12")})

    records = tuple(map(voiced, data.records))
    config = LMTrainConfig(BackboneConfig(400, 32, 1, 2, 2, 48), PatchDecoderConfig(16, 1, 2, 32))
    source = TaskSource(replace(data, records=records), new_model(config, data, codec).prompt, TaskMix(next_turn=0.5))
    voice_of = {r.text: r.extra["assistant_voice"] for r in records if "assistant_voice" in r.extra}
    greeted = set()
    for seed in range(60):
        text = source.example_of("s2s", np.random.default_rng(seed)).patches.text[0].tolist()
        spoken = source.prompt.tokenizer.decode(text)
        voices = {voice for said, voice in voice_of.items() if said in spoken}
        assert len(voices) == 1  # greeting and all replies
        greeted.add((voices.pop(), "say" in spoken))
    assert greeted == {(0, False), (0, True), (1, True)}


def test_a_run_with_more_data_keeps_its_phones(data, source):
    kept = TaskSource(data, source.prompt, TaskMix(), phones=("", "b"))
    assert kept.phones == ("", "b")
    labels = {int(v) for seed in range(5) for v in kept.example_of("s2t", np.random.default_rng(seed)).phones.unique()}
    assert labels == {-1, 0, 1}


def test_user_speech_is_corrupted_where_there_is_speech(source):
    no_speech, eos = source.prompt.config.no_speech, source.prompt.special_ids.eos

    def inputs(given):
        randoms = [np.random.default_rng(0), np.random.default_rng(1)]
        return pack(source, randoms, 120, eos, 0.0, given, no_speech)

    whole, noisy = inputs(0.0), inputs(0.5)
    changed = (noisy.inputs.codes != whole.inputs.codes).any(dim=(2, 3))
    assert torch.equal(whole.inputs.codes, whole.patches.codes) and changed.any()
    assert not changed[whole.code_loss_mask].any() and not changed[whole.patches.codes[..., 0, 0] == no_speech].any()
    assert torch.equal(noisy.patches.codes, whole.patches.codes)  # what is predicted stays


def test_imitated_speaker_is_given_as_a_greeting(data, codec):
    """Two of the texts read aloud are of one speaker that is imitated; the others are of the assistant."""
    is_imitated = {"say 1", "say 3"}.__contains__
    records = tuple(
        replace(r, role="", speaker="someone", extra={"skill": "cloned"}) if is_imitated(r.text) else r
        for r in data.records
    )
    config = LMTrainConfig(BackboneConfig(400, 32, 1, 2, 2, 48), PatchDecoderConfig(16, 1, 2, 32))
    mix = TaskMix(cloned_synthesis=0.5)
    source = TaskSource(replace(data, records=records), new_model(config, data, codec).prompt, mix)
    assert {r.text for r in source.pools["synthesis"].items} == {"say 0", "say 2"}
    assert {r.text for r in source.pools["cloned_synthesis"].items} == {"say 1", "say 3"}
    for seed in range(6):
        text = source.example_of("cloned_synthesis", np.random.default_rng(seed)).patches.text[0].tolist()
        spoken = source.prompt.tokenizer.decode(text)
        assert "say 1" in spoken and "say 3" in spoken  # the one is the other's greeting


def test_held_out_is_never_drawn(source):
    turns = [d.turns[0] for mode in ("s2s", "t2t") for d in source.pools[mode].items]
    assert turns and all(turn.split == "train" and turn.text != "held out" for turn in turns)


def test_crops_carry_pitch_and_phones(corpus, monkeypatch):
    monkeypatch.setattr("speechgpt2.corpus.phones.MIN_COUNT", 1)
    crops = CorpusCrops(corpus)
    batch = crops.crops(np.random.default_rng(0), 6, 32)
    assert batch.pcm.shape == (6, 32 * 960) and batch.f0.shape == (6, 128) and batch.phones.shape == (6, 32)
    assert crops.phones == ("", "a", "b") and set(batch.phones.unique().tolist()) <= {-1, 0, 1, 2}
    assert (batch.phones > 0).any() and (batch.phones == -1).any() and batch.pcm.abs().max() < 1
    again = crops.crops(np.random.default_rng(0), 6, 32)
    assert torch.equal(batch.pcm, again.pcm) and torch.equal(batch.augmented, again.augmented)
    augment_utterance = (batch.augmented != batch.pcm).any(dim=1)
    assert batch.augmented.shape == batch.pcm.shape and augment_utterance.any() and not augment_utterance.all()


def test_mix_weighs_sources_and_names_those_that_are_not_there(corpus):
    known = CorpusCrops(corpus, mix={"synthetic": 2.0})
    assert np.array_equal(known.cumulative, CorpusCrops(corpus).cumulative)  # all are of one source
    with pytest.raises(UserError, match="no source 'ljspeech'; it has synthetic"):
        CorpusCrops(corpus, mix={"ljspeech": 3.0})
    with pytest.raises(UserError, match="must be at least 0"):
        CorpusCrops(corpus, mix={"synthetic": -1.0})
