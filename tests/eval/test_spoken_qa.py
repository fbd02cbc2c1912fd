"""Spoken question answering, on a model that knows every answer and on one that says nothing."""

from __future__ import annotations

import functools
import json

import numpy as np
import pytest
import torch

from speechgpt2.asr import Transcription
from speechgpt2.corpus.held_out import held_out_questions
from speechgpt2.errors import UserError
from speechgpt2.eval import judges, spoken_qa
from speechgpt2.eval.judges import Judges
from speechgpt2.eval.speech_sets import SpeechClip
from speechgpt2.eval.transcripts import transcript_rows
from speechgpt2.tts import voices
from speechgpt2.tts.voices import ASSISTANT_VOICES, HELD_OUT_VOICES, Voice
from speechgpt2.types import UNFINISHED, AudioDelta, ReplyDone, Speech, TextDelta, Transcript
from tests import needs

TRIALS = 4
speak = functools.cache(voices.speak)  # an engine may say the same twice in different ways


def trimmed(pcm):
    """The samples before the silence at the end, as bytes."""
    return pcm[: np.flatnonzero(pcm)[-1] + 1].tobytes()


class PlainCodec(torch.nn.Module):
    """Waveform in, waveform out, as "codes"."""

    device = torch.device("cpu")

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
        self.by_audio = {id(speak(t.exchange.question, t.voice).pcm): t.exchange for t in trials}
        self.trials, self.said = trials, {}

    def chat(self, turns, mode, stream):
        assert stream
        segment = turns[-1].segments[0]
        spoken = isinstance(segment, Speech)
        exchange = self.by_audio.get(id(segment.pcm)) if spoken else self.by_question[segment.text]
        if exchange is None:  # no question
            return
        reply = "我不知道。" if exchange is list(self.by_question.values())[1] else exchange.reply
        if spoken:
            yield Transcript(exchange.question)
        yield TextDelta(reply[:3])
        yield TextDelta(reply[3:])
        if mode.endswith("s"):
            pcm = speak(reply, ASSISTANT_VOICES[exchange.lang]).pcm
            self.said[trimmed(pcm)] = reply
            yield AudioDelta(pcm[:2880])
            yield AudioDelta(pcm[2880:])
        yield ReplyDone("stop")

    def transcribe(self, pcm):
        if trimmed(pcm) in self.said:
            return self.said[trimmed(pcm)]
        known = {speak(t.exchange.question, t.voice).pcm.tobytes(): t.exchange.question for t in self.trials}
        samples = trimmed(pcm)
        whole, text = next((whole, text) for whole, text in known.items() if whole.startswith(samples))
        return text if len(samples) > 0.9 * len(whole) else text[:2] + UNFINISHED


class Mute:
    codec = PlainCodec()

    def transcribe(self, pcm):
        raise UserError("this model cannot transcribe speech")

    def chat(self, turns, mode, stream):
        yield ReplyDone("length")


@pytest.fixture
def trials(monkeypatch):
    monkeypatch.setattr(voices, "speak", speak)
    return held_out_questions(TRIALS)


VOICES = needs.voice(*(trial.voice for trial in held_out_questions(TRIALS)), *ASSISTANT_VOICES.values())


class Listener:
    """An independent judge that knows the oracle's voice; everything else is "hm"."""

    name, languages, independent = "listener", frozenset({"en", "zh"}), True

    def __init__(self, oracle):
        self.oracle = oracle

    def transcribe(self, pcm, language):
        return Transcription(self.oracle.said.get(trimmed(pcm), "hm"), language)


@pytest.fixture
def panel(monkeypatch):
    """Judges: a listener to the oracle that is put in `panel.oracle`, without the slow ones."""
    listener = Listener(None)
    monkeypatch.setattr(judges, "load", lambda *_: Judges(listener, None, None, ()))
    monkeypatch.setattr(spoken_qa.rejection, "draw_inputs", lambda seed: {"silence": [np.zeros(2400, np.float32)]})
    return listener


