"""Split long texts into sentences, to read aloud, and long recordings into windows of speech, to transcribe.

    for sentence in sentences(text): ...                 # "The sky is blue."
    for window in speech_windows(blocks): ...            # SpeechWindow(start, end, pcm)

A model that was trained on short turns skips words of a long one. So a text is cut where a reader would pause, and a
recording is cut where its speaker pauses.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import Any, NamedTuple

import numpy as np

from speechgpt2.audio import Blocks, Resampler, cut_silent_end
from speechgpt2.languages import CHINESE, HAN
from speechgpt2.types import SAMPLE_RATE
from speechgpt2.vad import VAD_BLOCK, VAD_SAMPLE_RATE, SileroVad

# text

MAX_WIDTH = 60  # of a sentence, in Latin letters
CHINESE_WIDTH = 3  # of a character: it takes as long to say as three letters
SENTENCE_END = re.compile(r"""(?<=[。！？；\n])|(?<=[.!?…])["'”’)\]]*\s+""")
CLAUSE_END = re.compile(r"(?<=[，、：])|(?<=[,;:–—])\s+")
ABBREVIATION = re.compile(r"\b(?:Mr|Mrs|Ms|Dr|Prof|St|No|vs|etc|e\.g|i\.e|[A-Z])\.$")
SECONDS_PER_WIDTH = 0.025  # the fastest speech; a shorter one has left words out
# The slowest speech, of a digit as well ("seven hundred"), and pauses around it; a longer one is not of this text.
MOST_SECONDS_PER_WIDTH, MOST_SECONDS_PER_DIGIT, MOST_PAUSES = 0.3, 1.0, 2.0


def sentences(text: str, max_width: int = MAX_WIDTH) -> list[str]:
    """Cut a text into sentences. A long sentence is cut between its clauses, and a long clause between its words.

    Returns:
        The parts of the text with at least one letter or digit, without surrounding white space. Their `width` is at
        most `max_width`, unless a single word is wider.
    """
    pieces: list[str] = []
    for sentence in _joined_abbreviations(SENTENCE_END.split(text)):
        clauses = [sentence] if width(sentence) <= max_width else CLAUSE_END.split(sentence)
        words = [clause if width(clause) <= max_width else _words(clause) for clause in clauses]
        pieces += _packed(chain.from_iterable([w] if isinstance(w, str) else w for w in words), max_width)
    return [piece for piece in pieces if any(character.isalnum() for character in piece)]


def with_final_mark(sentence: str) -> str:
    """Return a sentence to read aloud, with a full stop if it ends with a letter, a character or a digit.

    A model that has only read whole sentences does not know where one without a mark ends: it speaks on.
    """
    if not sentence[-1:].isalnum():
        return sentence
    return sentence + ("。" if CHINESE.match(sentence[-1]) else ".")


def width(text: str) -> int:
    """Return the length of `text` in Latin letters of equal speaking time."""
    return len(text) + (CHINESE_WIDTH - 1) * len(CHINESE.findall(text))


def speech_fault(text: str, samples: int) -> str | None:
    """Return what is wrong with the speech of `text`, by its length alone; None of speech of a likely length.

    Args:
        text: A sentence.
        samples: The length of its speech at 24 kHz and at the model's own rate.
    """
    seconds, digits = samples / SAMPLE_RATE, sum(character.isdigit() for character in text)
    if seconds < SECONDS_PER_WIDTH * width(text):
        return "the model left words out"
    if seconds > MOST_SECONDS_PER_WIDTH * width(text) + MOST_SECONDS_PER_DIGIT * digits + MOST_PAUSES:
        return "the speech is far longer than its text can need"
    return None


def join(texts: Iterable[str]) -> str:
    """Join the texts of consecutive segments: with a space, except between two Chinese characters."""
    joined = ""
    for text in filter(None, texts):
        glued = not joined or (CHINESE.match(text) and CHINESE.match(joined[-1].strip("，。！？；：…") or joined[-2:]))
        joined += text if glued else f" {text}"
    return joined


def _joined_abbreviations(pieces: list[str]) -> Iterator[str]:
    """Undo cuts after abbreviations."""
    held = ""
    for piece in pieces:
        held = f"{held} {piece}" if held else piece
        if not ABBREVIATION.search(held):
            yield held
            held = ""
    if held:
        yield held


