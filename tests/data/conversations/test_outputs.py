"""A folder of conversations, taken up by the other systems: records, Lhotse cuts, cleaning, training."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
import soundfile
import torch
from typer.testing import CliRunner

from speechgpt2.cli import app
from speechgpt2.corpus import conversation_turns as turns
from speechgpt2.corpus.codes import encode_data
from speechgpt2.corpus.data_config import DataConfig
from speechgpt2.corpus.formats import find_parts
from speechgpt2.corpus.model_setup import new_model
from speechgpt2.corpus.task_dataset import LEADING_SILENCE, DialogueTurns, TaskSource
from speechgpt2.data.conversations import build as building
from speechgpt2.data.conversations import clips
from speechgpt2.data.conversations.render_script import render_script
from speechgpt2.data.conversations.script import Line, Script
from speechgpt2.data.record import Clip
from speechgpt2.lm.config import BackboneConfig, PatchDecoderConfig
from speechgpt2.lm.model import SpeechLM
from speechgpt2.lm.tasks import TaskMix
from speechgpt2.lm.train import LMTrainConfig
from speechgpt2.types import SAMPLE_RATE, Patches
from tests import needs
from tests.codec.tiny import narrow_codec
from tests.data.conversations.test_render_script import LONG, beeps, timing

SCRIPTS = (
    Script("story", "en", ("user", "assistant"), (
        Line("user", "tell me"), Line("assistant", LONG), Line("user", "mhm", "backchannel"),
        Line("user", "wait please", "interruption"), Line("assistant", "of course", style="sad"),
    )),
    Script("shop", "en", ("waiter", "guest"), (
        Line("waiter", "good day"), Line("guest", "the soup"), Line("guest", "and tea"), Line("waiter", "thank you"),
    )),
)  # fmt: skip
VOICES = (
    {"engine": "espeak", "name": "f3", "lang": "en", "accent": "en-us"},
    {"engine": "flite", "name": "slt", "lang": "en"},
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What a build leaves, of two conversations in beeps."""

    def make_conversation(recipe, number):
        script = SCRIPTS[number]
        spoken = render_script(script, dict.fromkeys(script.roles, beeps), timing(), random.Random(number))
        return spoken, {"voices": list(VOICES), "acoustics": [], "deviations": {}}

    out = tmp_path_factory.mktemp("made") / "talks"
    recipe = building.Recipe(2, seed=7)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(building, "make_conversation", make_conversation)
        for name in ("audio", "turns", "parts"):
            (out / name).mkdir(parents=True)
        building._make_part((recipe, out, 0))
    assert building.build(recipe, out)[0] == 2
    return out


def rows(folder):
    return [
        json.loads(line) for line in (folder / building.CONVERSATIONS_FILE).read_text(encoding="utf-8").splitlines()
    ]


def peaks(pcm: np.ndarray, words) -> list[int]:
    """The number of the beep that sounds in each word's time."""
    spans = [pcm[round(w.start * SAMPLE_RATE) : round(w.end * SAMPLE_RATE)] for w in words]
    hertz = [np.abs(np.fft.rfft(span)).argmax() * SAMPLE_RATE / len(span) for span in spans]
    return [round((value - 300) / 100) for value in hertz]


def test_every_line_is_a_record_with_audio(folder):
    records = [Clip.from_json(line) for line in (folder / clips.CLIPS).read_text(encoding="utf-8").splitlines()]
    assert [record.id for record in records if record.parent_id == "000000"] == [
        "000000-00-c0", "000000-01-c1", "000000-02-c0", "000000-03-c0", "000000-04-c1",
    ]  # fmt: skip
    for record in records:
        pcm, rate = soundfile.read(folder / record.audio.path)
        assert rate == SAMPLE_RATE and len(pcm) == round(record.audio.duration * SAMPLE_RATE)
        assert peaks(pcm, record.align.words) == list(range(len(record.align.words))), record.id
        assert record.labels_from["align"].kind == "truth"
        assert record.speakers[0].id == ("espeak/en-us+f3" if record.id.endswith("c0") else "flite/slt")
    turn, back, sad = records[1], records[2], records[4]
    assert {(m.type, m.by) for m in turn.events} >= {
        ("backchannel", "espeak/en-us+f3"),
        ("interruption", "espeak/en-us+f3"),
    }
    assert all(0 <= m.start < m.end <= turn.audio.duration + 1e-3 for m in turn.events)
    assert back.text.raw == "mhm" and sad.style.emotion == "sad" and sad.style.scene == "story"


