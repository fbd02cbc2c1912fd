"""Builds a folder of conversations from a recipe: two-channel FLAC files, and a line of JSON for each.

    conversations.jsonl    lines, speakers and times: see render_script.SpokenConversation
    rejected.jsonl         rejected conversations, with reasons
    audio/000012.flac      channel 1 the first role, channel 2 the second; 24 kHz
    recipe.json            the recipe
    clips.jsonl, turns/, cuts.jsonl.gz     the lines for other data systems: see clips.py
    corpus/                the turns for `sg2 train lm`: see corpus/conversation_turns.py

Every conversation is drawn from a generator seeded by (seed, number). A part is some conversations that a process of
its own makes; it is written when it is complete. So a killed build can be resumed, and the result depends neither on
kills nor on workers.
"""

from __future__ import annotations

import json
import multiprocessing
import random
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from speechgpt2 import config
from speechgpt2.audio import to_pcm16
from speechgpt2.corpus import conversation_turns as turns
from speechgpt2.data.conversations import clips
from speechgpt2.data.conversations.acoustics import AcousticsConfig, apply_acoustics
from speechgpt2.data.conversations.checks import Checks, ChecksConfig, Deviations, best_reading
from speechgpt2.data.conversations.disfluency import DisfluencyConfig, add_disfluencies
from speechgpt2.data.conversations.llm import InvalidScript, LlmConfig, write_script
from speechgpt2.data.conversations.render_script import LineSpeaker, SpokenConversation, render_script
from speechgpt2.data.conversations.scenes import scenes
from speechgpt2.data.conversations.script import Line, Script
from speechgpt2.data.conversations.speaking_style import Tolerance, apply_style, measure, style_error
from speechgpt2.data.conversations.timing import TimingConfig
from speechgpt2.errors import UserError
from speechgpt2.hub import write_atomically
from speechgpt2.processes import single_threaded
from speechgpt2.tts.engines import ENGINES
from speechgpt2.tts.utterance import Utterance, Voice
from speechgpt2.tts.voice_sets import voice_set
from speechgpt2.tts.voices import draw_voice, speak, vary_voice
from speechgpt2.types import SAMPLE_RATE

PART = 20  # conversations of a part
LANGUAGES = ("en", "zh")
CONVERSATIONS_FILE, REJECTED_FILE, RECIPE_FILE = "conversations.jsonl", "rejected.jsonl", "recipe.json"


@dataclass(frozen=True)
class Recipe:
    """The number and kind of the conversations.

    conversations  their number
    languages      "en" and "zh", in turn
    scenes         names of scenes, all by default; not used with `llm`
    seed           seed of all random choices
    attempts       readings of a line, after which the conversation is rejected
    voices         voices of the speakers, at least two of a language; by default those of `voice_set`
    voice_set      "classic" (the training voices of espeak) or "natural"
    assistant      the assistant's voice, one of a language; by default drawn like the others
    llm            a language model that writes the scripts instead of the scenes
    """

    conversations: int
    languages: tuple[str, ...] = LANGUAGES
    scenes: tuple[str, ...] = ()
    seed: int = 0
    attempts: int = 3
    voices: tuple[Voice, ...] = ()
    voice_set: str = "classic"
    assistant: tuple[Voice, ...] = ()
    disfluency: DisfluencyConfig = field(default_factory=DisfluencyConfig)
    timing: TimingConfig = field(default_factory=TimingConfig)
    acoustics: AcousticsConfig = field(default_factory=AcousticsConfig)
    tolerance: Tolerance = field(default_factory=Tolerance)
    checks: ChecksConfig = field(default_factory=ChecksConfig)
    llm: LlmConfig | None = None

    def __post_init__(self) -> None:
        if self.conversations < 1 or self.attempts < 1:
            raise UserError("conversations and attempts must be positive")
        if not self.languages or set(self.languages) - set(LANGUAGES):
            raise UserError(f"languages: there are {' and '.join(LANGUAGES)}")
        voice_set(self.voice_set)
        for name in self.scenes:
            if not any(name in scenes(lang) for lang in self.languages):
                raise UserError(f"no scene {name!r}; there are {', '.join(sorted(scenes(self.languages[0])))}")
        for voice in (*self.voices, *self.assistant):
            if voice.engine not in ENGINES:
                raise UserError(f"no engine {voice.engine!r}; there are {', '.join(ENGINES)}")
        for lang in self.languages if self.voices else ():
            if len({voice.speaker for voice in self.voices if voice.lang == lang}) < 2:
                raise UserError(f"voices: a conversation needs two speakers, give two of {lang!r} at least")


