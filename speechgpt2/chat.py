"""Codec and language model together: turns in, a reply out.

    model = SpeechGPT.from_pretrained("mini")
    reply = model.chat([Turn.user(speech=pcm)])            # reply.text, reply.pcm, reply.transcript
    for event in model.chat([Turn.user("Hello")], stream=True): ...

    conversation = model.conversation("s2s")               # keeps its state: only new turns are computed
    reply = conversation.ask(Turn.user(speech=pcm))
    reply = conversation.ask(Turn.user(speech=more))

    conversation = model.conversation("t2t", tools=[Tool("weather", "The weather in a city.", schema)])
    reply = conversation.ask(Turn.user("Is it sunny in Paris?"))   # reply.calls
    reply = conversation.ask(Turn("tool", (Text("sunny"),)))       # the tools' results, a text each

One conversation at a time, on the calling thread. `engine` serves many at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
import torch
from torch import Tensor

from speechgpt2 import long_form
from speechgpt2.codec.model import Codec
from speechgpt2.conversation import (
    ConversationStyle,
    HistoryTurn,
    Reply,
    check_same_codes,
    history_turn,
    mode_of,
    speech_codes,
    text_of,
)
from speechgpt2.errors import UserError
from speechgpt2.lm.generation import generate
from speechgpt2.lm.grammar import TextConstraint
from speechgpt2.lm.model import MAX_PATCHES, SpeechLM
from speechgpt2.lm.reply import ReplyParser
from speechgpt2.lm.sampling import SamplingParams
from speechgpt2.lm.segments import AlignedSpeech, concat
from speechgpt2.lm.state import extend_capacity, rewind
from speechgpt2.lm.stop import StopRule
from speechgpt2.loading import Sources, load
from speechgpt2.nn.linear import pack
from speechgpt2.nn.quantized import Kind, Quantization
from speechgpt2.style import NORMAL, Style
from speechgpt2.types import (
    AudioDelta,
    Event,
    Mode,
    Patches,
    ReplyDone,
    Speech,
    TextDelta,
    Tool,
    ToolCall,
    Transcript,
    Turn,
)

GROWTH = 512  # patches that a conversation's state grows by at least
MAX_TURN = 4096  # patches of one turn: 8 minutes of speech, or as many text tokens


class SpeechGPT:
    """A codec and a language model of the same codes, on the same device.

    Raises:
        UserError: The two use different codes.
    """

    def __init__(self, codec: Codec, lm: SpeechLM):
        check_same_codes(codec, lm)
        self.codec, self.lm = codec, lm

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = None,
        codec: str | Path | None = None,
        quantize: Kind | None = None,
        codec_config: str | Path | None = None,
        patch_heads: int | None = None,
        greetings: str | Path | None = None,
    ) -> SpeechGPT:
        """Load both models for inference (see `nn.linear.pack`).

        Args:
            name: A folder, built-in name or Hugging Face id.
            device: Device of the models.
            dtype: Precision of the language model; None means bfloat16 for the released layout, otherwise as stored.
            codec: The codec, if it is not in the model's folder, as with the released models.
            quantize: "int8" or "int4" for the matrices of the language model.
            codec_config: The YAML file of a released codec.
            patch_heads: See `SpeechLM.from_pretrained`.
            greetings: A file of greetings, in place of that in the model's folder.

        Raises:
            UserError: A model cannot be found or loaded, or does not fit.
        """
        quantization = None if quantize is None else Quantization(quantize)
        sources = Sources(name, codec, codec_config, dtype, quantization, patch_heads, greetings)
        return cls.load(sources, device)

    @classmethod
    def load(cls, sources: Sources, device: str | torch.device = "cpu") -> SpeechGPT:
        """Load what `sources` names, for inference. Raises `UserError` as `from_pretrained` does."""
        codec, lm = load(sources, torch.device(device))
        pack(lm)
        codec.optimize_for_inference()
        return cls(codec, lm)

    @property
    def voices(self) -> tuple[str, ...]:
        """Names of the model's voices, each of which is a greeting; one without a name is known by its index."""
        return tuple(self.lm.prompt.greetings.speech)

    def conversation(
        self,
        mode: Mode,
        greeting: AlignedSpeech | Speech | None = None,
        sampling: SamplingParams | None = None,
        system: str | None = None,
        max_patches: int = MAX_PATCHES,
        tools: Sequence[Tool] = (),
        voice: str | None = None,
        style: Style = NORMAL,
        speed: float = 1.0,
    ) -> Conversation:
        """Begin a conversation.

        Args:
            mode: Modalities of the user and the model ("s2t": the user speaks, the model writes).
            greeting: Speech with which the model opens the conversation.
            sampling: Sampling parameters of the replies.
            system: Text that replaces the system line.
            max_patches: Limit of one reply.
            tools: Tools that the system prompt lists, if the model was trained to call tools.
            voice: One of `voices`, whose greeting opens the conversation; None means the model's default.
            style: How replies are spoken, until the user asks for another style (`style.parse_style`).
            speed: How many times as fast as the style they are spoken.

        Raises:
            UserError: There is no such voice.
        """
        if isinstance(greeting, Speech):
            greeting = self.lm.prompt.greeting(replace(greeting, codes=self.codes(greeting).cpu().numpy()))
        greeting = greeting or self.lm.prompt.opening(voice, mode)
        system = self.lm.prompt.styled(system, mode, style)
        prompt = self.lm.prompt.system_prompt(mode, greeting, system, tools)
        return Conversation(self, prompt, sampling, max_patches, mode[2] == "s", tuple(tools), style, speed)

    @overload
    def chat(
        self, turns: Sequence[Turn], mode: Mode | None = ..., *, stream: Literal[True], **options: Any
    ) -> Iterator[Event]: ...
    @overload
    def chat(
        self, turns: Sequence[Turn], mode: Mode | None = ..., *, stream: Literal[False] = ..., **options: Any
    ) -> Reply: ...

    def chat(self, turns: Sequence[Turn], mode: Mode | None = None, *, stream: bool = False, **options: Any) -> Any:
        """Answer the last turn.

        Args:
            turns: The conversation so far. A first turn of role "system" replaces the system line.
            mode: Modalities of the user and the model; None: speech if the last turn is speech, otherwise text.
            stream: Whether to return events as they happen.
            options: Those of `conversation`.

        Raises:
            UserError: The last turn is not the user's or a tool's, or a turn is invalid.
        """
        turns = list(turns)
        if turns and turns[0].role == "system":
            options["system"] = text_of(turns.pop(0))
        if not turns or turns[-1].role not in ("user", "tool"):
            raise UserError("there is nothing to answer: the last turn must be the user's")
        conversation = self.conversation(mode or mode_of(turns[-1]), **options)
        for turn in turns[:-1]:
            conversation.add(turn)
        return conversation.ask(turns[-1], stream=stream)

    def say(
        self,
        text: str,
        sampling: SamplingParams | None = None,
        max_patches: int = MAX_PATCHES,
        voice: str | None = None,
        style: Style = NORMAL,
        speed: float = 1.0,
    ) -> Reply:
        """Read a `text` of any length aloud. `reason` is "length" if the speech of a sentence was cut off.

        Raises:
            UserError: The text holds no letters or digits, the model was not trained to read aloud, or there is no such
                voice.
        """
        replies = list(self.read_aloud(text, sampling, max_patches, voice, style, speed))
        pcm, codes = np.concatenate([r.pcm for r in replies]), np.concatenate([r.codes for r in replies])
        cut = any(reply.reason == "length" for reply in replies)
        return Reply(text, pcm, codes, None, "length" if cut else "stop")

    def read_aloud(
        self,
        text: str,
        sampling: SamplingParams | None = None,
        max_patches: int = MAX_PATCHES,
        voice: str | None = None,
        style: Style = NORMAL,
        speed: float = 1.0,
    ) -> Iterator[Reply]:
        """Read `text` aloud, one reply for each of its sentences. Arguments and errors are those of `say`."""
        parts = long_form.sentences(text)
        if not parts:
            raise UserError("nothing to say: the text holds no letters or digits")
        greeting = self.lm.prompt.opening(voice, "t2s")
        for part in parts:
            prompt = self.lm.prompt.tts_prompt(part, greeting)
            conversation = Conversation(self, prompt, sampling, max_patches, True, (), style, speed)
            yield replace(conversation.collect(conversation.reply(user_spoke=False)), text=part)

    def transcribe(self, pcm: np.ndarray, max_patches: int = MAX_PATCHES) -> str:
        """Transcribe `pcm [N]` of any length, float32 at 24 kHz.

        Raises:
            UserError: The model was not trained to transcribe.
        """
        return long_form.join(segment.text for segment in self.transcribe_segments([pcm], max_patches))

    def transcribe_segments(
        self, blocks: Iterable[np.ndarray], max_patches: int = MAX_PATCHES, aligner: long_form.Aligner | None = None
    ) -> Iterator[long_form.TranscriptSegment]:
        """Transcribe a recording window by window (see `long_form.speech_windows`).

        Args:
            blocks: The recording, blocks `[N]` of any size, float32 at 24 kHz.
            max_patches: Limit of one window's transcript.
            aligner: Finds the words of a segment in its audio (`word_times.with_word_times`).

        Raises:
            UserError: The model was not trained to transcribe.
        """
        self.lm.prompt.require_chain_of_modality("transcribe speech")
        greedy = SamplingParams.greedy(device=self.lm.device)
        for start, end, pcm in long_form.speech_windows(blocks):
            events = self.conversation("s2t", None, greedy, None, max_patches).ask(Turn.user(speech=pcm), stream=True)
            transcripts = (event.text.strip() for event in events if isinstance(event, Transcript))
            segment = long_form.TranscriptSegment(start, end, next(transcripts, ""))
            yield aligner(segment, pcm) if aligner else segment

    def codes(self, speech: Speech) -> Tensor:
        """Return the codes `[T, K]` of a speech segment, encoded if it has none.

        Raises:
            UserError: It has neither codes of this codec nor samples.
        """
        return speech_codes(speech, self.codec.config, self._encode)

    def _encode(self, pcm: np.ndarray) -> Tensor:
        return self.codec.encode(torch.from_numpy(pcm).to(self.lm.device)[None])[0]