def test_lhotse_reads_both_channels(folder, monkeypatch):
    lhotse = needs.module("lhotse", "data")
    monkeypatch.chdir(folder)
    cuts = list(lhotse.CutSet.from_file(folder / clips.CUTS))
    assert [cut.id for cut in cuts] == ["000000", "000001"]
    lhotse.qa.validate(cuts[0])
    audio = cuts[0].load_audio()
    assert audio.shape == (2, rows(folder)[0]["samples"])
    for supervision in cuts[0].supervisions:
        words = supervision.alignment["word"]
        assert peaks(audio[supervision.channel], words) == list(range(len(words)))
    assert cuts[0].supervisions[1].custom["cut"] and cuts[0].supervisions[1].speaker == "flite/slt"


def test_pipeline_accepts_conversations_like_recordings(folder, tmp_path):
    needs.module("pyarrow", "data")
    from speechgpt2.data.pipeline import shar

    run, out = CliRunner(), tmp_path / "run"
    steps = tmp_path / "steps.yaml"
    steps.write_text(
        "steps: [{kind: decode}, {kind: segment, shortest: 0.1}, {kind: loudness}, {kind: quality}, {kind: transcript}]"
    )
    result = run.invoke(
        app, ["data", "clean", str(folder / clips.CLIPS), "-o", str(out), "--preset", str(steps), "--workers", "1"]
    )
    assert result.exit_code == 0 and "kept 9 clips" in result.output, result.output
    result = run.invoke(app, ["data", "annotate", str(out), "--workers", "1"])
    assert result.exit_code == 0, result.output
    for clip, pcm in shar.read(out / "shar"):
        assert clip.labels_from["align"].tool in ("espeak", "flite") and clip.quality.snr is not None
        assert peaks(pcm, clip.align.words) == list(range(len(clip.align.words)))
    assert run.invoke(app, ["data", "report", str(out)]).exit_code == 0
    stored = {clip.id: clip for clip, _ in shar.read(out / "shar")}
    trained = [item.record for part in find_parts(str(out)) for item in part.read()]  # what `sg2 train` sees
    assert {record.id for record in trained} == set(stored)
    for record in trained:
        clip = stored[record.id]
        assert record.words == clip.align.words and record.phones == clip.align.phones and record.lang == clip.lang.code


# learning


@pytest.fixture(scope="module")
def codec():
    return narrow_codec()


TINY = LMTrainConfig(
    BackboneConfig(400, 32, 2, 4, 2, 48), PatchDecoderConfig(16, 1, 2, 32, chained=True), steps=6, rows=2,
    row_patches=96, warmup=2, save_every=3, report_every=3, mix=TaskMix(s2s=0.5, s2t=0.2, t2s=0.1, t2t=0.2),
)  # fmt: skip


@pytest.fixture(scope="module")
def data(folder, codec, tmp_path_factory):
    return encode_data([DataConfig(str(folder))], codec, tmp_path_factory.mktemp("codes"))


@pytest.fixture(scope="module")
def source(data, codec):
    return TaskSource(data, new_model(TINY, data, codec).prompt, TINY.mix)


def talk(source, number, own) -> DialogueTurns:
    """A conversation, from the side of the speaker on channel `own`."""
    dialogues = [d for pool in source.pools.values() for d in pool.items if d.model_channel == own]
    found = {d.turns[0].extra["conversation"]: d for d in dialogues}
    return next(d for name, d in found.items() if name.endswith(f"/{number:06d}"))


def test_turn_lasts_until_the_other_side_speaks(folder):
    corpus = turns.open_corpus(folder)
    story, shop = ([r for r in corpus.records if r.extra["conversation"] == id] for id in ("000000", "000001"))
    assert [r.text for r in story] == [
        "tell me",
        "one two three four five, six seven eight",
        "wait please",
        "of course",
    ]
    assert [r.extra["cut"] for r in story] == [False, True, False, False]
    assert [r.text for r in shop] == ["good day", "the soup and tea", "thank you"]
    for record in corpus.records:
        beeps_of = peaks(corpus.pcm(record), record.words)
        assert beeps_of == ([0, 1, 0, 1] if "and tea" in record.text else list(range(len(record.words))))


def written(source, example, mask) -> str:
    unnamed = (source.prompt.special_ids.filler, source.prompt.special_ids.last_filler)
    tokens = [t for t in example.targets[mask].tolist() if t not in unnamed]
    return source.prompt.tokenizer.decode(tokens, skip_special_tokens=False)


def test_only_the_assistant_channel_is_trained(source):
    dialogues = source.pools["s2s"].items
    assert {d.model_channel for d in dialogues if d.turns[0].extra["conversation"].endswith("000000")} == {1}
    example = source.dialogue_example(talk(source, 0, 1), "s2s", np.random.default_rng(0))
    learnt = written(source, example, example.text_loss_mask)
    assert "of course" in learnt and "seven eight" in learnt
    assert learnt.count("wait please") == 2 and "mhm" not in learnt  # named while heard, and written down
    assert example.code_loss_mask.any()


