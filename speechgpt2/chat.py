"""Codec and language model together: turns in, an answer out.

    model = SpeechGPT.from_pretrained("mini")
    reply = model.chat([Turn.user(speech=pcm)])            # reply.text, reply.pcm, reply.transcript
    for event in model.chat([Turn.user("Hello")], stream=True): ...

    talk = model.conversation("s2s")                       # keeps its state: a turn costs only what is new
    reply = talk.ask(Turn.user(speech=pcm))
    reply = talk.ask(Turn.user(speech=more))

    talk = model.conversation("t2t", tools=[Tool("weather", "The weather in a city.", schema)])
    reply = talk.ask(Turn.user("Is it sunny in Paris?"))   # reply.calls
    reply = talk.ask(Turn("tool", (Text("sunny"),)))       # what the tools gave, a text each

This is one dialogue at a time, on the caller's thread; many at once are the engine's work.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
import torch
from torch import Tensor

from speechgpt2.codec.model import Codec, check_codes
from speechgpt2.errors import UserError
from speechgpt2.lm import tools as calling
from speechgpt2.lm.model import MAX_PATCHES, SpeechLM, extend_capacity, rewind
from speechgpt2.lm.prompt import AlignedSpeech, concat
from speechgpt2.lm.reply import ReplyParser
from speechgpt2.lm.sampling import SamplingParams
from speechgpt2.nn.linear import pack
from speechgpt2.types import (
    AudioDelta,
    Event,
    Mode,
    Patches,
    ReplyDone,
    Speech,
    Text,
    TextDelta,
    Tool,
    ToolCall,
    Transcript,
    Turn,
)

ROOM = 512  # patches that a conversation's state grows by at least


@dataclass(frozen=True)
class Reply:
    """An answer.

    `pcm [N]` is float32 at 24 kHz, decoded from `codes [T, K]`; both are empty where nothing was spoken. `transcript`
    is what the model heard, None where it does not say; `reason` tells why the answer ended; `calls` are of tools.
    """

    text: str
    pcm: np.ndarray
    codes: np.ndarray
    transcript: str | None
    reason: Literal["stop", "length", "interrupted"]
    calls: tuple[ToolCall, ...] = ()


class SpeechGPT:
    """A codec and a language model of the same codes, on the same device."""

    def __init__(self, codec: Codec, lm: SpeechLM):
        """Errors: `UserError` if the codec's codes are not those that the language model speaks."""
        ours, theirs = codec.config.quantizer, lm.config
        if (ours.codebooks, ours.size) != (theirs.codebooks, theirs.codebook_size):
            raise UserError(
                f"the codec has {ours.codebooks} codebooks of {ours.size} codes, the language model speaks "
                f"{theirs.codebooks} of {theirs.codebook_size}"
            )
        self.codec, self.lm = codec, lm

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = None,
        codec: str | Path | None = None,
    ) -> SpeechGPT:
        """Both models from one folder, built-in name or Hugging Face id; the codec from `codec` where they come apart,
        as the released ones do. They are to talk, not to learn further: see `nn.linear.pack`. Errors: `UserError`.
        """
        lm = SpeechLM.from_pretrained(name, dtype=dtype, device=device)
        ears = Codec.from_pretrained(codec or name, device=device)
        pack(lm)
        ears.optimize_for_inference()
        return cls(ears, lm)

    def conversation(
        self,
        mode: Mode,
        greeting: AlignedSpeech | Speech | None = None,
        sampling: SamplingParams | None = None,
        system: str | None = None,
        max_patches: int = MAX_PATCHES,
        tools: Sequence[Tool] = (),
    ) -> Conversation:
        """Begin a dialogue. `mode`: who speaks ("s2t": the user speaks, the model writes); `system` replaces the system
        line; `max_patches` bounds one reply; `tools` are told to a model that knows how to call them.
        """
        if isinstance(greeting, Speech):
            greeting = self.lm.prompt.align_speech(self.codes(greeting), text=greeting.text)
        opening = self.lm.prompt.system_prompt(mode, greeting, system, tools)
        return Conversation(self, opening, sampling, max_patches, speaks=mode[2] == "s", calls=bool(tools))

    @overload
    def chat(
        self, turns: Sequence[Turn], mode: Mode | None = ..., *, stream: Literal[True], **options: Any
    ) -> Iterator[Event]: ...
    @overload
    def chat(
        self, turns: Sequence[Turn], mode: Mode | None = ..., *, stream: Literal[False] = ..., **options: Any
    ) -> Reply: ...

    def chat(self, turns: Sequence[Turn], mode: Mode | None = None, *, stream: bool = False, **options: Any) -> Any:
        """Answer the last turn, the ones before it being history. With `stream` the events come as they happen.

        `mode` None: the answer comes in the user's own way. A first turn of role "system" replaces the system line.
        `options`: those of `conversation`. Errors: `UserError`.
        """
        turns = list(turns)
        if turns and turns[0].role == "system":
            options["system"] = _written(turns.pop(0))
        if not turns or turns[-1].role not in ("user", "tool"):
            raise UserError("there is nothing to answer: the last turn must be the user's")
        talk = self.conversation(mode or _mode_of(turns[-1]), **options)
        for turn in turns[:-1]:
            talk.add(turn)
        return talk.ask(turns[-1], stream=stream)

    def say(self, text: str, sampling: SamplingParams | None = None, max_patches: int = MAX_PATCHES) -> Reply:
        """Read `text` aloud. Errors: `UserError` for a model that was not trained to."""
        talk = Conversation(self, self.lm.prompt.tts_prompt(text), sampling, max_patches)
        return replace(talk.collect(talk.answer(spoken=False)), text=text)

    def transcribe(self, pcm: np.ndarray, max_patches: int = MAX_PATCHES) -> str:
        """What is said in `pcm [N]`, float32 at 24 kHz. Errors: `UserError` for a model not trained to tell."""
        self.lm.prompt.require_chain_of_modality("tell what it heard")
        talk = self.conversation("s2t", sampling=SamplingParams.greedy(device=self.lm.device), max_patches=max_patches)
        talk.add(Turn.user(speech=pcm))
        heard = (event.text for event in talk.answer(spoken=True) if isinstance(event, Transcript))
        return next(heard, "")

    def codes(self, speech: Speech) -> Tensor:
        """The segment's codes `[T, K]`, encoded if need be. Errors: `UserError` if they are none of this codec's."""
        if speech.codes is not None:
            codes = torch.as_tensor(speech.codes, dtype=torch.int64)
            check_codes(codes, self.codec.config)
            return codes
        if speech.pcm is None or np.ndim(speech.pcm) != 1 or not len(speech.pcm):
            raise UserError("speech must be a row of samples (float32 at 24 kHz) or codes")
        pcm = torch.as_tensor(speech.pcm, dtype=torch.float32, device=self.lm.device)
        return self.codec.encode(pcm[None])[0]


