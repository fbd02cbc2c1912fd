"""The record of a clip: everything that is known of it, with sources. All data tools read and write it.

    clip = Clip.from_json(line)
    clip = replace(clip, quality=replace(clip.quality, snr=31.5))
    line = clip.to_json()                     # canonical: equal clips give equal lines

A clip is a span of a recording: first a crawled file, later a segment of it (`parent_id`). A field that was not
measured is `None` or empty, and is left out of the JSON. Reading is strict: an unknown key or a wrong type is a
`UserError` that names it. Times are seconds from the first sample of the clip.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import json
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from speechgpt2.errors import UserError
from speechgpt2.tts.utterance import Alignment, Word

R = TypeVar("R")


@dataclass(frozen=True)
class Source:
    """The source of a clip, and its licence.

    Attributes:
        url: where it was fetched from.
        fetched_at: when, as in 2026-01-31T12:00:00Z.
        etag: the server's version of the file.
        sha256: of the file as it was served.
        robots: whether robots.txt allows the URL; None if it was not asked.
        licence_raw: the text about the licence.
        spdx: the licence's SPDX identifier if the text is unambiguous.
    """

    url: str = ""
    fetched_at: str | None = None
    etag: str | None = None
    sha256: str | None = None
    robots: bool | None = None
    licence_raw: str = ""
    spdx: str | None = None


@dataclass(frozen=True)
class AudioInfo:
    """The audio: `duration` seconds from `start` of the recording.

    Attributes:
        path: the original file, relative to the manifest's folder.
        pcm_hash: hash of the decoded samples: in a crawl those of the original file, after decoding those of the
            standard recording.
        gain: dB to apply to the recording.
        fingerprint: (nearly) equal for clips that sound alike, hexadecimal.
    """

    path: str = ""
    sample_rate: int = 0
    channels: int = 0
    start: float = 0.0
    duration: float = 0.0
    format: str = ""
    pcm_hash: str = ""
    gain: float = 0.0
    fingerprint: str = ""


@dataclass(frozen=True)
class Language:
    """A language code such as "en" or "zh", empty if unknown, and its confidence (0…1)."""

    code: str = ""
    confidence: float | None = None


@dataclass(frozen=True)
class ClipText:
    """The text: as the source has it (`raw`), normalised (`norm`), and as recognisers transcribe it (`hypotheses`).

    Attributes:
        cer: mean error rate between the texts (0…).
        lines: subtitle lines of the source's text with their times, if there are any.
    """

    raw: str = ""
    norm: str = ""
    hypotheses: tuple[str, ...] = ()
    cer: float | None = None
    lines: tuple[Word, ...] = ()


@dataclass(frozen=True)
class Speaker:
    """A speaker of the clip. Embeddings are comparable if the same tool made them (see `labels_from`)."""

    id: str
    embedding: tuple[float, ...] = ()
    gender: str = ""
    age: str = ""


@dataclass(frozen=True)
class Prosody:
    """Prosody of a clip.

    Attributes:
        f0_mean: mean pitch of voiced frames, Hz; `f0_low` and `f0_high` are a low and a high percentile.
        f0_std: its standard deviation, semitones.
        energy: level, dBFS.
        rate: syllables per second.
        pauses: lengths of the pauses, seconds.
    """

    f0_mean: float | None = None
    f0_std: float | None = None
    f0_low: float | None = None
    f0_high: float | None = None
    energy: float | None = None
    rate: float | None = None
    pauses: tuple[float, ...] = ()


@dataclass(frozen=True)
class Quality:
    """Quality measures.

    Attributes:
        snr: signal-to-noise ratio, dB.
        loudness: LUFS before any gain.
        bandwidth: highest frequency of the speech, Hz.
        clipping: share of samples at full scale.
        overlap: share of time with two voices.
        music: 0 (none) … 1.
        noise: 0 (none) … 1.
        silence: share of time without speech.
        mos: model's name -> opinion score, 1…5.
        extra: further measures of stages, by name.
    """

    snr: float | None = None
    loudness: float | None = None
    bandwidth: float | None = None
    clipping: float | None = None
    overlap: float | None = None
    music: float | None = None
    noise: float | None = None
    silence: float | None = None
    mos: dict[str, float] = field(default_factory=dict)
    extra: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Style:
    """The speaking style, in words."""

    emotion: str = ""
    scene: str = ""
    accent: str = ""
    caption_zh: str = ""
    caption_en: str = ""


@dataclass(frozen=True)
class DialogueEvent:
    """An event in a dialogue, from `start` to `end`, by a speaker's id."""

    type: Literal["backchannel", "interruption", "overlap", "filler", "repetition", "repair", "laugh"]
    start: float
    end: float
    by: str = ""