def _words(clause: str) -> list[str]:
    """Cut a clause into words, each with a space before it, and Chinese characters."""
    return [
        f" {part}" if index == 0 else part
        for word in clause.split()
        for index, part in enumerate(re.findall(rf"[{HAN}]|[^{HAN}]+", word))
    ]


def _packed(parts: Iterable[str], max_width: int) -> list[str]:
    """Join neighbouring parts, up to `max_width`."""
    packed: list[str] = []
    for part in parts:
        glue = "" if not packed or part[:1].isspace() or CHINESE.match(part) or CHINESE.match(packed[-1][-1:]) else " "
        if packed and width(packed[-1] + glue + part) <= max_width:
            packed[-1] += glue + part
        else:
            packed.append(part.strip())
    return packed


# speech

MAX_WINDOW = 15.0  # seconds
VOICE, STILL_VOICE = 0.5, 0.35  # probabilities above which speech begins, and above which it continues
HOP = SAMPLE_RATE * VAD_BLOCK // VAD_SAMPLE_RATE  # samples of one decision: 32 ms
PAUSE = 15  # hops without speech that end a window
MARGIN = 6  # hops before and after speech that belong to its window
MIN_VOICED = 3  # hops; a shorter sound is not speech

Detector = Callable[[np.ndarray], float]  # a block [VAD_BLOCK] at 16 kHz -> probability of speech


class SpeechWindow(NamedTuple):
    """Speech between two pauses: from second `start` to second `end` of the recording, `pcm [N]` at 24 kHz."""

    start: float
    end: float
    pcm: np.ndarray


class TranscriptWord(NamedTuple):
    """A word, or a Chinese character, from second `start` to second `end` of a recording.

    `written` is it as it stands in its segment's text, with the blank before and the punctuation after it.
    """

    written: str
    start: float
    end: float

    @property
    def bare(self) -> str:
        """The word without blanks and punctuation around it."""
        return re.sub(r"^\W+|\W+$", "", self.written)


class TranscriptSegment(NamedTuple):
    """The text from second `start` to second `end` of a recording; `words` where their times are known."""

    start: float
    end: float
    text: str
    words: tuple[TranscriptWord, ...] = ()


Aligner = Callable[[TranscriptSegment, np.ndarray], TranscriptSegment]  # finds a segment's words in its audio [N]


def speech_windows(
    blocks: Iterable[np.ndarray], max_seconds: float = MAX_WINDOW, detector: Detector | None = None
) -> Iterator[SpeechWindow]:
    """Cut a recording at pauses of its speaker. Memory does not grow with its length.

    A recording of at most `max_seconds` is one window, even without speech; its silent end is left out. Of a longer
    one, parts without speech are left out, and speech without a pause is cut where the probability of speech is lowest.

    Args:
        blocks: The recording, blocks `[N]` of any size at 24 kHz.
        max_seconds: The longest window.
        detector: Returns the probability of speech in the next block; None for a new `SileroVad`.

    Raises:
        UserError: The recording is long, and onnxruntime is not installed.
    """
    blocks = iter(blocks)
    begin: list[np.ndarray] = []
    while sum(len(block) for block in begin) <= max_seconds * SAMPLE_RATE:
        block = next(blocks, None)
        if block is None:
            pcm = cut_silent_end(np.concatenate([np.zeros(0, np.float32), *begin]))
            yield SpeechWindow(0.0, len(pcm) / SAMPLE_RATE, pcm)
            return
        begin.append(block)
    cutter = _Cutter(int(max_seconds * SAMPLE_RATE / HOP))
    detector = detector or SileroVad().probability
    resampler, hops = Resampler(SAMPLE_RATE, VAD_SAMPLE_RATE), Blocks(VAD_BLOCK)
    for block in chain(begin, blocks):
        cutter.append(block)
        for hop in hops.push(resampler.push(block)):
            yield from cutter.step(detector(hop))
    rest = np.concatenate([hops.rest(), resampler.push(np.zeros(0, np.float32), final=True)])
    for hop in Blocks(VAD_BLOCK).push(np.pad(rest, (0, -len(rest) % VAD_BLOCK))):
        yield from cutter.step(detector(hop))
    yield from cutter.finish()


