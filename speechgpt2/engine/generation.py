"""The reply in progress of a slot: what is generated, what the codec still decodes, how far it is ahead of playback."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from speechgpt2.dsp.delivery import Delivery
from speechgpt2.duplex.protocol import ReplyOptions, SessionSettings
from speechgpt2.engine.event_queue import SessionEventQueue
from speechgpt2.engine.history import History
from speechgpt2.engine.model_runner import GeneratedPatch
from speechgpt2.engine.reply_styles import ReplyStyles, delivery_of
from speechgpt2.lm import tools
from speechgpt2.lm.grammar import TextConstraint
from speechgpt2.lm.prompt import Prompt
from speechgpt2.lm.reply import ReplyEvent, ReplyParser
from speechgpt2.lm.stop import StopRule
from speechgpt2.lm.style_request import answer_to
from speechgpt2.lm.transcript_reader import TranscriptReader
from speechgpt2.style import NORMAL, Style
from speechgpt2.style_requests import StyleRequest
from speechgpt2.types import SAMPLE_RATE, AudioDelta, Patches, ReplyDone, TextDelta, ToolCall, Transcript


class Generation:
    """A reply in progress.

    Args:
        number: The reply's number in its session.
        stop: Its stop rule.
        history: The session's memory, whose last turn is this reply.
        events: The session's event queue.
        constraint: The constraint of its text.

    Attributes:
        decoding: Patches of audible speech that the codec has not decoded yet.
        done: Whether the reply is complete and all of its events are sent.
        given: Its text, if the model only speaks it, or nothing is left to generate.
    """

    def __init__(
        self,
        number: int,
        stop: StopRule,
        history: History,
        events: SessionEventQueue,
        constraint: TextConstraint | None = None,
    ):
        self.number, self.stop, self._constraint = number, stop, constraint
        self.decoding, self.done, self.given = 0, False, ""
        self._history, self._events = history, events
        self._patch_seconds = history.prompt.config.patch_seconds
        self._calls: list[ToolCall] = []  # sent at the end, because an interrupted reply calls no tools
        self._playback_ends: float | None = None  # when all decoded audio will have been played
        self.set_style(NORMAL)

    def set_style(self, style: Style) -> None:
        """Speak in another style, from the start of the reply's audio."""
        span = self._history.last
        assert span is not None
        self._delivery, span.rate = Delivery(style), style.rate

    @property
    def _answer(self) -> str:
        return self.given or self.stop.parser.text.strip()

    @property
    def writing(self) -> bool:
        """Whether the next patch is text without speech."""
        return not self.stop.speech_depth

    @property
    def audio_started(self) -> bool:
        """Whether any audio has been decoded."""
        return self._playback_ends is not None

    @property
    def decoding_seconds(self) -> float:
        """Seconds of audio that the codec has not decoded yet."""
        return self.decoding * self._patch_seconds / self._delivery.rate

    def playback_left(self, now: float) -> float:
        """Seconds of decoded audio that are not played yet, if the client plays audio as soon as it arrives."""
        return 0.0 if self._playback_ends is None else max(0.0, self._playback_ends - now)

    def allowed(self) -> np.ndarray | None:
        """The text tokens that may come next, as bits `[W]` int32; None: all."""
        return None if self._constraint is None else self._constraint.allowed()

    def accept(self, patch: GeneratedPatch) -> bool:
        """Add a patch that the model has generated and read, and send its events.

        Returns:
            Whether the patches that were drafted after it still count. They do not if it breaks the reply's constraint
            and is dropped, or if the reply begins again.
        """
        if self._constraint is not None and not self._constraint.accept(patch.token):
            return False
        speaks = patch.audio is not None
        replacement = self.stop.advance(patch.token, speaks, self._history.context.room - 1, patch.log_prob)
        if replacement is not None:
            self._history.restart_reply(replacement)
            return False
        codes = torch.from_numpy(patch.codes)[None, None]
        self._history.extend_reply(Patches(torch.tensor([[patch.token]]), codes))
        self._emit(self.stop.parser.read(patch.token, speaks))
        self.decoding += speaks and not self.stop.parser.muted
        self._complete_if_stopped()
        return True

    def audio_decoded(self, pcm: np.ndarray, buffered: float, now: float) -> None:
        """Send the audio of a patch.

        Args:
            pcm: `[N]` float32 at 24 kHz.
            buffered: Seconds of audio that the client has not played yet.
            now: Seconds of the engine's clock.
        """
        if not self.decoding:  # a spoken tool call, which is not audible
            return
        self.decoding -= 1
        # Playback is assumed to begin with the first audio, and to pause while there is none.
        if self._playback_ends is None or buffered <= 0:
            self._playback_ends = now
        self._send_audio(self._delivery.push(pcm))
        self._complete_if_stopped()

    def _send_audio(self, pcm: np.ndarray) -> None:
        if self._playback_ends is not None and len(pcm):
            self._playback_ends += len(pcm) / SAMPLE_RATE
            self._events.put(self.number, AudioDelta(pcm))

    def truncate(self, played_patches: int) -> None:
        """End an interrupted reply. Of its speech, `played_patches` stay in memory; a written reply stays as it is."""
        span = self._history.last
        assert span is not None
        span.answer = self._answer
        if self.stop.speak:
            self._history.truncate_reply(span, played_patches)
        else:
            self._history.end_reply(speaking=False)

    def write_given(self) -> None:
        """End a reply whose given text is not spoken."""
        self.stop.reason = "stop"
        self._complete_if_stopped()

    def _complete_if_stopped(self) -> None:
        """Complete the reply if it has stopped and all of its audio is decoded."""
        if self.stop.reason is None or self.decoding:
            return
        if not self.stop.parser.ended:
            self._emit(self.stop.parser.finish())
            self._history.end_reply(speaking=not self.writing)
        self._send_audio(self._delivery.finish())
        assert self._history.last is not None
        self._history.last.answer = self._answer
        for call in self._calls:
            self._events.put(self.number, call)
        self._events.put(self.number, ReplyDone(self.stop.reason))
        self.done = True

    def _emit(self, events: Sequence[ReplyEvent]) -> None:
        for event in events:
            if isinstance(event, ToolCall):
                self._calls.append(event)
                continue
            if isinstance(event, Transcript):
                self._history.transcript = event.text
            self._events.put(self.number, event)