@dataclass(frozen=True)
class Decision:
    """The decision of a stage, with score and threshold; `detail` is a line for people."""

    stage: str
    version: int
    keep: bool
    config_hash: str = ""
    reason: str = ""
    score: float | None = None
    threshold: float | None = None
    detail: str = ""
    ms: float | None = None


@dataclass(frozen=True)
class Label:
    """The source of a field's value: a tool, and whether it is ground truth or estimated ("pseudo")."""

    tool: str
    version: str = ""
    confidence: float | None = None
    kind: Literal["truth", "pseudo"] = "pseudo"


@dataclass(frozen=True)
class Clip:
    """A span of speech with what is known of it.

    Attributes:
        id: unique in a data set.
        parent_id: the recording or clip that it was cut from; "" for none.
        decisions: those of all stages that kept or rejected it.
        labels_from: sources of fields such as "prosody.f0_mean".
    """

    id: str
    parent_id: str = ""
    title: str = ""
    source: Source = Source()
    audio: AudioInfo = AudioInfo()
    lang: Language = Language()
    text: ClipText = ClipText()
    speakers: tuple[Speaker, ...] = ()
    align: Alignment = field(default_factory=Alignment)
    prosody: Prosody = Prosody()
    quality: Quality = field(default_factory=Quality)
    style: Style = Style()
    events: tuple[DialogueEvent, ...] = ()
    decisions: tuple[Decision, ...] = ()
    labels_from: dict[str, Label] = field(default_factory=dict)

    @property
    def kept(self) -> bool:
        """Whether no stage has rejected the clip."""
        return all(decision.keep for decision in self.decisions)

    @property
    def rejection(self) -> Decision | None:
        """The decision that rejected the clip; None if it is kept."""
        return next((decision for decision in self.decisions if not decision.keep), None)

    def to_dict(self) -> dict[str, Any]:
        """Return plain dicts, lists and scalars, without unknown fields."""
        return _plain(self)

    def to_json(self) -> str:
        """Return one line. Raises ValueError for NaN and infinity, which JSON lacks."""
        return json.dumps(_plain(self), ensure_ascii=False, sort_keys=True, allow_nan=False, separators=(",", ":"))

    @classmethod
    def from_dict(cls, values: Any) -> Clip:
        """Build a clip from plain values. Raises `UserError` for unknown, missing or mistyped keys."""
        read: Reader = _reader(cls)  # type: ignore[arg-type]
        return read(values, "clip")

    @classmethod
    def from_json(cls, line: str) -> Clip:
        """Parse a line. Raises `UserError` if it is not the JSON of a clip."""
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"not a record: {error}") from None
        return cls.from_dict(values)


_SCALARS = frozenset({str, float, int, bool, type(None)})


def _plain(value: Any) -> Any:
    """Convert to plain dicts, lists and scalars; of a dataclass, the fields that differ from their defaults."""
    if type(value) in _SCALARS:
        return value
    if isinstance(value, (tuple, list)):
        return [part if type(part) in _SCALARS else _plain(part) for part in value]
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if not dataclasses.is_dataclass(value):
        return value
    defaults = _defaults(type(value))  # type: ignore[arg-type]
    fields = vars(value).items()
    return {name: _plain(part) for name, part in fields if name not in defaults or part != defaults[name]}