class _Cutter:
    """Collects audio into a window, and closes the window at a pause. Positions are hops of the recording."""

    def __init__(self, longest: int):
        self._longest = longest
        self._pcm = np.zeros(0, np.float32)  # from hop `_first` on
        self._first = 0
        self._probabilities: list[float] = []  # of the hops from `_first` on
        self._last_voice: int | None = None  # the latest hop of speech; None outside speech

    def append(self, pcm: np.ndarray) -> None:
        self._pcm = np.concatenate([self._pcm, pcm])

    def step(self, probability: float) -> Iterator[SpeechWindow]:
        """Process the next hop."""
        self._probabilities.append(probability)
        now = self._first + len(self._probabilities) - 1
        if self._last_voice is None:
            if probability >= VOICE:
                self._last_voice = now
            else:
                self._drop_until(now - MARGIN + 1)
        elif probability >= STILL_VOICE:
            self._last_voice = now
        elif now - self._last_voice >= PAUSE:
            yield from self._close(self._last_voice + 1 + MARGIN)
            self._last_voice = None
        if self._last_voice is not None and len(self._probabilities) >= self._longest:
            third = len(self._probabilities) * 2 // 3
            yield from self._close(self._first + third + int(np.argmin(self._probabilities[third:])))
            if self._last_voice < self._first:
                self._last_voice = None

    def finish(self) -> Iterator[SpeechWindow]:
        """End the recording."""
        if self._last_voice is not None:
            yield from self._close(self._last_voice + 1 + MARGIN)

    def _close(self, end: int) -> Iterator[SpeechWindow]:
        """Yield the window up to hop `end`, if it holds speech, and drop its audio."""
        hops = end - self._first
        pcm = self._pcm[: hops * HOP]
        start = self._first * HOP / SAMPLE_RATE
        if sum(p >= STILL_VOICE for p in self._probabilities[:hops]) >= MIN_VOICED and len(pcm):
            yield SpeechWindow(start, start + len(pcm) / SAMPLE_RATE, pcm)
        self._drop_until(end)

    def _drop_until(self, hop: int) -> None:
        dropped = max(0, min(hop - self._first, len(self._probabilities)))
        del self._probabilities[:dropped]
        self._pcm = self._pcm[dropped * HOP :].copy() if dropped else self._pcm
        self._first += dropped


# subtitles


def to_srt(segments: Iterable[TranscriptSegment], first: int = 1) -> Iterator[str]:
    """Format segments as the parts of a SubRip file (.srt), numbered from `first` on.

    Where the times of words are known, each word is a cue.
    """
    cues = chain.from_iterable(s.words or (TranscriptWord(s.text, s.start, s.end),) for s in segments)
    for number, cue in enumerate(cues, first):
        text = cue.written.strip()
        yield f"{number}\n{_clock(cue.start, ',')} --> {_clock(cue.end, ',')}\n{text}\n\n"


VTT_HEADER = "WEBVTT\n\n"


def to_vtt(segments: Iterable[TranscriptSegment]) -> Iterator[str]:
    """Format segments as the parts of a WebVTT file (.vtt)."""
    yield VTT_HEADER
    yield from map(vtt_cue, segments)


def vtt_cue(segment: TranscriptSegment) -> str:
    """Format a segment for WebVTT. Known times of words stand before them."""
    text = "".join(_vtt_word(word, segment.start) for word in segment.words) or segment.text
    return f"{_clock(segment.start, '.')} --> {_clock(segment.end, '.')}\n{text}\n\n"


def to_json(segment: TranscriptSegment) -> dict[str, Any]:
    """Return a segment as an object for JSON, with its words where their times are known."""
    fields: dict[str, Any] = {"start": round(segment.start, 3), "end": round(segment.end, 3), "text": segment.text}
    return fields | ({"words": words_to_json(segment)} if segment.words else {})


def words_to_json(segment: TranscriptSegment) -> list[dict[str, Any]]:
    """Return a segment's words as objects for JSON."""
    return [{"word": w.bare, "start": round(w.start, 3), "end": round(w.end, 3)} for w in segment.words]


def _vtt_word(word: TranscriptWord, cue_start: float) -> str:
    """Format a word with its time before it, unless it begins with its cue."""
    time = f"<{_clock(word.start, '.')}>" if word.start > cue_start else ""
    return f"{' ' if word.written[:1].isspace() else ''}{time}{word.written.lstrip()}"


def _clock(seconds: float, mark: str) -> str:
    """Format a time as `01:02:03.456`."""
    milliseconds = round(seconds * 1000)
    minutes, rest = divmod(milliseconds, 60_000)
    return f"{minutes // 60:02}:{minutes % 60:02}:{rest // 1000:02}{mark}{rest % 1000:03}"
