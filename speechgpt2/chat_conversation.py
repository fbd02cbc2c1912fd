"""One conversation of `chat`: its state holds all turns, so that only new ones are computed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, overload

import torch
from torch import Tensor

from speechgpt2.conversation import (
    ConversationStyle,
    HistoryTurn,
    Reply,
    collect_reply,
    history_turn,
    session_header,
    to_patches,
)
from speechgpt2.errors import UserError
from speechgpt2.lm.generation import generate
from speechgpt2.lm.grammar import TextConstraint
from speechgpt2.lm.prompt import Prompt
from speechgpt2.lm.reply import ReplyParser
from speechgpt2.lm.sampling import SamplingParams
from speechgpt2.lm.segments import concat
from speechgpt2.lm.state import extend_capacity, rewind
from speechgpt2.lm.stop import StopRule
from speechgpt2.saved_chat import ChatSettings, ConversationLog, LoggedTurn, read_chunks
from speechgpt2.sessions.entries import LOCAL_OWNER, Entry, Header, SavedSession, TurnBlock
from speechgpt2.sessions.session_file import write_session
from speechgpt2.style import NORMAL, Style
from speechgpt2.types import AudioDelta, Event, Patches, ReplyDone, Speech, TextDelta, Tool, Turn

if TYPE_CHECKING:
    from speechgpt2.chat import SpeechGPT

GROWTH = 512  # patches that a conversation's state grows by at least
MAX_TURN = 4096  # patches of one turn: 8 minutes of speech, or as many text tokens


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
        self.steps = model.steps(self)
        self.state = self.steps.init_state(GROWTH)
        self.log = ConversationLog(model.lm.prompt, prompt)
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
        content = history_turn(turn, self.model)
        _check_length(content, prompt)
        spoken, replies = content.codes is not None, content.role == "assistant"
        transcript = self._transcript if self._unanswered and replies else None
        separator = prompt.text_patches([])
        if replies != self._unanswered:
            separator = prompt.reply_start() if replies else prompt.turn_end(speaking=False)
        if replies:
            patches = _as_reply(prompt, content, transcript)
            self.style.last_answer = content.text or ""
        else:
            self._transcript = content.text if spoken else None
            text = self.style.read_turn(content) if self.speak else content.text or ""
            patches = prompt.user_text(text) if content.codes is None else prompt.user_speech(content.codes)
        offset = prompt.user_speech_start().text.shape[1] if spoken and not replies else 0
        user_spoke = transcript is not None if replies else spoken
        self.log.start_turn(LoggedTurn(content.role, content.text, user_spoke, separator.text.shape[1], offset))
        self._append(separator, patches)
        self.log.end_turn(int(self.state.position[0]))
        self._unanswered = not replies

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

    @property
    def reads_aloud(self) -> bool:
        """Whether the model can read a given text."""
        return self.model.lm.prompt.template.chain_of_modality

    def say(self, text: str) -> Iterator[Event]:
        """Say a given text as a reply: aloud if replies are spoken and the model can read it, otherwise written."""
        if self.speak and self.reads_aloud:
            yield from self.reply(user_spoke=False, text=text)
            return
        self.add(Turn.assistant(text))
        self._codes = []
        yield TextDelta(text)
        yield ReplyDone("stop")

    def reply(self, user_spoke: bool, text: str | None = None) -> Iterator[Event]:
        """Generate a reply to the turns that were added.

        Args:
            user_spoke: Whether the last turn is speech.
            text: A text to read aloud instead of an answer.
        """
        lm, codec = self.model.lm, self.model.codec
        parser = ReplyParser(lm.prompt, user_spoke, bool(self.tools))
        decoder_state = codec.init_decoder_state(1, in_place=True)
        separator = lm.prompt.text_patches([]) if text is None or self._unanswered else lm.prompt.reply_start()
        self._unanswered, self._codes, reason = False, [], "interrupted"
        self.log.start_turn(LoggedTurn("assistant", user_spoke=user_spoke, separator=separator.text.shape[1]))
        transcript, given = self.style.begin_reply(parser, self.speak and text is None)
        if text is not None:
            parser.write(text)
            given = [lm.prompt.tts_prefix(text)]
        self._append(separator, *given)
        try:
            hidden = self._prefill()
            stop = StopRule(parser, self.max_patches, self.speak, bool(self.state.speech_depth[0]), transcript)
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
            reason = stop.reason
            yield ReplyDone(stop.reason)
        finally:
            self.style.last_answer = parser.text.strip() or self.style.last_answer
            if not parser.ended:
                self._append(lm.prompt.turn_end(speaking=bool(self.state.speech_depth[0])))
            self.log.end_turn(int(self.state.position[0]), reason, {} if text is None else {"text": text})

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
            for step in generate(lm, hidden, self.state, self.sampling, left, constraint, self.steps):
                self.state = step.state
                token, codes = int(step.patches.text), step.patches.codes[:, 0]
                self.log.read(self.log.length)
                self.log.append(step.patches)
                speaking = bool(codes[0, 0, 0] != lm.config.no_speech)
                replacement = stop.advance(token, speaking, log_prob=float(step.log_probs))
                if replacement is not None:
                    self.log.restart_reply(begin, replacement)
                    hidden, self.state = lm.prefill(replacement, rewind(self.state, 0, begin))
                    break
                yield token, codes, speaking
                if stop.reason is not None:
                    break

    def collect(self, events: Iterable[Event]) -> Reply:
        """Combine the events of a reply."""
        reply = collect_reply(events)
        codes = torch.cat([torch.zeros(0, self.model.lm.config.codebooks, dtype=torch.int64), *self._codes])
        return replace(reply, codes=codes.numpy())

    def save(self, path: str | Path, model: str = "") -> None:
        """Write the whole conversation to a file, from which `SpeechGPT.load_conversation` goes on.

        Args:
            path: The file.
            model: The model's name, for people.

        Raises:
            UserError: The file cannot be written.
        """
        header = self.header(Path(path).stem, model)
        write_session(Path(path), [header, *self.settings_entries(), *self.log.turn_blocks()])

    def header(self, id: str, model: str = "") -> Header:
        """Return the first line of the conversation's file."""
        return session_header(id, "chat", model, LOCAL_OWNER, self.model.fingerprints, self.model.lm)

    def settings_entries(self) -> list[Entry]:
        """Return the settings and the system prompt, for the conversation's file."""
        manner = self.style.style, self.style.speed
        settings = ChatSettings.from_sampling(self.speak, self.max_patches, self.tools, self.sampling, *manner)
        return [settings.entry(), self.log.system_block()]

    def restore(self, saved: SavedSession) -> None:
        """Read a saved conversation, in the chunks in which it was read before."""
        self.log = ConversationLog.from_saved(self.model.lm.prompt, saved)
        chunks, rest = read_chunks(saved)
        self._reserve(self.log.length + self.max_patches)
        for chunk in chunks:
            _, self.state = self.model.lm.prefill(chunk, self.state)
        self._pending = [] if rest is None else [rest]
        for turn in saved.remembered:
            self._take_in(turn)

    def append_saved(self, turn: TurnBlock) -> None:
        """Add a turn of a saved conversation, patch for patch, without answering it."""
        layout = turn.user_spoke, turn.separator, turn.speech_offset
        self.log.start_turn(LoggedTurn(turn.role, turn.text, *layout))
        self._append(to_patches(turn.patches))
        self.log.end_turn(int(self.state.position[0]))
        self._take_in(turn)

    def _take_in(self, turn: TurnBlock) -> None:
        """Note what the next reply depends on besides the patches."""
        if turn.role == "assistant":
            self._unanswered, self._transcript = False, None
            self.style.last_answer = turn.text or self.style.last_answer
            self.style.read_turn(HistoryTurn(turn.role, None, None))
        else:
            codes = torch.zeros(0) if turn.user_spoke else None
            self._unanswered, self._transcript = True, turn.text if turn.user_spoke else None
            self.style.read_turn(HistoryTurn(turn.role, turn.text, codes))

    def _prefill(self) -> Tensor:
        """Prefill what is pending. Returns the hidden state after it, `[1, D]`."""
        pending, begin = concat(*self._pending), int(self.state.position[0])
        self._reserve(begin + pending.text.shape[1] + self.max_patches)
        self.log.read(begin)
        hidden, self.state = self.model.lm.prefill(pending, self.state)
        self._pending = []
        return hidden

    def _reserve(self, needed: int) -> None:
        if needed > self.state.stack.capacity:
            self.state = extend_capacity(self.state, needed + GROWTH)

    def _append(self, *parts: Patches) -> None:
        for patches in parts:
            self._pending.append(patches)
            self.log.append(patches)


def _check_length(content: HistoryTurn, prompt: Prompt) -> None:
    spoken = 0 if content.codes is None else len(content.codes) // prompt.config.patch_frames
    patches = max(spoken, len(prompt.encode(content.text or "")))
    if patches > MAX_TURN:
        raise UserError(
            f"a turn of {patches:,} patches is too long: the limit is {MAX_TURN:,}, which are 8 minutes of speech "
            "or as many text tokens"
        )


def _as_reply(prompt: Prompt, content: HistoryTurn, transcript: str | None) -> Patches:
    speech = None if content.codes is None else prompt.align_speech(content.codes, text=content.text)
    return prompt.reply(content.text or "", speech, transcript)