@VOICES
@needs.extra("eval", "pocketsphinx")
@needs.extra("asr", "num2words", "cn2an", "opencc")
def test_oracle_is_always_right(trials, panel, tmp_path):
    panel.oracle = oracle = Oracle(trials)
    tables = spoken_qa.main(oracle, n=TRIALS, out=tmp_path)
    everything = {(row.mode, row.lang): row for row in tables["Answers"] if row.skill == "all"}
    assert everything["spoken → spoken", "en"].right == 1
    assert everything["spoken → spoken", "zh"].right == everything["typed → typed", "zh"].right == 0.5
    assert everything["spoken → spoken", "zh"].transcript_errors == 0
    assert np.isnan(everything["typed → spoken", "en"].transcript_errors)

    speech = {(row.lang, row.judge.split()[0], row.voice): row for row in tables["Speech"]}
    model, taught = speech["en", "pocketsphinx", "the model"], speech["en", "pocketsphinx", "teacher"]
    assert model.exact == taught.exact == speech["en", "pocketsphinx", "teacher through the codec"].exact == 1
    assert model.right == 1 and model.n == 2 and model.error_rate == 0
    circular = speech["zh", "the", "the model"]
    assert circular.exact == 1 and circular.right == 0.5 and circular.error_name == "CER"
    assert speech["en", "listener", "the model"].error_rate == 0
    assert tables["Speech"][0].judge == "listener" and tables["Voice"] == []

    endings = {(row.lang, row.question): row.complete for row in tables["End of turn"]}
    assert endings["en", "complete"] == endings["zh", "complete"] == 1
    assert endings["en", "broken off"] == endings["zh", "broken off"] == 0

    assert [(row.kind, row.n, row.rejected) for row in tables["Rejection"]] == [("silence", 1, 1.0)]
    spoken = tables["Time"][0]
    assert spoken.n == TRIALS and 0 < spoken.first_audio <= spoken.first_audio_p95
    content = json.loads((tmp_path / "spoken_qa.json").read_text())
    assert len(content["answers"]) == 3 * TRIALS and content["tables"]["Speech"] and content["asr"] == "listener"
    assert "| spoken → spoken | classic | en | all | 2 | 1.00 | 0.000 |" in (tmp_path / "spoken_qa.md").read_text()


@VOICES
@needs.extra("asr", "num2words", "cn2an", "opencc")
def test_model_without_output_is_wrong_and_no_error(trials, panel):
    tables = spoken_qa.main(Mute(), n=TRIALS, typed=False)
    assert all(row.right == 0 and np.isnan(row.transcript_errors) for row in tables["Answers"])
    assert tables["Speech"] == tables["Time"] == [] and "End of turn" not in tables


@needs.extra("asr", "num2words", "cn2an", "opencc")
def test_recordings_are_transcribed_by_model_and_judge():
    class Model:
        def transcribe(self, pcm):
            return "three" if len(pcm) > 100 else "eight…"

    class Judge(Listener):
        def transcribe(self, pcm, language):
            return Transcription("8", "en")

    clips = [SpeechClip(np.ones(n, np.float32), "eight", "en", "a") for n in (50, 200)]
    unknown = [SpeechClip(np.ones(50, np.float32), "", "", "")]
    panel = Judges(Judge(None), None, None, ())
    model, judge, order = transcript_rows(Model(), {"digits": clips, "orders": unknown}, panel)
    assert (model.recogniser, model.error_rate, model.exact) == ("the model", 0.5, 0.5)
    assert (judge.recogniser, judge.error_rate, judge.exact) == ("listener", 0.0, 1.0)
    assert (order.test_set, order.recogniser, order.error_rate) == ("orders", "the model", 0.0)
    assert len(transcript_rows(Model(), {"digits": clips, "orders": unknown}, Judges())) == 1


def test_other_voices_ask_the_same_questions():
    trials = held_out_questions(TRIALS)
    assert spoken_qa.trials_by(HELD_OUT_VOICES, trials, 0) == list(trials)
    other = spoken_qa.trials_by({lang: [Voice("kokoro", "someone", lang)] for lang in ("en", "zh")}, trials, 0)
    assert [t.exchange for t in other] == [t.exchange for t in trials]
    assert {t.voice.speaker for t in other} == {"kokoro/someone"}
