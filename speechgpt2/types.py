"""Data types of the whole project: audio constants, turns and their segments, patches, events.

Axes: B batch, N samples, T frames, K codebooks, P patches, G frames in a patch. Time comes before codebook, so a
patch is a view of codes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

if TYPE_CHECKING:  # for annotations only: modules that need no model should not wait for torch
    from torch import Tensor

SAMPLE_RATE = 24_000  # samples per second, everywhere inside the project
FRAME_SIZE = 960  # samples in a codec frame (40 ms)
FRAME_RATE = SAMPLE_RATE // FRAME_SIZE  # 25 frames per second
PATCH_FRAMES = 3  # frames in a patch, which is a position of the language model; a step generates one
PATCH_SAMPLES = PATCH_FRAMES * FRAME_SIZE
PATCH_SECONDS = PATCH_SAMPLES / SAMPLE_RATE  # 0.12

Role = Literal["system", "user", "assistant", "tool"]  # tool: the results of tool calls
Mode = Literal["s2s", "s2t", "t2s", "t2t"]
MODES: tuple[Mode, ...] = ("s2s", "s2t", "t2s", "t2t")


class Patches(NamedTuple):
    """Positions of the language model: `text [B, P]` token ids and `codes [B, P, G, K]`, both int64."""

    text: Tensor
    codes: Tensor


@dataclass(frozen=True)
class Text:
    """A written segment of a turn."""

    text: str


@dataclass(frozen=True)
class Speech:
    """A spoken segment of a turn: `pcm [N]` float32 at 24 kHz, or `codes [T, K]`, or both; `text` is its transcript.

    `tokens`: the text token of each patch of `codes`, if it is known, as in released greetings.
    """

    pcm: np.ndarray | None = None
    codes: np.ndarray | None = None
    text: str | None = None
    tokens: tuple[int, ...] | None = None


@dataclass(frozen=True)
class ToolCall:
    """A tool call: the tool's name, and its arguments as JSON text. A segment after a turn's text, and an event.

    A model without a grammar may write a call that cannot be read. It has no name, and `arguments` is what was written.
    """

    name: str
    arguments: str

    @property
    def malformed(self) -> bool:
        """Whether it cannot be read."""
        return not self.name


Segment = Text | Speech | ToolCall


@dataclass(frozen=True)
class Tool:
    """A tool that the model may call; `parameters` is a JSON schema."""

    name: str
    description: str
    parameters: dict[str, Any]


@dataclass(frozen=True)
class Turn:
    """One turn of a conversation: a role and its segments in order."""

    role: Role
    segments: tuple[Segment, ...]

    @classmethod
    def user(cls, text: str | None = None, speech: np.ndarray | None = None) -> Turn:
        """Return a user's turn, typed or spoken (`speech [N]`, float32 at 24 kHz)."""
        return cls("user", _segments(text, speech))

    @classmethod
    def assistant(cls, text: str | None = None, speech: np.ndarray | None = None) -> Turn:
        """Return a turn of the model, for the history."""
        return cls("assistant", _segments(text, speech))


def _segments(text: str | None, speech: np.ndarray | None) -> tuple[Segment, ...]:
    if speech is not None:
        return (Speech(pcm=speech, text=text),)
    if text is None:
        raise ValueError("a turn needs text or speech")
    return (Text(text),)


@dataclass(frozen=True)
class SpeechStarted:
    """The user began to speak at sample `at` of the session."""

    at: int


@dataclass(frozen=True)
class SpeechStopped:
    """The user stopped speaking at sample `at` of the session."""

    at: int


UNFINISHED = "…"  # ends the transcript of a turn that seems to break off


@dataclass(frozen=True)
class Transcript:
    """The text of the user's speech. It ends with `UNFINISHED` if the user seems not to have finished."""

    text: str


@dataclass(frozen=True)
class TextDelta:
    """The next piece of the reply's text."""

    text: str


@dataclass(frozen=True)
class AudioDelta:
    """The next piece of the reply's speech: `pcm [N]`, float32 at 24 kHz."""

    pcm: np.ndarray


@dataclass(frozen=True)
class Interrupted:
    """The reply was cut off after `played` samples of it had been played."""

    played: int


@dataclass(frozen=True)
class ReplyDone:
    """The reply is complete."""

    reason: Literal["stop", "length", "interrupted"]


@dataclass(frozen=True)
class Error:
    """An error that concerns this session only. `refused`: the client asked for what cannot be done."""

    message: str
    refused: bool = False


REPLY_EVENTS = (Transcript, TextDelta, AudioDelta, ToolCall, ReplyDone)  # those that belong to a reply
Event = SpeechStarted | SpeechStopped | Transcript | TextDelta | AudioDelta | ToolCall | Interrupted | ReplyDone | Error