class _ReplyStart(NamedTuple):
    """How a reply begins.

    Attributes:
        speak: Whether it is spoken.
        user_spoke: Whether it answers the user's speech, and so may begin with a transcript of it.
        given: Its text, if the model only speaks it, or nothing is left to generate.
        call: The beginning of a tool call that it has to make; empty if none is required.
        request: The style that a typed turn asks for.
    """

    speak: bool
    user_spoke: bool
    given: str | None
    call: str
    request: StyleRequest | None

    def prefix(self, prompt: Prompt) -> Patches:
        """Return the patches that the model goes on from, `[1, P]`."""
        if self.given is not None:
            return prompt.tts_prefix(self.given) if self.speak else prompt.text_patches(prompt.encode(self.given))
        return prompt.text_patches(prompt.encode(self.call))


def _reply_start(options: ReplyOptions, settings: SessionSettings, history: History, last_answer: str) -> _ReplyStart:
    """Decide how a reply begins, and update the system prompt to that. Raises `UserError` as `start_generation`."""
    prompt, read_aloud = history.prompt, options.text is not None
    if options.text is not None and options.speak is False:
        return _ReplyStart(False, False, options.text, "", None)
    user_spoke = history.ends_with_user_speech and not read_aloud
    speak = read_aloud or (settings.speak if options.speak is None else options.speak)
    if read_aloud:
        prompt.require_chain_of_modality("read a given text aloud")
    history.update_system_prompt(settings, speak, read_aloud, options)
    if read_aloud:
        return _ReplyStart(speak, user_spoke, options.text, "", None)
    given = None
    call = _call_prefix(history, options, settings, user_spoke)
    request = history.request if speak else None
    if request is not None and prompt.template.chain_of_modality and not call:
        given = answer_to(request, history.typed, last_answer)
    return _ReplyStart(speak, user_spoke, given, call, request)


def start_generation(
    number: int,
    options: ReplyOptions,
    settings: SessionSettings,
    history: History,
    events: SessionEventQueue,
    styles: ReplyStyles,
) -> Generation:
    """Begin a reply: its system prompt and its prefix enter the history.

    Args:
        number: The reply's number in its session.
        options: The reply's own options.
        settings: The session's settings, for what the options leave open.
        history: The session's memory.
        events: The session's event queue.
        styles: The styles that the user has asked for.

    Raises:
        UserError: The model cannot read aloud, or the context is too small.
    """
    prompt, read_aloud = history.prompt, options.text is not None
    last_answer, answers_tool = history.last_answer, history.last is not None and history.last.role == "tool"
    start = _reply_start(options, settings, history, last_answer)
    history.start_reply(number, start.prefix(prompt), start.user_spoke)

    def follow(request: StyleRequest) -> None:  # also called later, when the transcript holds a request
        style = styles.follow(request, number, settings, options)
        generation.set_style(delivery_of(style, prompt, settings, options))

    calls_tools = bool(history.system.tools) and not read_aloud
    parser = ReplyParser(prompt, start.user_spoke, tools=calls_tools, prefix=start.call)
    free = not _required(options, settings) and settings.response_schema is None  # or the text must be something else
    transcript = TranscriptReader(parser, start.speak, last_answer, follow if start.speak else None) if free else None
    limit = min(options.max_patches or settings.max_patches, settings.max_patches)
    in_speech = start.given is not None and start.speak
    stop = StopRule(parser, limit, start.speak, in_speech=in_speech, transcript=transcript)
    constraint = None if read_aloud else _constraint(history, options, settings, start.user_spoke, start.call)
    generation = Generation(number, stop, history, events, constraint)
    style = styles.reply_style(settings, options, continues=answers_tool)
    generation.set_style(delivery_of(style, prompt, settings, options))
    if start.request is not None:
        follow(start.request)
    if start.given is not None:
        generation.given = start.given
        events.put(number, TextDelta(start.given))
        if not start.speak:
            generation.write_given()
    return generation


def _call_prefix(history: History, options: ReplyOptions, settings: SessionSettings, user_spoke: bool) -> str:
    """Return the text that forces a reply to begin with a tool call; empty if no call is required."""
    required = _required(options, settings)
    template = history.prompt.template
    writes_transcript = user_spoke and template.chain_of_modality
    if not required or writes_transcript or not history.system.tools or not template.tools:
        return ""
    return tools.tool_call_prefix(required if isinstance(required, str) else None)


def _required(options: ReplyOptions, settings: SessionSettings) -> bool | str:
    return settings.require_tool if options.require_tool is None else options.require_tool


def _constraint(
    history: History, options: ReplyOptions, settings: SessionSettings, user_spoke: bool, prefix: str
) -> TextConstraint | None:
    """What the text of a reply must be that begins with `prefix`."""
    prompt = history.prompt
    tools = history.system.tools if prompt.template.tools else ()
    return prompt.grammars.constraint(
        tools,
        _required(options, settings) if tools else False,
        settings.response_schema,
        user_spoke and prompt.template.chain_of_modality,
        prompt.encode(prefix),
    )