class Conversation:
    """A conversation with one user. Its state holds all turns, so that only new ones are computed.

    Args:
        model: The models.
        prompt: The system prompt, `[1, P]`.
        sampling: Sampling parameters of the replies.
        max_patches: Limit of one reply.
        speak: Whether replies have speech.
        tools: The tools that the system prompt lists.
        style: How replies are spoken, until the user asks for another style.
        speed: How many times as fast as the style they are spoken.
    """

    def __init__(
        self,
        model: SpeechGPT,
        prompt: Patches,
        sampling: SamplingParams | None,
        max_patches: int,
        speak: bool,
        tools: tuple[Tool, ...] = (),
        style: Style = NORMAL,
        speed: float = 1.0,
    ):
        self.style = ConversationStyle(model.lm.prompt, style, speed)
        self.model, self.max_patches, self.speak, self.tools = model, max_patches, speak, tools
        self.sampling = sampling or SamplingParams.from_config(model.lm.config.sampling, device=model.lm.device)
        self.state = model.lm.init_state(1, GROWTH)
        self._pending = [prompt]  # patches to prefill
        self._codes: list[Tensor] = []  # of the latest reply, [G, K] each
        self._transcript: str | None = None  # of the user's last speech, where it is known
        self._unanswered = False

    def add(self, turn: Turn) -> None:
        """Add a turn without answering it.

        Raises:
            UserError: It is a system turn, does not hold one segment, or is longer than `MAX_TURN`.
        """
        prompt = self.model.lm.prompt
        content = history_turn(turn, self.model.codes)
        self._check_length(content)
        if content.role == "assistant":
            if not self._unanswered:
                self._pending.append(prompt.reply_start())
            self._pending.append(self._as_reply(content))
            self.style.last_answer = content.text or ""
        else:
            if self._unanswered:
                self._pending.append(prompt.turn_end(speaking=False))
            spoken = content.codes is not None
            self._transcript = content.text if spoken else None
            text = self.style.read_turn(content) if self.speak else content.text or ""
            self._pending.append(prompt.user_text(text) if content.codes is None else prompt.user_speech(content.codes))
        self._unanswered = content.role != "assistant"

    @overload
    def ask(self, turn: Turn, stream: Literal[True]) -> Iterator[Event]: ...
    @overload
    def ask(self, turn: Turn, stream: Literal[False] = ...) -> Reply: ...
    @overload
    def ask(self, turn: Turn, stream: bool) -> Reply | Iterator[Event]: ...

    def ask(self, turn: Turn, stream: bool = False) -> Reply | Iterator[Event]:
        """Add a turn and answer it.

        Args:
            turn: A turn of the user, or tool results.
            stream: Whether to return events as they happen. If the consumer stops early, the reply ends there, and the
                conversation can continue.

        Raises:
            UserError: The turn is invalid.
        """
        self.add(turn)
        events = self.reply(user_spoke=isinstance(turn.segments[0], Speech))
        return events if stream else self.collect(events)

    def reply(self, user_spoke: bool) -> Iterator[Event]:
        """Generate a reply to the turns that were added. `user_spoke`: the last turn is speech."""
        lm, codec = self.model.lm, self.model.codec
        parser = ReplyParser(lm.prompt, user_spoke, bool(self.tools))
        decoder_state = codec.init_decoder_state(1)
        self._unanswered, self._codes = False, []
        transcript, given = self.style.begin_reply(parser, self.speak)
        self._pending += given
        try:
            hidden = self._prefill()
            in_speech = bool(self.state.speech_depth[0])
            stop = StopRule(parser, self.max_patches, self.speak, in_speech, transcript)
            for token, codes, speaking in self._generate(hidden, stop, self._constraint(user_spoke)):
                yield from parser.read(token, speaking)
                if speaking and not parser.muted:
                    self._codes.append(codes[0].cpu())
                    pcm, decoder_state = codec.decode(codes, decoder_state)
                    yield AudioDelta(self.style.delivery.push(pcm[0].cpu().numpy()))
            if self._codes and len(rest := self.style.delivery.finish()):
                yield AudioDelta(rest)
            yield from parser.finish()
            assert stop.reason is not None
            yield ReplyDone(stop.reason)
        finally:
            self.style.last_answer = parser.text.strip() or self.style.last_answer
            if not parser.ended:
                self._pending.append(lm.prompt.turn_end(speaking=bool(self.state.speech_depth[0])))

    def _constraint(self, user_spoke: bool) -> TextConstraint | None:
        """Every tool call is valid JSON that fits the tool's schema, if llguidance is installed."""
        prompt = self.model.lm.prompt
        tools = self.tools if prompt.template.tools else ()
        return prompt.grammars.constraint(tools, after_transcript=user_spoke and prompt.template.chain_of_modality)

    def _generate(
        self, hidden: Tensor, stop: StopRule, constraint: TextConstraint | None
    ) -> Iterator[tuple[int, Tensor, bool]]:
        """Yield each patch of the reply: its text token, its codes `[1, G, K]`, and whether it holds speech."""
        lm, begin = self.model.lm, int(self.state.position[0])
        while stop.reason is None:
            left = self.max_patches - stop.patches
            for step in generate(lm, hidden, self.state, self.sampling, left, constraint):
                self.state = step.state
                token, codes = int(step.patches.text), step.patches.codes[:, 0]
                speaking = bool(codes[0, 0, 0] != lm.config.no_speech)
                if (continuation := stop.advance(token, speaking)) is not None:
                    hidden, self.state = lm.prefill(continuation, rewind(self.state, 0, begin))
                    break
                yield token, codes, speaking
                if stop.reason is not None:
                    break

    def collect(self, events: Iterable[Event]) -> Reply:
        """Combine the events of a reply."""
        pcm, text, transcript = [np.zeros(0, np.float32)], "", None
        reason: Literal["stop", "length", "interrupted"] = "interrupted"
        calls: list[ToolCall] = []
        for event in events:
            match event:
                case AudioDelta(samples):
                    pcm.append(samples)
                case TextDelta(more):
                    text += more
                case Transcript():
                    transcript = event.text
                case ToolCall():
                    calls.append(event)
                case ReplyDone():
                    reason = event.reason
        codes = torch.cat([torch.zeros(0, self.model.lm.config.codebooks, dtype=torch.int64), *self._codes])
        return Reply(text.strip(), np.concatenate(pcm), codes.numpy(), transcript, reason, tuple(calls))

    def _check_length(self, content: HistoryTurn) -> None:
        config = self.model.lm.config
        spoken = 0 if content.codes is None else len(content.codes) // config.patch_frames
        patches = max(spoken, len(self.model.lm.prompt.encode(content.text or "")))
        if patches > MAX_TURN:
            raise UserError(
                f"a turn of {patches:,} patches is too long: the limit is {MAX_TURN:,}, which are 8 minutes of speech "
                "or as many text tokens"
            )

    def _prefill(self) -> Tensor:
        """Prefill what is pending. Returns the hidden state after it, `[1, D]`."""
        pending = concat(*self._pending)
        needed = int(self.state.position[0]) + pending.text.shape[1] + self.max_patches
        if needed > self.state.stack.capacity:
            self.state = extend_capacity(self.state, needed + GROWTH)
        hidden, self.state = self.model.lm.prefill(pending, self.state)
        self._pending = []
        return hidden

    def _as_reply(self, content: HistoryTurn) -> Patches:
        prompt = self.model.lm.prompt
        transcript = self._transcript if self._unanswered else None
        if content.codes is None:
            return prompt.reply(content.text or "", transcript=transcript)
        speech = prompt.align_speech(content.codes, text=content.text)
        return prompt.reply(content.text or "", speech, transcript)