@functools.cache
def _defaults(cls: Any) -> dict[str, Any]:
    """Return the default values of a dataclass's fields, by name."""
    computed = {f.name: f.default_factory() for f in dataclasses.fields(cls) if callable(f.default_factory)}
    constant = {f.name: f.default for f in dataclasses.fields(cls) if f.default is not dataclasses.MISSING}
    return {**constant, **computed}


Reader = Callable[[Any, str], Any]


@functools.cache
def _reader(hint: Any) -> Reader:
    """Return a function (value, where) that checks a plain value and converts it to the type `hint`.

    `where` names the value in error messages, as in "clip.speakers[0].age".
    """
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        inner = _reader(next(arg for arg in args if arg is not type(None)))
        return lambda value, where: None if value is None else inner(value, where)
    if origin is Literal:
        return lambda value, where: value if value in args else _fail(where, f"one of {', '.join(args)}", value)
    if origin is tuple:
        return _reader_of_items(args[0])
    if origin is dict:
        return _reader_of_mapping(_reader(args[1]))
    if dataclasses.is_dataclass(hint):
        return _reader_of_fields(hint)  # type: ignore[arg-type]
    if hasattr(hint, "_fields"):
        return _reader_of_row(hint)
    return _reader_of_scalar(hint)


@functools.cache
def _as_is(hint: Any) -> frozenset[type]:
    """Return the types of plain values that `hint` needs no conversion for: most values of a record."""
    if hint in _SCALARS:
        return frozenset({hint})
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return frozenset().union(*map(_as_is, typing.get_args(hint)))
    return frozenset()


def _reader_of_items(hint: Any) -> Reader:
    item, as_is = _reader(hint), _as_is(hint)

    def read(value: Any, where: str) -> Any:
        if not isinstance(value, (list, tuple)):
            _fail(where, "a list", value)
        return tuple([part if type(part) in as_is else item(part, f"{where}[{i}]") for i, part in enumerate(value)])

    return read


def _reader_of_mapping(item: Reader) -> Reader:
    def read(value: Any, where: str) -> Any:
        if not isinstance(value, dict):
            _fail(where, "a mapping", value)
        return {key: item(part, f"{where}.{key}") for key, part in value.items()}

    return read


def _reader_of_row(cls: Any) -> Reader:
    """A reader of a named tuple, which is written as a list."""
    items = [_reader(hint) for hint in typing.get_type_hints(cls).values()]

    def read(value: Any, where: str) -> Any:
        if not isinstance(value, (list, tuple)) or len(value) != len(items):
            _fail(where, f"a list of {', '.join(cls._fields)}", value)
        return cls(*(item(part, where) for item, part in zip(items, value)))

    return read


def _reader_of_fields(cls: type[R]) -> Reader:
    hints = typing.get_type_hints(cls)
    fields = {f.name: (_reader(hints[f.name]), _as_is(hints[f.name])) for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    required = [
        f.name
        for f in dataclasses.fields(cls)  # type: ignore[arg-type]
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]

    def read(value: Any, where: str) -> Any:
        if not isinstance(value, dict):
            _fail(where, "a mapping", value)
        for key in value:
            if key not in fields:
                similar = difflib.get_close_matches(str(key), fields, n=1, cutoff=0)[0]
                raise UserError(f"{where}: unknown key '{key}'; did you mean '{similar}'?")
        for key in required:
            if key not in value:
                raise UserError(f"{where}: missing key '{key}'")
        values = {}
        for key, part in value.items():
            read_field, as_is = fields[key]
            values[key] = part if type(part) in as_is else read_field(part, f"{where}.{key}")
        return cls(**values)

    return read


def _reader_of_scalar(cls: Any) -> Reader:
    def read(value: Any, where: str) -> Any:
        if cls is float and type(value) is int:
            return float(value)
        return value if type(value) is cls else _fail(where, cls.__name__, value)

    return read


def _fail(where: str, expected: str, value: Any) -> typing.NoReturn:
    raise UserError(f"{where}: expected {expected}, got {str(value)[:80]!r}")