def test_end_of_a_cut_reply_is_not_learnt(source):
    ids = source.prompt.special_ids
    for mode in ("s2s", "s2t", "t2s", "t2t"):
        example = source.dialogue_example(talk(source, 0, 1), mode, np.random.default_rng(0))
        text, learnt = example.patches.text[0], example.text_loss_mask[0]
        first, second = (text == ids.eos).nonzero()[:, 0].tolist()
        assert not learnt[first] and learnt[second]
        spoken = [at for at in (text == ids.speech_start).nonzero()[:, 0].tolist() if at < first]
        if mode[2] == "s":
            assert not learnt[spoken[-1]]
            ends = (text[: first + 1] == ids.speech_end).nonzero()[-1]
            assert not learnt[ends] and not example.code_loss_mask[0, ends - 1]
            assert example.code_loss_mask[0, spoken[-1] : first].any()


def test_conversations_among_people_are_learnt_from_both_sides(source):
    ids = source.prompt.special_ids
    asked = source.dialogue_example(talk(source, 1, 1), "s2s", np.random.default_rng(0))
    assert int((asked.patches.text == ids.eos).sum()) == 1
    greeted = source.dialogue_example(talk(source, 1, 0), "s2s", np.random.default_rng(0))
    ends = (greeted.patches.text[0] == ids.eos).nonzero()[:, 0]
    assert len(ends) == 2 and not greeted.text_loss_mask[0, : ends[0] + 1].any()  # its greeting tells only the voice
    assert "thank you" in written(source, greeted, greeted.text_loss_mask)
    drawn = {source.example(np.random.default_rng(seed)).patches.text.shape[1] for seed in range(20)}
    assert len(drawn) > 4


def test_words_appear_after_their_audio(source):
    """What is to be predicted at a patch of the other one's speech ended before it: listening never looks ahead."""
    story, prompt = talk(source, 0, 1), source.prompt
    example = source.dialogue_example(story, "s2s", np.random.default_rng(3))
    later = int(np.random.default_rng(3).integers(LEADING_SILENCE))
    start = int((example.patches.text[0] == prompt.special_ids.speech_start).nonzero()[0]) + 1
    word = story.turns[0].words[1]
    token = prompt.encode(" " + word.text)[0]
    named = int((example.targets[0, start:] == token).nonzero()[0])
    assert named * 0.12 >= word.end + later * 0.04 - 1e-6 and named * 0.12 <= word.end + later * 0.04 + 0.25


def test_patches_stream(source, data, folder, codec):
    """An example taken in piece by piece ends where it ends as a whole; the codes are those of streamed sound."""
    torch.manual_seed(1)
    lm = new_model(TINY, data, codec).eval()
    patches = source.dialogue_example(talk(source, 0, 1), "s2s", np.random.default_rng(0)).patches
    with torch.no_grad():
        whole = lm(patches)
        for sizes in ([1], [7, 2, 19]):
            state, at, turn = lm.init_state(1, patches.text.shape[1]), 0, 0
            while at < patches.text.shape[1]:
                end = min(at + sizes[turn % len(sizes)], patches.text.shape[1])
                hidden, state = lm.prefill(Patches(patches.text[:, at:end], patches.codes[:, at:end]), state)
                assert torch.allclose(hidden, whole[:, end - 1], atol=1e-4)
                at, turn = end, turn + 1
        corpus = turns.open_corpus(folder)
        pcm, state = torch.from_numpy(corpus.pcm(corpus.records[1]))[None], codec.init_encoder_state(1)
        pieces = []
        for piece in pcm.split(3 * 960, dim=1):
            codes, state = codec.encode(piece, state)
            pieces.append(codes[0])
    streamed = torch.cat(pieces)
    assert (streamed == data.codes(data.records[1])).float().mean() > 0.9  # near ties may fall either way in bfloat16


def test_model_trains_on_the_folder(folder, codec, tmp_path):
    from speechgpt2 import config

    codec.save_pretrained(tmp_path / "codec")
    config.dump(TINY, tmp_path / "lm.yaml")
    arguments = ["train", "lm", str(tmp_path / "lm.yaml"), "--data", str(folder), "--codec", str(tmp_path / "codec")]
    result = CliRunner().invoke(app, [*arguments, "-o", str(tmp_path / "run"), "--device", "cpu"])
    assert result.exit_code == 0, result.output
    losses = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert losses[-1]["step"] == 6 and losses[-1]["text"] > 0 and losses[-1]["codes"] > 0
    assert SpeechLM.from_pretrained(tmp_path / "run").config.prompt.chain_of_modality