class Conversation:
    """A dialogue with one person. Its state holds all that was said, so that a turn computes only what is new.
    `speaks`: an answer is to have speech; `calls`: the opening names tools.
    """

    def __init__(
        self,
        model: SpeechGPT,
        opening: Patches,
        sampling: SamplingParams | None,
        max_patches: int,
        speaks: bool = False,
        calls: bool = False,
    ):
        self.model, self.max_patches, self.speaks, self.calls = model, max_patches, speaks, calls
        self.sampling = sampling or SamplingParams.of(1, device=model.lm.device)
        self.state = model.lm.init_state(1, ROOM)
        self._new = [opening]  # not yet taken in
        self._codes: list[Tensor] = []  # of the latest answer, [G, K] each
        self._heard: str | None = None  # what the user said last, where known
        self._answer_is_due = False

    def add(self, turn: Turn) -> None:
        """Take a turn as said, without an answer. Errors: `UserError`."""
        prompt = self.model.lm.prompt
        if turn.role == "system":
            raise UserError("a system turn can only be the first")
        segment = _segment(turn)
        if turn.role != "assistant":
            if self._answer_is_due:
                self._new.append(prompt.turn_end(speaking=False))
            self._heard = segment.text if isinstance(segment, Speech) else None
            self._new.append(self._as_turn(segment))
        else:
            if not self._answer_is_due:
                self._new.append(prompt.reply_start())
            self._new.append(self._as_reply(segment))
        self._answer_is_due = turn.role != "assistant"

    @overload
    def ask(self, turn: Turn, stream: Literal[True]) -> Iterator[Event]: ...
    @overload
    def ask(self, turn: Turn, stream: Literal[False] = ...) -> Reply: ...
    @overload
    def ask(self, turn: Turn, stream: bool) -> Reply | Iterator[Event]: ...

    def ask(self, turn: Turn, stream: bool = False) -> Reply | Iterator[Event]:
        """Answer a turn of the user's. With `stream` the events come as they happen; a consumer that stops early cuts
        the answer short, and the dialogue goes on from there. Errors: `UserError`.
        """
        self.add(turn)
        events = self.answer(spoken=isinstance(turn.segments[0], Speech))
        return events if stream else self.collect(events)

    def answer(self, spoken: bool) -> Iterator[Event]:
        """What the model says to all that was added; `spoken`: the user spoke last."""
        lm, codec = self.model.lm, self.model.codec
        reader = ReplyParser(lm.prompt, spoken, self.calls)
        voice = codec.init_decoder_state(1)
        self._answer_is_due, self._codes = False, []
        try:
            for patches in self._draw(reader):
                codes = patches.codes[:, 0]  # [1, G, K]
                speaking = bool(codes[0, 0, 0] != lm.config.no_speech)
                yield from reader.read(int(patches.text), speaking)
                if speaking:
                    self._codes.append(codes[0].cpu())
                    pcm, voice = codec.decode(codes, voice)
                    yield AudioDelta(pcm[0].cpu().numpy())
            yield from reader.finish()
            yield ReplyDone("stop" if reader.ended else "length")
        finally:
            if not reader.ended:
                self._new.append(lm.prompt.turn_end(speaking=bool(self.state.speech_depth[0])))

    def _draw(self, reader: ReplyParser) -> Iterator[Patches]:
        """The answer's patches, `[1, 1]` each. One that would end without its speech goes on where that would begin."""
        lm, hidden, left = self.model.lm, self._take_in(), self.max_patches
        begin = int(self.state.position[0])
        for patches in self._generate(hidden, left):
            left -= 1
            ends_mute = self.speaks and not self._codes and int(patches.text) == lm.prompt.special_ids.eos
            if ends_mute and left and (written := reader.speech_continuation_prompt()) is not None:
                hidden, self.state = lm.prefill(written, rewind(self.state, 0, begin))
                yield from self._generate(hidden, left)
                return
            yield patches

    def _generate(self, hidden: Tensor, most: int) -> Iterator[Patches]:
        for step in self.model.lm.generate(hidden, self.state, self.sampling, most):
            self.state = step.state
            yield step.patches

    def collect(self, events: Iterable[Event]) -> Reply:
        """All events of an answer as one reply."""
        pcm, text, transcript = [np.zeros(0, np.float32)], "", None
        reason: Literal["stop", "length", "interrupted"] = "interrupted"
        calls: list[ToolCall] = []
        for event in events:
            if isinstance(event, AudioDelta):
                pcm.append(event.pcm)
            elif isinstance(event, TextDelta):
                text += event.text
            elif isinstance(event, Transcript):
                transcript = event.text
            elif isinstance(event, ToolCall):
                calls.append(event)
            elif isinstance(event, ReplyDone):
                reason = event.reason
        codes = torch.cat([torch.zeros(0, self.model.lm.config.codebooks, dtype=torch.int64), *self._codes])
        return Reply(text.strip(), np.concatenate(pcm), codes.numpy(), transcript, reason, tuple(calls))

    def _take_in(self) -> Tensor:
        new = concat(*self._new)
        needed = int(self.state.position[0]) + new.text.shape[1] + self.max_patches
        if needed > self.state.stack.capacity:
            self.state = extend_capacity(self.state, needed + ROOM)
        hidden, self.state = self.model.lm.prefill(new, self.state)
        self._new = []
        return hidden

    def _as_turn(self, segment: Text | Speech) -> Patches:
        prompt = self.model.lm.prompt
        if isinstance(segment, Text):
            return prompt.user_text(segment.text)
        return prompt.user_speech(self.model.codes(segment))

    def _as_reply(self, segment: Text | Speech) -> Patches:
        prompt = self.model.lm.prompt
        heard = self._heard if self._answer_is_due else None
        if isinstance(segment, Text):
            return prompt.reply(segment.text, transcript=heard)
        return prompt.reply(
            segment.text or "", prompt.align_speech(self.model.codes(segment), text=segment.text), heard
        )


def _segment(turn: Turn) -> Text | Speech:
    """What the turn holds. Errors: `UserError` if that is more than one segment, but for calls and results of tools."""
    if (written := calling.render_tool_turn(turn)) is not None:
        return Text(written)
    segment = turn.segments[0] if len(turn.segments) == 1 else None
    if segment is None or isinstance(segment, ToolCall):
        raise UserError(f"a turn holds one segment, speech or text, not {len(turn.segments)}")
    return segment


def _mode_of(turn: Turn) -> Mode:
    return "s2s" if any(isinstance(segment, Speech) for segment in turn.segments) else "t2t"


def _written(turn: Turn) -> str:
    return "\n".join(segment.text for segment in turn.segments if isinstance(segment, Text))
