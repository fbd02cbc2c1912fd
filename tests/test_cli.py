"""The command line on a tiny random model: its output, its help and its errors."""

import contextlib
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import typer
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from speechgpt2 import audio, long_form
from speechgpt2.chat import Conversation, SpeechGPT
from speechgpt2.cli import COMMANDS, GROUPS, app, audio_devices
from speechgpt2.cli import transcribe as transcribe_command
from speechgpt2.codec import config as presets
from speechgpt2.codec.config import CodecConfig, HarmonicConfig, MelConfig
from speechgpt2.codec.model import Codec
from speechgpt2.errors import SpeechWarning
from speechgpt2.lm.prompt import Prompt
from speechgpt2.long_form import TranscriptSegment
from speechgpt2.nn.convnext import ConvNeXtConfig
from speechgpt2.nn.transformer import TransformerConfig
from speechgpt2.types import FRAME_SIZE, SAMPLE_RATE, AudioDelta, ReplyDone, TextDelta, Transcript
from tests import command_line, needs
from tests.command_line import sg2
from tests.lm.tiny import tiny_lm

ROOT = Path(__file__).parent.parent
MODEL = ["--model", "tiny", "--device", "cpu"]
SHORT = ["--max-patches", "12"]  # random weights rarely end an answer
CODEC = ["--codec", "tiny", "--device", "cpu"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A folder with a codec and a language model of random weights."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    torch.manual_seed(0)
    transformer = TransformerConfig(16, 2, 1, 32, context=9)
    convnext = ConvNeXtConfig((1,), (16,))
    config = CodecConfig(
        MelConfig(20),
        convnext,
        transformer,
        presets.QuantizerConfig(),
        transformer,
        transformer,
        convnext,
        HarmonicConfig(),
    )
    Codec(config).save_pretrained(folder)
    tiny_lm(chain_of_modality=True).save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def workdir(tiny, tmp_path, monkeypatch):
    """Every test runs in its own folder, with the model as `tiny` and one second of audio as `in.wav`."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny").symlink_to(tiny)
    tone = 0.3 * np.sin(2 * np.pi * 220 * np.arange(SAMPLE_RATE) / SAMPLE_RATE)
    audio.save("in.wav", tone)
    return tmp_path


def fails(*arguments):
    """Run a command that must exit with 2, one line of error and no new file; return the line."""
    before = set(Path().rglob("*"))
    line = command_line.fails(*arguments)
    assert set(Path().rglob("*")) == before
    return line


# successful commands


def test_encode_and_decode():
    assert "25 frames of 3 codes" in sg2("encode", "in.wav", "-o", "codes.npy", *CODEC).stdout
    codes = np.load("codes.npy")
    assert codes.dtype == np.int16 and codes.shape == (25, 3)
    codec = Codec.from_pretrained("tiny")
    pcm = torch.from_numpy(audio.load("in.wav"))[None]
    assert np.array_equal(codes, codec.encode(pcm)[0].numpy())

    sg2("decode", "codes.npy", "-o", "out.flac", *CODEC)
    decoded = codec.decode(codec.encode(pcm))[0].numpy()
    assert np.abs(audio.load("out.flac") - decoded.clip(-1, 1)).max() < 1e-4


def test_decode_compensates_the_delay():
    question = Path(__file__).resolve().parents[1] / "examples" / "question-1.wav"
    sg2("encode", question, "-o", "codes.npy")
    sg2("decode", "codes.npy", "-o", "out.wav")
    original, decoded = audio.load(question), audio.load("out.wav")
    assert 0 <= len(decoded) - len(original) < 960
    original, decoded = (
        np.abs(pcm[: len(original) // 240 * 240]).reshape(-1, 240).mean(axis=1) for pcm in (original, decoded)
    )
    fit = [np.corrcoef(original[10:-10], decoded[10 + lag : len(decoded) - 10 + lag])[0, 1] for lag in range(-8, 9)]
    assert abs(int(np.argmax(fit)) - 8) <= 1 and max(fit) > 0.7


def test_encode_in_chunks_equals_encode_at_once():
    """The recording spans several chunks and ends within a frame."""
    noise = np.random.default_rng(0).normal(size=21 * SAMPLE_RATE + 700).astype(np.float32) * 0.1
    audio.save("long.wav", noise)
    sg2("encode", "long.wav", "-o", "codes.npy", *CODEC)
    whole = Codec.from_pretrained("tiny").encode(torch.from_numpy(audio.load("long.wav"))[None])[0]
    assert np.array_equal(np.load("codes.npy"), whole.numpy())


def test_chat_prints_transcripts_and_saves_answers(monkeypatch):
    def reply(self, user_spoke):
        if user_spoke:
            yield Transcript("what I heard")
        yield from (
            TextDelta(" What"),
            TextDelta(" I say"),
            AudioDelta(np.full(2400, 0.25, np.float32)),
            ReplyDone("stop"),
        )

    monkeypatch.setattr(Conversation, "reply", reply)
    result = sg2("chat", "in.wav", "--text", "Hello", "--mode", "s2s", "-o", "answer.wav", *MODEL)
    turns = "you: what I heard\nsg2: What I say\nyou: Hello\nsg2: What I say\n"
    assert result.stdout == turns + "answer.wav: 0.70 s\n" and not result.stderr
    said, pause = np.full(2400, 0.25), np.zeros(SAMPLE_RATE // 2)
    assert np.array_equal(audio.load("answer.wav"), np.concatenate([said, pause, said]))


class FakeSoundDevice(types.ModuleType):
    """Records 0.1 s at a time and keeps what it played."""

    def __init__(self):
        super().__init__("sounddevice")
        self.played = []

    def query_devices(self):
        return []

    def InputStream(self, callback, **settings):
        self.record = lambda: callback(np.full((2400, 1), 0.1, np.float32), 2400, None, None)
        return contextlib.nullcontext()

    def OutputStream(self, **settings):
        assert settings["samplerate"] == SAMPLE_RATE and settings["channels"] == 1
        nothing = lambda: None  # noqa: E731
        return types.SimpleNamespace(start=nothing, stop=nothing, close=nothing, write=self.played.append)


def test_chat_with_microphone_and_playback(monkeypatch):
    """Two questions: Enter starts and stops each, the end of input ends the conversation."""
    device, recorded, enters = FakeSoundDevice(), [], iter([True] * 4 + [False])

    def prompt(text):
        device.record()
        return next(enters)

    def ask(self, turn, stream):
        recorded.append(turn.segments[0].pcm)
        return iter([AudioDelta(np.full(960, 0.5, np.float32)), ReplyDone("stop")])

    monkeypatch.setitem(sys.modules, "sounddevice", device)
    monkeypatch.setattr(audio_devices, "_wait_for_enter", prompt)
    monkeypatch.setattr(Conversation, "ask", ask)
    sg2("chat", "--mic", "--play", *MODEL)
    assert [len(pcm) for pcm in recorded] == [2400, 2400]
    assert [block.shape for block in device.played] == [(960, 1), (960, 1)]


def test_microphone_without_its_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    assert "pip install 'speechgpt2[mic]'" in fails("chat", "--mic", *MODEL)


def test_chat_reports_a_missing_answer(monkeypatch):
    monkeypatch.setattr(Conversation, "reply", lambda self, user_spoke: iter([ReplyDone("stop")]))
    assert "gave no audio" in fails("chat", "in.wav", "-o", "answer.wav", *MODEL)


def test_seed_changes_the_audio_but_not_the_text():
    first, other = (sg2("chat", "--text", "Hello", *MODEL, *SHORT, "--seed", seed).stdout for seed in (3, 4))
    assert first == other
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        sg2("say", "Hello", "-o", f"{name}.wav", *MODEL, *SHORT, "--seed", seed)
    first, again, other = (Path(f"{name}.wav").read_bytes() for name in "abc")
    assert first == again != other


def test_say():
    sg2("say", "Hello", "-o", "said.wav", *MODEL, *SHORT)
    assert soundfile.info("said.wav").frames == 12 * 3 * FRAME_SIZE


def test_say_speaks_every_sentence(monkeypatch):
    texts, tts_prompt = [], Prompt.tts_prompt

    def recorded(self, text, *voice):
        texts.append(text)
        return tts_prompt(self, text, *voice)

    monkeypatch.setattr(Prompt, "tts_prompt", recorded)
    result = sg2("say", "Hello there. " * 3 + "...", "-o", "said.wav", *MODEL, "--max-patches", "2")
    assert texts == ["Hello there."] * 3
    assert soundfile.info("said.wav").frames == 3 * 2 * 3 * FRAME_SIZE
    assert "warning: the model left words out in 3 of 3 sentences, first in: Hello there." in result.stderr
    assert "no letters" in fails("say", " ... ", "-o", "said2.wav", *MODEL)


def test_speech_that_does_not_end_has_a_warning(monkeypatch):
    monkeypatch.setattr(long_form, "MOST_PAUSES", 0.5)  # so that short speech is far too long
    fault = "the speech is far longer than its text can need"
    result = sg2("say", "b", "-o", "said.wav", *MODEL, *SHORT)
    assert f"warning: {fault} in 1 of 1 sentences, first in: b\n" in result.stderr
    with pytest.warns(SpeechWarning, match=f"{fault}: b"):
        SpeechGPT.from_pretrained("tiny").say("b", max_patches=12)


def fake_transcripts(monkeypatch):
    """Have a transcript per window: its length in seconds. Speech is what is loud."""

    def segments(self, blocks, aligner=None):
        windows = long_form.speech_windows(blocks, detector=lambda block: float(np.abs(block).max() > 0.1))
        return (TranscriptSegment(w.start, w.end, f"{w.end - w.start:.0f} s") for w in windows)

    monkeypatch.setattr(SpeechGPT, "transcribe_segments", segments)


def test_transcribe_prints_one_line_per_short_file(monkeypatch):
    fake_transcripts(monkeypatch)
    assert sg2("transcribe", "in.wav", "in.wav", *MODEL).stdout == "1 s\n1 s\n"


def test_transcribe_prints_the_times_of_a_long_recording(monkeypatch):
    fake_transcripts(monkeypatch)
    pcm = np.concatenate([np.zeros(10 * SAMPLE_RATE), *[np.full(2 * SAMPLE_RATE, 0.5), np.zeros(3 * SAMPLE_RATE)] * 2])
    soundfile.write("long.wav", pcm, SAMPLE_RATE)
    lines = sg2("transcribe", "long.wav", *MODEL).stdout.splitlines()
    assert lines == ["[9.79 → 12.19] 2 s", "[14.78 → 17.22] 2 s"]
    assert "00:00:14.784" in sg2("transcribe", "long.wav", "--format", "vtt", *MODEL).stdout
    rows = [json.loads(row) for row in sg2("transcribe", "long.wav", "--format", "jsonl", *MODEL).stdout.splitlines()]
    assert [row["text"] for row in rows] == ["2 s", "2 s"]
    soundfile.write("silent.wav", np.zeros(20 * SAMPLE_RATE), SAMPLE_RATE)
    result = sg2("transcribe", "silent.wav", *MODEL)
    assert result.stdout == "" and "warning: silent.wav: holds no speech" in result.stderr


@needs.extra("synthesis", "espeakng_loader", "pypinyin")
def test_transcribe_finds_words(monkeypatch):
    def segments(self, blocks, aligner=None):
        pcm = np.concatenate(list(blocks))
        for text in ("What's three plus five?", "The colour of the sky is blue, as everyone knows who looks up."):
            yield aligner(TranscriptSegment(0.0, len(pcm) / SAMPLE_RATE, text), pcm)

    monkeypatch.setattr(SpeechGPT, "transcribe_segments", segments)
    question = ROOT / "examples" / "question-1.wav"
    result = sg2("transcribe", question, "--words", "--format", "json", *MODEL)
    right, wrong = json.loads(result.stdout)["segments"]
    assert [word["word"] for word in right["words"]] == ["What's", "three", "plus", "five"] and "words" not in wrong
    assert "1 of 2 segments have no word times" in result.stderr
    lines = sg2("transcribe", question, "--words", *MODEL).stdout.splitlines()
    assert len(lines) == 5 and lines[3].endswith("] five?")


def test_transcribe_shows_how_far_it_is(monkeypatch):
    shown = []
    monkeypatch.setattr(transcribe_command, "spinner", lambda what: contextlib.nullcontext(shown.append))
    fake_transcripts(monkeypatch)
    soundfile.write("silent.flac", np.zeros((40 * 8_000, 8)), 8_000)
    sg2("transcribe", "silent.flac", *MODEL)
    assert "transcribing silent.flac: 20 of 40 s" in shown and len(shown) > 30


@needs.condition(hasattr(os, "openpty"), "the system has no pseudo-terminals")
@pytest.mark.parametrize("code", ["with common.spinner('busy'): print('hello')",
                                  "for _ in common.with_progress([1], 'busy'): print('hello')"])  # fmt: skip
def test_output_goes_to_its_file_while_the_terminal_shows_progress(code):
    ours, theirs = os.openpty()
    with Path("out.txt").open("w") as out:
        run = f"from speechgpt2.cli import common\n{code}"
        environment = {**os.environ, "TERM": "xterm", "PYTHONPATH": str(ROOT)}
        subprocess.run([sys.executable, "-c", run], stdout=out, stderr=theirs, env=environment, check=True)
    assert Path("out.txt").read_text() == "hello\n"
    assert b"busy" in os.read(ours, 4096)
    os.close(ours)
    os.close(theirs)


def test_truncated_audio_is_read_with_a_warning():
    Path("cut.wav").write_bytes(Path("in.wav").read_bytes()[:24_000])
    result = sg2("encode", "cut.wav", "-o", "cut.npy", *CODEC)
    assert "warning: cut.wav is truncated: 0.5 s of 1.0 s could be read" in result.stderr


def test_info():
    output = sg2("info", "tiny").stdout
    assert re.search(r"licence +not stated", output)
    assert re.search(r"^codec$", output, re.M) and re.search(r"^lm$", output, re.M)
    assert "in_proj" not in output
    assert "attention.in_proj.weight" in sg2("info", "tiny", "--tensors").stdout


def test_plan_says_which_kernels_are_used(monkeypatch):
    monkeypatch.setattr("speechgpt2.nn.native.native_kernels", lambda: None)
    assert re.search(r"kernels +PyTorch's; .* need a C compiler and AVX2", sg2("info", "tiny", "--plan").stdout)
    monkeypatch.setattr("speechgpt2.nn.native.native_kernels", object)
    assert re.search(r"kernels +in C$", sg2("info", "tiny", "--plan").stdout, re.M)


def test_info_reads_the_licence_from_the_model_card(tiny):
    copy("tiny", "card")
    Path("card/README.md").write_text("---\nlicense: apache-2.0\nlanguage: [en, zh]\n---\n# A model\n")
    assert re.search(r"licence +apache-2.0", sg2("info", "card").stdout)


def test_convert_changes_the_precision_of_all_that_a_folder_holds():
    Path("tiny/README.md").write_text("---\nlicense: mit\n---\n")
    assert sg2("convert", "tiny", "half", "--dtype", "bfloat16").stdout == "half: codec and language model\n"
    assert "mit" in sg2("info", "half").stdout
    for part in ("codec", "lm"):
        tensors = load_file(f"half/{part}.safetensors").values()
        assert {t.dtype for t in tensors if t.is_floating_point()} == {torch.bfloat16}
    SpeechGPT.from_pretrained("half")  # loads: its parts belong together


def copy_without(part):
    """Copy the tiny model to `one`, without its codec or its language model."""
    copy("tiny", "one")
    for file in Path("one").glob(f"{part}.*"):
        file.unlink()


@pytest.mark.parametrize(("part", "other", "name"), [("codec", "lm", "codec"), ("lm", "codec", "language model")])
def test_convert_adds_the_part_that_is_there_to_a_folder(part, other, name):
    copy_without(other)
    Path("new").mkdir()
    Path(f"new/{other}.json").write_text("{}")
    assert sg2("convert", "one", "new", "--dtype", "bfloat16").stdout == f"new: {name}\n"
    assert Path(f"new/{part}.safetensors").exists() and Path(f"new/{other}.json").read_text() == "{}"
    assert "already exists" in fails("convert", "tiny", "new")  # which holds both


def test_convert_refuses_options_of_a_part_that_is_not_there():
    copy_without("lm")
    assert "--quantize is for language models" in fails("convert", "one", "new", "--quantize", "int8")
    shutil.rmtree("one")
    copy_without("codec")
    assert "--config is for a released codec" in fails("convert", "one", "new", "--config", "config.yaml")


def test_convert_quantizes_the_language_model_and_keeps_the_codec():
    sg2("convert", "tiny", "small", "--quantize", "int8")
    before, after = load_file("tiny/codec.safetensors"), load_file("small/codec.safetensors")
    assert all(torch.equal(before[name], tensor) for name, tensor in after.items())
    assert {t.dtype for t in load_file("small/lm.safetensors").values()} >= {torch.int8}


# errors


def header(rate: int, samples: int) -> bytes:
    """A 16-bit mono WAV file of silence that claims to be at `rate` Hz."""
    fields = struct.pack("<IHHIIHH", 16, 1, 1, rate, 2 * rate, 2, 16)
    data = struct.pack("<I", 2 * samples) + bytes(2 * samples)
    return b"RIFF" + struct.pack("<I", 32 + len(data)) + b"WAVEfmt " + fields + b"data" + data


def write_bad_audio():
    Path("text.wav").write_text("this is no audio\n" * 100)
    Path("nothing.wav").write_bytes(b"")
    Path("empty.wav").write_bytes(header(SAMPLE_RATE, 0))
    Path("zero.wav").write_bytes(header(0, 100))
    Path("folder.wav").mkdir()
    soundfile.write("nan.wav", np.full(1000, np.nan, np.float32), SAMPLE_RATE, subtype="FLOAT")


@pytest.mark.parametrize("name", ["absent", "text", "nothing", "empty", "zero", "folder", "nan"])
@pytest.mark.parametrize(
    "command",
    [
        ["encode", "-o", "codes.npy", *CODEC],
        ["chat", "-o", "answer.wav", *MODEL],
        ["transcribe", *MODEL],
        ["chat", "in.wav", "-o", "answer.wav", "--greeting"],
    ],
    ids=["encode", "chat", "transcribe", "greeting"],
)
def test_bad_audio_files(command, name):
    write_bad_audio()
    assert f"{name}.wav: " in fails(*command, f"{name}.wav")


def test_audio_too_short_to_encode():
    audio.save("short.wav", np.zeros(100, np.float32))
    assert "too short" in fails("encode", "short.wav", "-o", "codes.npy", *CODEC)


@pytest.mark.parametrize(
    "make",
    {
        "absent": lambda path: None,
        "folder": lambda path: path.mkdir(),
        "noise": lambda path: path.write_bytes(bytes(range(256))),
        "empty": lambda path: path.write_bytes(b""),
        "objects": lambda path: np.save(path, np.array([{}], dtype=object), allow_pickle=True),
        "floats": lambda path: np.save(path, np.zeros((5, 3))),
        "flat": lambda path: np.save(path, np.zeros(15, np.int16)),
        "nothing": lambda path: np.save(path, np.zeros((0, 3), np.int16)),
        "too many codebooks": lambda path: np.save(path, np.zeros((5, 4), np.int16)),
        "too large": lambda path: np.save(path, np.full((5, 3), 1024, np.int16)),
        "negative": lambda path: np.save(path, np.full((5, 3), -1, np.int16)),
    }.items(),
    ids=lambda item: item[0],
)
def test_bad_code_files(make):
    make[1](Path("codes.npy"))
    fails("decode", "codes.npy", "-o", "out.wav", *CODEC)


def copy(source, target):
    shutil.copytree(source, target)
    return Path(target)


def damage_tensors(path, change):
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def damaged(kind):
    """A copy of the tiny model with one thing wrong."""
    folder = copy("tiny", "damaged")
    weights, config = folder / "codec.safetensors", folder / "codec.json"
    if kind == "cut":
        weights.write_bytes(weights.read_bytes()[:-8])
    elif kind == "missing weights":
        weights.unlink()
    elif kind == "missing tensor":
        damage_tensors(weights, lambda tensors: tensors.pop("decoder.widen.weight"))
    elif kind == "extra tensor":
        damage_tensors(weights, lambda tensors: tensors.update(extra=torch.zeros(1)))
    elif kind == "other shape":
        damage_tensors(weights, lambda tensors: tensors.update({"decoder.widen.weight": torch.zeros(2, 2)}))
    elif kind == "unknown key":
        config.write_text(config.read_text().replace('"quantizer"', '"quantiser"'))
    elif kind == "no JSON":
        config.write_text("{")
    elif kind == "impossible size":
        config.write_text(config.read_text().replace('"heads": 2', '"heads": 3'))
    return folder


@pytest.mark.parametrize(
    "kind",
    [
        "cut",
        "missing weights",
        "missing tensor",
        "extra tensor",
        "other shape",
        "unknown key",
        "no JSON",
        "impossible size",
    ],
)
def test_damaged_checkpoints(kind):
    folder = damaged(kind)
    line = fails("encode", "in.wav", "-o", "codes.npy", "--codec", folder, "--device", "cpu")
    assert "damaged" in line or "codec.json" in line
    if kind == "unknown key":
        assert "'quantiser'; did you mean 'quantizer'" in line


@pytest.mark.parametrize("name", ["absent", "empty", "in.wav", "/absent/absent"])
def test_not_a_checkpoint(name):
    Path("empty").mkdir()
    for command in (
        ["chat", "in.wav", "-o", "answer.wav", "--model"],
        ["say", "Hello", "-o", "answer.wav", "--model"],
        ["transcribe", "in.wav", "--model"],
        ["encode", "in.wav", "-o", "codes.npy", "--codec"],
        ["info"],
    ):
        assert name in fails(*command, name)


def test_codec_and_model_do_not_match():
    folder = copy("tiny", "other")
    config = folder / "lm.json"
    config.write_text(config.read_text().replace('"codebook_size": 1024', '"codebook_size": 512'))
    fails("chat", "in.wav", "-o", "answer.wav", "--model", "other", "--device", "cpu")


@pytest.mark.parametrize("out", ["absent/out", ".", "out.txt", "folder"])
def test_unwritable_outputs(out):
    Path("folder.wav").mkdir()
    Path("folder.npy").mkdir()
    np.save("codes.npy", np.zeros((5, 3), np.int16))
    audio_out, codes = (out, out) if out in (".", "out.txt") else (f"{out}.wav", f"{out}.npy")
    assert "cannot write" in fails("encode", "in.wav", "-o", codes, *CODEC)
    assert "cannot write" in fails("decode", "codes.npy", "-o", audio_out, *CODEC)
    assert "cannot write" in fails("chat", "in.wav", "-o", audio_out, *MODEL)
    assert "cannot write" in fails("say", "Hello", "-o", audio_out, *MODEL)


@needs.condition(Path("/dev/full").exists(), "the system has no /dev/full")
def test_disk_full():
    Path("out.npy").symlink_to("/dev/full")
    assert "cannot write" in fails("encode", "in.wav", "-o", "out.npy", *CODEC)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["chat"], "no question"),
        (["chat", "--text", " "], "--text is empty"),
        (["say", " ", "-o", "out.wav"], "nothing to say"),
        (["chat", "in.wav", "--mode", "s2t", "-o", "out.wav"], "mode s2t gives no audio"),
        (["chat", "in.wav", "--greeting-text", "Hello"], "needs --greeting"),
        (["chat", "in.wav", "--greeting", "in.wav", "--voice", "anna"], "give one of --greeting and --voice"),
        (["chat", "in.wav", "--voice", "anna", "--greeting-index", "1"], "give one of --voice and --greeting-index"),
        (["chat", "in.wav", "--greetings", "absent.jsonl", *MODEL], "absent.jsonl: No such file"),
        (["chat", "in.wav", "--voice", "anna", *MODEL], "no voice 'anna'; this model has one voice"),
        (["greeting", "make", "g.jsonl", "--text", "hello"], "give one of --voice-file and --voice"),
        (["greeting", "make", "g.jsonl", "--text", " ", "--voice", "flite/slt"], "--text is empty"),
        (["greeting", "make", "g.jsonl", "--text", "hello", "--voice", "nobody"], "expected ENGINE/NAME"),
        (["greeting", "make", "g.jsonl", "--text", "hello", "--voice", "flite/slt", "--name", "7"], "a voice's name"),
        (["greeting", "make", "no/g.jsonl", "--text", "hello", "--voice", "flite/slt"], "no folder"),
        (["greeting", "make", "g.jsonl", "--text", "hello", "--voice-file", "absent.wav"], "absent.wav"),
        (["chat", "in.wav", "--model", "tiny", "--device", "cuda:99"], "device cuda:99 cannot be used"),
        (["chat", "in.wav", "--model", "tiny", "--device", "abacus"], "device abacus cannot be used"),
        (["eval", "codec", "--device", "abacus"], "device abacus cannot be used"),
        (["eval", "speech", "--device", "abacus"], "device abacus cannot be used"),
        (["eval", "mini", "--device", "abacus"], "device abacus cannot be used"),
        (["bench", "codec", "--device", "abacus"], "device abacus cannot be used"),
        (["bench", "lm", "--device", "abacus"], "device abacus cannot be used"),
        (["say", "hello", "-o", "out.wav", "--style", "loudly"], "no style 'loudly'"),
        (["chat", "in.wav", "--style", "loudly"], "no style 'loudly'"),
        (["serve", "--style", "loudly"], "no style 'loudly'"),
        (["convert", "absent", "new"], "no such file or folder"),
        (["convert", "tiny", "tiny"], "already exists"),
        (["convert", "in.wav", "new"], "in.wav"),
        (["convert", "tiny", "new", "--calibrate", "in.wav"], "give --quantize"),
    ],
)
def test_bad_arguments(arguments, message):
    assert message in fails(*arguments)


@pytest.mark.parametrize("kind", ["cuda", "mps"])
def test_auto_leaves_out_a_device_that_fails(kind, monkeypatch, capsys):
    from speechgpt2.cli import common

    monkeypatch.setattr(torch.cuda, "is_available", lambda: kind == "cuda")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: kind == "mps")
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    common.pick_device.cache_clear()
    try:
        assert common.torch_device("auto") == torch.device("cpu")
        assert common.torch_device("auto") == torch.device("cpu")
    finally:
        common.pick_device.cache_clear()
    said = capsys.readouterr().err.splitlines()
    assert said[0].startswith(f"warning: device {kind} is left out: ") and said[1:] == ["device: cpu"]


@pytest.mark.parametrize("kind", ["codec", "lm"])
def test_bad_training_configurations(kind):
    Path("run.yaml").write_text("stepss: 3\n")
    more = ["--codec", "tiny"] if kind == "lm" else []
    line = fails("train", kind, "run.yaml", "--data", "absent", "--out", "run", *more)
    assert "run.yaml: unknown key 'stepss'; did you mean 'steps'" in line
    assert "no such file" in fails("train", kind, "absent.yaml", "--data", "absent", "--out", "run", *more)


@pytest.mark.parametrize("arguments", [["--nonsense"], ["chat", "--mode", "x2y"], ["encode", "in.wav"], ["nonsense"]])
def test_usage_errors(arguments):
    assert "Traceback" not in sg2(*arguments, code=2).output


def test_ctrl_c_prints_one_line(monkeypatch):
    def interrupt(path):
        raise KeyboardInterrupt

    monkeypatch.setattr(audio, "load", interrupt)
    assert sg2("encode", "in.wav", "-o", "codes.npy", *CODEC, code=130).stderr == "error: interrupted\n"


def test_bug_prints_its_traceback(monkeypatch):
    monkeypatch.setattr(audio, "load", lambda path: 1 / 0)
    result = CliRunner().invoke(app, ["encode", "in.wav", "-o", "codes.npy", *CODEC])
    assert isinstance(result.exception, ZeroDivisionError)


def test_help_imports_nothing_heavy():
    program = "import sys; from speechgpt2.cli import app; app(['--help'], standalone_mode=False); print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT).stdout.split()
    assert "speechgpt2.cli.chat" in modules
    assert not {"torch", "numpy", "soundfile", "tokenizers", "huggingface_hub"} & set(modules)


@pytest.mark.parametrize("flag", ["--version", "-V"])
def test_version(flag):
    assert re.fullmatch(r"speechgpt2 \d+\.\d+\.\d+\S*\n", sg2(flag).stdout)


def commands():
    """The words of every command of `sg2`."""
    yield from ([name] for name in COMMANDS)
    yield from ([group, name] for group, (_, names) in GROUPS.items() for name in names)


def plain(text):
    """The text without the tables' borders and line breaks."""
    return " ".join(re.sub(r"[│╭╮╰╯─]", " ", text).split())


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_help_of_each_command(words):
    """Each option has a description, and `-h` works like `--help`."""
    command = typer.main.get_command(app)
    for word in words:
        command = command.commands[word]
    shown = plain(sg2(*words, "-h").stdout)
    assert shown == plain(sg2(*words, "--help").stdout)
    for parameter in command.params:
        assert parameter.help, f"{' '.join(words)}: {parameter.name} has no help"


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_help_is_whole_at_80_columns(words, monkeypatch):
    """No option and no word of a description is cut off: rich ends those that do not fit with an ellipsis."""
    monkeypatch.setenv("COLUMNS", "80")
    lines = sg2(*words, "-h").stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert not [line for line in lines if re.search(r"\w…", line)]


def test_help_keeps_square_brackets():
    assert "int16 [frames, codebooks]" in plain(sg2("encode", "-h").stdout)
    assert "[default: mini]" in plain(sg2("serve", "-h").stdout)
