"""The dialogue's judgement, on a model that knows every answer and on one that says nothing."""

from __future__ import annotations

import functools
import json

import numpy as np
import pytest

from speechgpt2.corpus.held_out import held_out_questions
from speechgpt2.errors import UserError
from speechgpt2.eval import dialogue
from speechgpt2.tts import voices
from speechgpt2.tts.voices import ASSISTANT_VOICES
from speechgpt2.types import UNFINISHED, AudioDelta, ReplyDone, Speech, TextDelta, Transcript
from tests import needs

TRIALS = 4
speak = functools.cache(voices.speak)  # an engine may say the same twice in different ways


class PlainCodec:
    """Waveform in, waveform out, as "codes"."""

    class config:
        delay = 0

    def encode(self, pcm):
        return pcm[:, :, None]

    def decode(self, codes):
        return codes[:, :, 0]


class Oracle:
    """Knows the questions by their sound or wording, answers in the teacher's voice, one trial in Mandarin wrongly."""

    codec = PlainCodec()

    def __init__(self, trials):
        self.by_question = {t.exchange.question: t.exchange for t in trials}
        self.by_sound = {id(speak(t.exchange.question, t.voice).pcm): t.exchange for t in trials}
        self.trials, self.said = trials, {}

    def chat(self, turns, mode, stream):
        assert stream
        segment = turns[-1].segments[0]
        spoken = isinstance(segment, Speech)
        exchange = self.by_sound[id(segment.pcm)] if spoken else self.by_question[segment.text]
        reply = "我不知道。" if exchange is list(self.by_question.values())[1] else exchange.reply
        if spoken:
            yield Transcript(exchange.question)
        yield TextDelta(reply[:3])
        yield TextDelta(reply[3:])
        if mode.endswith("s"):
            pcm = speak(reply, ASSISTANT_VOICES[exchange.lang]).pcm
            self.said[pcm.tobytes()] = reply
            yield AudioDelta(pcm[:2880])
            yield AudioDelta(pcm[2880:])
        yield ReplyDone("stop")

    def transcribe(self, pcm):
        if pcm.tobytes() in self.said:
            return self.said[pcm.tobytes()]
        known = {speak(t.exchange.question, t.voice).pcm.tobytes(): t.exchange.question for t in self.trials}
        heard = pcm[: np.flatnonzero(pcm)[-1] + 1].tobytes()
        sound, text = next((sound, text) for sound, text in known.items() if sound.startswith(heard))
        return text if len(heard) > 0.9 * len(sound) else text[:2] + UNFINISHED


class Mute:
    codec = PlainCodec()

    def transcribe(self, pcm):
        raise UserError("this model does not tell what it heard")

    def chat(self, turns, mode, stream):
        yield ReplyDone("length")


@pytest.fixture
def trials(monkeypatch):
    monkeypatch.setattr(voices, "speak", speak)
    return held_out_questions(TRIALS)


VOICES = needs.voice(*(trial.voice for trial in held_out_questions(TRIALS)), *ASSISTANT_VOICES.values())


@VOICES
@needs.extra("eval", "pocketsphinx")
def test_an_oracle_is_right(trials, tmp_path):
    tables = dialogue.main(Oracle(trials), n=TRIALS, out=tmp_path)
    everything = {(row.mode, row.lang): row for row in tables["Answers"] if row.skill == "all"}
    assert everything["spoken → spoken", "en"].right == 1
    assert everything["spoken → spoken", "zh"].right == everything["typed → typed", "zh"].right == 0.5
    assert everything["spoken → spoken", "zh"].transcript_accuracy == 1
    assert np.isnan(everything["typed → spoken", "en"].transcript_accuracy)

    speech = {(row.lang, row.judge.split()[0], row.voice): row for row in tables["Speech"]}
    heard, taught = speech["en", "pocketsphinx", "the model"], speech["en", "pocketsphinx", "teacher"]
    assert heard.exact == taught.exact == speech["en", "pocketsphinx", "teacher through the codec"].exact == 1
    assert heard.right == 1 and heard.n == 2
    circular = speech["zh", "the", "the model"]
    assert circular.exact == 1 and circular.right == 0.5

    endings = {(row.lang, row.question): row.whole for row in tables["Endings"]}
    assert endings["en", "whole"] == endings["zh", "whole"] == 1
    assert endings["en", "broken off"] == endings["zh", "broken off"] == 0

    spoken = tables["Time"][0]
    assert spoken.n == TRIALS and 0 < spoken.first_audio <= spoken.first_audio_p95
    content = json.loads((tmp_path / "dialogue.json").read_text())
    assert len(content["answers"]) == 3 * TRIALS and content["tables"]["Speech"]
    assert "| spoken → spoken | en | all | 2 | 1.00 | 1.000 |" in (tmp_path / "dialogue.md").read_text()


@VOICES
def test_a_mute_model_is_wrong_and_not_an_error(trials):
    tables = dialogue.main(Mute(), n=TRIALS, typed=False)
    assert all(row.right == 0 and np.isnan(row.transcript_accuracy) for row in tables["Answers"])
    assert tables["Speech"] == tables["Time"] == [] and "Endings" not in tables