class LineRejected(ValueError):
    """No reading of a line passed the checks."""


def build(
    recipe: Recipe, out: Path, workers: int = 2, report: Callable[[int], None] = lambda count: None
) -> tuple[int, float]:
    """Build the conversations that are missing in a folder.

    Args:
        recipe: the recipe.
        out: the folder.
        workers: processes.
        report: called with the number of finished conversations after each part.

    Returns:
        The number of conversations and their hours.

    Raises:
        UserError: the folder was begun with another recipe, or an engine or model of the recipe cannot be used.
    """
    for folder in (out / "audio", out / clips.TURNS, out / "parts"):
        folder.mkdir(parents=True, exist_ok=True)
    plain = config.to_dict(recipe)
    if not (out / RECIPE_FILE).exists():
        write_atomically(out / RECIPE_FILE, lambda path: path.write_text(json.dumps(plain, indent=1), encoding="utf-8"))
    elif json.loads((out / RECIPE_FILE).read_text(encoding="utf-8")) != json.loads(json.dumps(plain)):
        raise UserError(f"{out} was begun with another recipe; choose another folder, or delete it")
    parts = range(-(-recipe.conversations // PART))
    open_parts = [(recipe, out, part) for part in parts if not _part_file(out, part).exists()]
    finished = len(parts) - len(open_parts)
    report(finished * PART)
    if open_parts:
        # A fresh process for each part: espeak carries state from one utterance to the next.
        with single_threaded(), multiprocessing.get_context("spawn").Pool(workers, maxtasksperchild=1) as pool:
            for _ in pool.imap_unordered(_make_part, open_parts):
                finished += 1
                report(min(finished * PART, recipe.conversations))
    return _join(out, len(parts), plain)


def make_conversation(recipe: Recipe, number: int) -> tuple[SpokenConversation, dict[str, Any]]:
    """Make the conversation `number` of a recipe.

    Returns:
        The conversation, and further values of its JSON line: voices, acoustics, largest deviation of each check.

    Raises:
        LineRejected: no reading of a line passes the checks.
        InvalidScript: the language model wrote no valid script.
        ValueError: a line cannot be spoken.
        UserError: an engine or model cannot be used.
    """
    rng = random.Random(f"conversation/{recipe.seed}/{number}")
    lang = recipe.languages[number % len(recipe.languages)]
    script = add_disfluencies(_script(recipe, lang, rng), recipe.disfluency, rng)
    voices = _two_voices(recipe, script, rng)
    checks, worst = Checks(recipe.checks), Deviations()
    speakers = {
        role: _speaker(voice, recipe, random.Random(rng.getrandbits(64)), checks, worst)
        for role, voice in zip(script.roles, voices)
    }
    spoken = render_script(script, speakers, recipe.timing, rng)
    pcm, acoustics = apply_acoustics(spoken.pcm, recipe.acoustics, rng)
    metadata = {"voices": [asdict(voice) for voice in voices], "acoustics": acoustics, "deviations": worst}
    return SpokenConversation(spoken.script, pcm, spoken.lines, spoken.events), metadata


def _script(recipe: Recipe, lang: str, rng: random.Random) -> Script:
    if recipe.llm is not None:
        return write_script(recipe.llm, rng.choice(recipe.llm.topics), lang, rng.getrandbits(31))
    available = scenes(lang)
    names = [name for name in recipe.scenes if name in available] or sorted(available)
    return available[rng.choice(names)].draw(rng)


def _two_voices(recipe: Recipe, script: Script, rng: random.Random) -> tuple[Voice, Voice]:
    """Choose the voices of the two roles, from two different speakers."""
    voices: list[Voice] = []
    for role in script.roles:
        of_assistant = (v for v in recipe.assistant if v.lang == script.lang and role in turns.ASSISTANTS)
        voice = next(of_assistant, None)
        while voice is None or voice.speaker in {other.speaker for other in voices}:
            voice = _draw_voice(recipe, script.lang, rng)
        voices.append(vary_voice(voice, rng) if recipe.voices and ENGINES[voice.engine].adjustable else voice)
    return voices[0], voices[1]


def _draw_voice(recipe: Recipe, lang: str, rng: random.Random) -> Voice:
    if recipe.voices:
        return rng.choice([voice for voice in recipe.voices if voice.lang == lang])
    if recipe.voice_set != "classic":
        return voice_set(recipe.voice_set).draw(lang, rng)
    while True:
        voice = draw_voice(lang, rng)
        if voice.engine == "espeak" and "whisper" not in voice.name:
            return voice


def _speaker(voice: Voice, recipe: Recipe, rng: random.Random, checks: Checks, worst: Deviations) -> LineSpeaker:
    """Return a function that speaks lines by `voice`, and records the largest deviation of each check in `worst`."""

    def speak_line(line: Line) -> Utterance:
        neutral = speak(line.text, voice) if line.style else None

        def read(number: int) -> Utterance:
            if neutral is not None:
                return speak(line.text, apply_style(voice, line.speaking_style, rng if number else None))
            return speak(line.text, replace(voice, seed=rng.getrandbits(16)) if number else voice)

        def measure_deviations(spoken: Utterance) -> Deviations:
            deviations = checks(spoken) if recipe.checks.any else {}
            if neutral is None:
                return deviations
            error = style_error(line.speaking_style, measure(spoken, neutral), recipe.tolerance)
            return {line.style: error, **deviations}

        spoken, deviations = best_reading(recipe.attempts, read, measure_deviations)
        for name, deviation in deviations.items():
            worst[name] = round(max(deviation, worst.get(name, 0.0)), 3)
            if deviation > 1:
                raise LineRejected(f"{name}: {deviation:.2f} tolerances off after {recipe.attempts} readings")
        if not line.speaking_style.whisper:
            checks.remember(spoken)
        return spoken

    return speak_line


def _make_part(job: tuple[Recipe, Path, int]) -> None:
    recipe, out, part = job
    rows: list[dict[str, Any]] = []
    for number in range(part * PART, min((part + 1) * PART, recipe.conversations)):
        name = f"{number:06d}"
        try:
            conversation, metadata = make_conversation(recipe, number)
        except UserError:
            raise
        except (LineRejected, InvalidScript, ValueError) as error:
            rows.append({"id": name, "rejected": type(error).__name__.lower(), "detail": str(error)})
            continue
        row = {"id": name, "audio": f"audio/{name}.flac", **metadata, **conversation.to_dict()}
        _write_flac(out / row["audio"], conversation.pcm)
        for clip, line in zip(clips.clips(row), row["lines"]):
            _write_flac(out / clip.audio.path, conversation.pcm[line["channel"] :][:1, clips.span(line)])
        rows.append(row)
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    write_atomically(_part_file(out, part), lambda scratch: scratch.write_text(text, encoding="utf-8"))


def _write_flac(path: Path, pcm: np.ndarray) -> None:
    """Write `pcm [C, N]`, float32 at 24 kHz."""
    samples = np.frombuffer(to_pcm16(np.ascontiguousarray(pcm.T).reshape(-1)), "<i2").reshape(-1, len(pcm))
    write_atomically(
        path, lambda scratch: soundfile.write(scratch, samples, SAMPLE_RATE, format="FLAC", subtype="PCM_16")
    )


def _part_file(out: Path, part: int) -> Path:
    return out / "parts" / f"{part:05d}.jsonl"


def _join(out: Path, parts: int, recipe: dict[str, Any]) -> tuple[int, float]:
    """Write the lists from the files of the parts, which stay: a later build skips their conversations."""
    count = samples = 0
    scratch = {name: out / "parts" / name for name in (CONVERSATIONS_FILE, REJECTED_FILE)}
    with (
        scratch[CONVERSATIONS_FILE].open("w", encoding="utf-8") as accepted,
        scratch[REJECTED_FILE].open("w", encoding="utf-8") as rejected,
    ):
        for row, line in _rows(out, parts):
            if "rejected" in row:
                rejected.write(line)
            else:
                accepted.write(line)
                count, samples = count + 1, samples + row["samples"]
    for name, path in scratch.items():
        path.replace(out / name)
    clips.write(out, _accepted(out, parts), out / "parts")
    turns.write_corpus(out, _accepted(out, parts), recipe)
    return count, samples / SAMPLE_RATE / 3600


def _rows(out: Path, parts: int) -> Iterator[tuple[dict[str, Any], str]]:
    for part in range(parts):
        with _part_file(out, part).open(encoding="utf-8") as file:
            for line in file:
                yield json.loads(line), line


def _accepted(out: Path, parts: int) -> Iterator[dict[str, Any]]:
    return (row for row, _ in _rows(out, parts) if "rejected" not in row)
