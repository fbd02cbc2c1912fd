"""From files to clips: decoding, cutting, whole runs over folders with everything that can be wrong in them."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from typer.testing import CliRunner

from speechgpt2.cli import app
from speechgpt2.data import steps as presets
from speechgpt2.data.audit import faults
from speechgpt2.data.clean.decode import Decode, DecodeConfig
from speechgpt2.data.clean.segment import Segment, SegmentConfig
from speechgpt2.data.clean.speakers import (
    NameSpeakers,
    SpeakerChanges,
    SpeakerChangesConfig,
    SpeakerEmbedding,
    SpeakerEmbeddingConfig,
    SpeakersConfig,
)
from speechgpt2.data.pipeline import shar
from speechgpt2.data.pipeline.clip_audio import ClipAudio, Workspace
from speechgpt2.data.pipeline.stage import Rejected
from speechgpt2.data.record import AudioInfo, Clip, ClipText, DialogueEvent, Label
from speechgpt2.dsp.activity import active_spans, energy_activity, silero_activity
from speechgpt2.errors import UserError
from speechgpt2.tts.utterance import Alignment, Phone, Voice, Word
from speechgpt2.tts.voices import speak
from speechgpt2.types import SAMPLE_RATE
from tests import needs
from tests.data.clean.test_measures import voice


@pytest.fixture
def workspace(tmp_path) -> Workspace:
    (tmp_path / "in").mkdir()
    return Workspace(tmp_path / "in", tmp_path / "work")


def decode(workspace: Workspace, name: str, **settings):
    clip = Clip("a", audio=AudioInfo(path=name))
    return Decode(DecodeConfig(**settings))(clip, ClipAudio(clip, workspace))


def recording(workspace: Workspace, pcm: np.ndarray, text: str = "") -> tuple[Clip, ClipAudio]:
    name, samples = workspace.add_recording([pcm.astype(np.float32)])
    info = AudioInfo("a.wav", SAMPLE_RATE, 1, 0.0, samples / SAMPLE_RATE, "WAV", name)
    clip = Clip("a", "whole", audio=info, text=ClipText(text))
    return clip, ClipAudio(clip, workspace)


@pytest.mark.parametrize(
    ("name", "rate"), [("a.wav", 48_000), ("a.flac", 24_000), ("a.ogg", 16_000), ("a.mp3", 44_100)]
)
def test_formats_that_libsndfile_reads(workspace, name, rate):
    sine = 0.5 * np.sin(2 * np.pi * 440 * np.arange(rate) / rate)
    soundfile.write(workspace.sources / name, np.stack([sine, sine], 1), rate)
    clip = decode(workspace, name)
    assert clip.audio.duration == pytest.approx(1.0, abs=0.06) and clip.audio.sample_rate == rate
    pcm = ClipAudio(clip, workspace).pcm[6000:18_000]
    assert np.abs(np.fft.rfft(pcm)).argmax() == pytest.approx(220, abs=1)  # 440 Hz in half a second
    assert np.abs(pcm).max() == pytest.approx(0.5, abs=0.03)


@needs.tool("ffmpeg")
@pytest.mark.parametrize("name", ["a.m4a", "a.webm", "a.aac"])
def test_formats_that_ffmpeg_reads(workspace, name):
    soundfile.write(workspace.sources / "a.wav", 0.5 * np.sin(np.arange(48_000) * 0.05), 48_000)
    command = ["ffmpeg", "-v", "error", "-i", workspace.sources / "a.wav", workspace.sources / name]
    subprocess.run(command, check=True)
    assert decode(workspace, name).audio.duration == pytest.approx(1.0, abs=0.1)
    whole = (workspace.sources / name).read_bytes()
    (workspace.sources / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(Rejected) as rejection:
        decode(workspace, name)
    assert rejection.value.reason in ("corrupt", "not-audio")


def test_two_sides_of_a_call(workspace):
    soundfile.write(workspace.sources / "a.wav", np.stack([voice(100), voice(200)], 1), SAMPLE_RATE)
    sides = decode(workspace, "a.wav", channels="split")
    assert [side.id for side in sides] == ["a-c0", "a-c1"] and sides[0].audio.pcm_hash != sides[1].audio.pcm_hash
    soundfile.write(workspace.sources / "b.wav", np.stack([voice(100), 0 * voice(100)], 1), SAMPLE_RATE)
    loud, silent = decode(workspace, "b.wav", channels="split")  # a side that says nothing does not spoil the other
    assert loud.audio.pcm_hash == sides[0].audio.pcm_hash and silent.audio.duration == loud.audio.duration


def bad_files(folder: Path) -> dict[str, str]:
    """Writes them; name -> reason."""
    soundfile.write(folder / "silent.wav", np.zeros(SAMPLE_RATE), SAMPLE_RATE)
    soundfile.write(folder / "nan.wav", np.full(1000, np.nan, np.float32), SAMPLE_RATE, subtype="FLOAT")
    soundfile.write(folder / "rate.wav", np.ones(1000) * 0.1, 1)
    soundfile.write(folder / "bomb.flac", np.zeros(1200 * 4000, np.int16), 4000)  # 20 min in 1 kB
    soundfile.write(folder / "full.flac", np.random.default_rng(0).uniform(-1, 1, SAMPLE_RATE), SAMPLE_RATE)
    whole = (folder / "full.flac").read_bytes()
    (folder / "cut.flac").write_bytes(whole[: len(whole) // 2])
    (folder / "full.flac").unlink()
    (folder / "junk.mp3").write_bytes(b"\x00" * 64 + b"no sound")
    (folder / "empty.wav").write_bytes(b"")
    (folder / "list.m3u8").write_text("#EXTM3U\nfile:///etc/passwd\n")
    reasons = {"silent.wav": "silent", "nan.wav": "corrupt", "rate.wav": "corrupt", "bomb.flac": "endless"}
    return {
        **reasons,
        "cut.flac": "corrupt",
        "junk.mp3": "not-audio",
        "empty.wav": "not-audio",
        "list.m3u8": "not-audio",
    }


def test_bad_files_are_rejected_with_a_reason(workspace):
    for name, reason in bad_files(workspace.sources).items():
        with pytest.raises(Rejected) as rejection:
            decode(workspace, name, max_hours=0.2)
        assert rejection.value.reason == reason, name
    assert not list(workspace.folder.rglob(".*")), "something half-written is left"


def test_where_speech_is(workspace):
    pause = np.random.default_rng(0).standard_normal(2 * SAMPLE_RATE) * 1e-3
    pcm = np.concatenate([pause, voice(120, 3.0), pause, voice(150, 2.0), pause])
    found = active_spans(energy_activity(iter([pcm.astype(np.float32)])), 0.6, 0.3)
    assert np.allclose(found, [(2.0, 5.0), (7.0, 9.0)], atol=0.25)


@needs.extra("server", "onnxruntime")
@needs.voice(Voice("espeak", "m3", "en", "en-us"))
def test_silero_detects_speech_and_not_a_siren():
    said = speak("Good morning, how are you today?", Voice("espeak", "m3", "en", "en-us")).pcm
    siren = 0.3 * np.sin(2 * np.pi * np.cumsum(600 + 300 * np.sin(np.arange(2 * SAMPLE_RATE) / 9000)) / SAMPLE_RATE)
    pcm = np.concatenate([siren, np.zeros(SAMPLE_RATE), said, np.zeros(SAMPLE_RATE)]).astype(np.float32)
    activity = silero_activity(iter(np.array_split(pcm, 7)))
    assert len(activity) == pytest.approx(len(pcm) / 240, abs=8)
    [(start, end)] = active_spans(activity, 0.5, 0.3)
    assert start == pytest.approx(3.0, abs=0.25) and end == pytest.approx(3 + len(said) / SAMPLE_RATE, abs=0.4)


def test_recording_is_cut_into_clips(workspace):
    pause = np.zeros(2 * SAMPLE_RATE)
    clip, clip_audio = recording(workspace, np.concatenate([pause, voice(120, 3.0), pause, voice(150, 2.0), pause]))
    pieces = Segment(SegmentConfig(gap=0.7))(clip, clip_audio)
    assert len(pieces) == 2 and all(piece.parent_id == "a" for piece in pieces)
    assert [piece.audio.start for piece in pieces] == pytest.approx([1.9, 6.9], abs=0.25)
    [whole] = Segment(SegmentConfig())(replace(clip, text=ClipText("two sentences")), clip_audio)
    assert whole.text.raw == "two sentences" and whole.audio.duration > 7


def test_known_times_move_with_the_start_of_a_clip(workspace):
    pause = np.zeros(SAMPLE_RATE)
    clip, clip_audio = recording(workspace, np.concatenate([pause, voice(120, 2.0), pause]), "one two")
    words, phones = (Word("one", 1.02, 1.9), Word("two", 1.9, 3.2)), (Phone("w", 1.02, 1.1), Phone("a3", 1.1, 1.3))
    event = DialogueEvent("filler", 1.9, 2.5, "a")
    known = replace(clip, align=Alignment(words, phones, (Phone("3", 1.1, 1.3),)), events=(event,))
    [made] = Segment(SegmentConfig())(known, clip_audio)
    start = made.audio.start
    assert start > 0.5  # something was cut off
    moved = [(word.text, word.start + start, word.end + start) for word in made.align.words]
    assert moved == [
        (w.text, pytest.approx(w.start), pytest.approx(w.end)) for w in words
    ]  # the last, which is soft, too
    assert made.align.phones[1].start + start == pytest.approx(1.1) == made.align.tones[0].start + start
    assert made.events[0].start + start == pytest.approx(1.9) and made.events[0].end + start == pytest.approx(2.5)


def test_known_times_go_to_the_clip_that_holds_them(workspace):
    pause = np.zeros(2 * SAMPLE_RATE)
    clip, clip_audio = recording(workspace, np.concatenate([pause, voice(120, 3.0), pause, voice(150, 2.0), pause]))
    known = replace(clip, align=Alignment((Word("one", 2.5, 3.0), Word("two", 7.5, 8.0))))
    pieces = Segment(SegmentConfig(gap=0.7))(known, clip_audio)
    assert [[w.text for w in piece.align.words] for piece in pieces] == [["one"], ["two"]]
    starts = [piece.align.words[0].start + piece.audio.start for piece in pieces]
    assert starts == pytest.approx([2.5, 7.5])


def test_lines_of_a_transcript_go_to_the_clips_that_hold_them(workspace):
    pause = np.zeros(2 * SAMPLE_RATE)
    parts = [part for number in range(3) for part in (voice(120, 3.0, number), pause)]
    clip, clip_audio = recording(workspace, np.concatenate(parts))
    lines = [Word("One.", 0.0, 1.5), Word("Two.", 1.6, 3.0), Word("Three.", 5.1, 8.2), Word("Four.", 10.1, 13.0)]
    known = replace(clip, text=ClipText("One. Two. Three. Four.", lines=tuple(lines)), labels_from={"text": Label("x")})
    pieces = Segment(SegmentConfig(gap=1.5, longest=12.0))(known, clip_audio)
    assert [piece.text.raw for piece in pieces] == ["One. Two.", "Three.", "Four."]
    assert pieces[2].text.lines[0].start + pieces[2].audio.start == pytest.approx(10.1)
    torn = replace(known, text=ClipText("One. Two to four.", lines=(lines[0], Word("Two to four.", 1.6, 13.0))))
    pieces = Segment(SegmentConfig(gap=1.5, longest=12.0))(torn, clip_audio)
    assert not any(piece.text.raw or piece.text.lines or piece.labels_from for piece in pieces)


def test_long_speech_is_cut_in_its_pauses(workspace):
    parts = [np.concatenate([voice(120, 2.5, seed), np.zeros(SAMPLE_RATE // 3)]) for seed in range(8)]
    clip, clip_audio = recording(workspace, np.concatenate(parts))
    pieces = Segment(SegmentConfig(gap=2.0, longest=8.0))(clip, clip_audio)
    assert len(pieces) >= 3 and max(piece.audio.duration for piece in pieces) <= 8.0
    clip, clip_audio = recording(workspace, 0.3 * np.sin(np.arange(20 * SAMPLE_RATE) * 0.1))  # no breath in it
    pieces = Segment(SegmentConfig(longest=8.0))(clip, clip_audio)
    assert max(piece.audio.duration for piece in pieces) <= 8.0


def test_silence_and_speech(workspace):
    with pytest.raises(Rejected, match="no-speech"):
        Segment(SegmentConfig())(*recording(workspace, np.full(SAMPLE_RATE, 1e-5)))


def test_change_of_speaker_is_cut_and_named(workspace):
    one, two = voice(110, 5.0, 1), faults.narrow(voice(230, 5.0, 2), 3000)
    clip, clip_audio = recording(workspace, np.concatenate([one, two, one]))
    pieces = SpeakerChanges(SpeakerChangesConfig())(clip, clip_audio)
    assert len(pieces) == 3
    assert [piece.audio.start for piece in pieces] == pytest.approx([0, 5, 10], abs=0.5)
    printed = [SpeakerEmbedding(SpeakerEmbeddingConfig())(piece, ClipAudio(piece, workspace)) for piece in pieces]
    named = [clip.speakers[0].id for clip in NameSpeakers(SpeakersConfig())(lambda: iter(printed))]
    assert named[0] == named[2] != named[1]


@pytest.mark.parametrize("name", presets.preset_names())
def test_every_preset_can_be_built(name):
    steps = presets.load(name).build()
    assert steps[0].name == "decode" and steps[-1].name in ("speakers", "duplicates")


def test_invalid_presets_are_user_errors(tmp_path):
    with pytest.raises(UserError, match="presets are asr, dialogue, emilia, tts-strict"):
        presets.load("emilio")
    (tmp_path / "mine.yaml").write_text("steps: [{kind: loudness}]")
    with pytest.raises(UserError, match="first step"):
        presets.load(str(tmp_path / "mine.yaml"))
    with pytest.raises(UserError, match="no rule has the reason 'noise'; there are"):
        presets.load("asr").with_thresholds({"noise": 1.0})


def test_from_the_command_line(tmp_path):
    needs.module("pyarrow", "data")
    folder, out = tmp_path / "in", str(tmp_path / "out")
    folder.mkdir()
    bad = bad_files(folder)
    rng = np.random.default_rng(0)
    for number in range(3):
        soundfile.write(folder / f"ok{number}.wav", voice(110 + 40 * number, 4.0, number), SAMPLE_RATE)
    soundfile.write(folder / "noisy.wav", faults.noisy(voice(140, 4.0, 8), 5, 0.5, rng), SAMPLE_RATE)
    soundfile.write(folder / "twice.wav", voice(110, 4.0, 0) * 0.5, SAMPLE_RATE)
    run = CliRunner()
    result = run.invoke(app, ["data", "clean", str(folder), "-o", out, "--preset", "emilia", "--workers", "1"])
    assert result.exit_code == 0 and "kept 3 clips" in result.output
    rejected = [json.loads(line) for line in (tmp_path / "out" / "rejected.jsonl").open()]
    reasons = {line["audio"]["path"]: line["decisions"][-1]["reason"] for line in rejected}
    assert {**bad, "bomb.flac": "silent", "twice.wav": "duplicate"}.items() <= reasons.items()
    assert any(
        d["reason"] == "noisy" and not d["keep"] for line in rejected for d in line["decisions"] if "reason" in d
    )
    again = run.invoke(app, ["data", "clean", str(folder), "-o", out, "--preset", "emilia", "--workers", "1"])
    assert "nothing to do" in again.output
    moved = run.invoke(app, ["data", "rethreshold", out, "--set", "noisy=-10"])
    assert moved.exit_code == 0 and "kept 4 clips" in moved.output and "pending" not in moved.output
    assert len(list(shar.read(tmp_path / "out" / "shar"))) == 4
    assert run.invoke(app, ["data", "report", out]).exit_code == 0
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("<audio") >= 5 and "duplicate" in page and "http" not in page.replace("http://www.w3.org", "")


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["clean", "absent", "-o", "out"], "no such folder or manifest"),
        (["clean", ".", "-o", "out"], "is inside"),
        (["rethreshold", ".", "--set", "noisy=1"], "not a run of sg2 data clean"),
        (["report", "."], "not a run of sg2 data clean"),
    ],
)
def test_invalid_commands_are_user_errors(tmp_path, monkeypatch, words, complaint):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["data", *words])
    assert result.exit_code == 2 and complaint in result.stderr and not (tmp_path / "out").exists()
