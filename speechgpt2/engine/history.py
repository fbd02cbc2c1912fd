"""The memory of a session: its system prompt and the turns so far, laid out in a `context.Context`."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from speechgpt2.conversation import HistoryTurn
from speechgpt2.duplex.protocol import ReplyOptions, SessionSettings
from speechgpt2.engine.context import Context, Span
from speechgpt2.engine.system_prompt import SESSION_DEFAULTS, SystemPrompt
from speechgpt2.engine.truncation import speech_patches, truncated_reply
from speechgpt2.lm.prompt import Prompt
from speechgpt2.lm.style_request import request_in
from speechgpt2.sessions.entries import SavedSession, TurnBlock
from speechgpt2.style_requests import StyleRequest
from speechgpt2.types import Mode, Patches

UNKNOWN_INSTRUCTIONS = "\0"  # differs from all real ones, so the prompt is replaced at the next turn


class History:
    """The memory of one session.

    Args:
        prompt: The model's prompt layout.
        capacity: Most patches that the session remembers.
        prefill_chunk_size: Most patches of one prefill chunk.
        settings: The session's settings.

    Attributes:
        transcript: The transcript of the user's last speech, where it is known.
        typed: The text of the last turn that was typed.
    """

    def __init__(self, prompt: Prompt, capacity: int, prefill_chunk_size: int, settings: SessionSettings):
        self.prompt = prompt
        self.transcript: str | None = None
        self.typed = ""
        self._request: StyleRequest | None = None  # in the last turn that was typed
        self.system = SystemPrompt.from_settings(prompt, settings, "s2s" if settings.speak else "s2t")
        self.context = Context(prompt, capacity, prefill_chunk_size, self.system.render(prompt))

    @property
    def last(self) -> Span | None:
        """The last turn."""
        return self.context.spans[-1] if self.context.spans else None

    @property
    def ends_with_user_speech(self) -> bool:
        """Whether the last turn is the user's speech. The reply to it may begin with a transcript."""
        return self.last is not None and self.last.role == "user" and self.last.user_spoke

    @property
    def ends_with_reply(self) -> bool:
        """Whether the last turn is a reply."""
        return self.last is not None and self.last.role == "assistant"

    # the user's speech

    def start_user_speech(self, number: int) -> None:
        """Begin a spoken turn of the user."""
        start = self.prompt.user_speech_start()
        self.context.add(number, "user", start, user_spoke=True, speech_offset=start.text.shape[1])
        self.transcript = self._request = None

    def extend_user_speech(self, codes: Tensor, final: bool) -> int:
        """Add `codes [T, K]` to the user's spoken turn. The `final` ones end it.

        Returns:
            The number of patches added.
        """
        patches = self.prompt.user_speech_end(codes) if final else self.prompt.speech_patches(codes)
        self.context.extend(patches)
        self.context.drop_old_turns()
        return patches.text.shape[1]

    def reopen_user_speech(self, tail: int) -> None:
        """Undo the end of the spoken turn, its last `tail` patches."""
        if tail:
            self.context.remove_tail(self.context.spans[-1], tail)

    # turns

    def add_turn(self, number: int, turn: HistoryTurn, settings: SessionSettings) -> None:
        """Add a whole turn."""
        if turn.role == "assistant":
            transcript = self.transcript if self.ends_with_user_speech else None
            speech = None if turn.codes is None else self.prompt.align_speech(turn.codes, text=turn.text)
            patches = self.prompt.reply(turn.text or "", speech, transcript)
            spoken = transcript is not None
            span = self.context.add(number, "assistant", patches, user_spoke=spoken, text=turn.text)
            span.answer = turn.text or ""
        elif turn.codes is not None:
            offset, patches = self.prompt.user_speech_start().text.shape[1], self.prompt.user_speech(turn.codes)
            self.context.add(number, "user", patches, user_spoke=True, speech_offset=offset, text=turn.text)
            self.transcript, self._request = turn.text, None
        else:
            patches = self.prompt.user_text(self._read_request(turn, settings))
            self.context.add(number, turn.role, patches, text=turn.text)
        self.context.drop_old_turns()
        if turn.role == "user":
            self.update_system_prompt(settings)

    def _read_request(self, turn: HistoryTurn, settings: SessionSettings) -> str:
        """Look for a request for a style; returns the turn's text without it."""
        self.typed = turn.text or ""
        asked = turn.role == "user" and settings.speak
        self._request = request_in(self.prompt, self.typed) if asked else None
        return self._request.rest if self._request is not None and self._request.rest else self.typed

    @property
    def request(self) -> StyleRequest | None:
        """The style that the last turn asks for, if it is a typed one of the user."""
        return self._request if self.last is not None and self.last.role == "user" else None

    @property
    def last_answer(self) -> str:
        """The text of the last reply that had words."""
        return next((span.answer for span in reversed(self.context.spans) if span.answer), "")

    def delete(self, number: int) -> None:
        """Remove a turn, if it is still remembered."""
        if (span := self.context.find(number)) is not None:
            self.context.remove(span)

    def delete_last(self) -> None:
        """Remove the last turn."""
        self.context.remove(self.context.spans[-1])

    # replies

    def start_reply(self, number: int, start: Patches, user_spoke: bool) -> None:
        """Begin a reply with the patches `start [1, P]`."""
        self.context.drop_old_turns()
        self.context.add(number, "assistant", start, user_spoke=user_spoke)

    def extend_reply(self, patch: Patches) -> None:
        """Add a generated patch `[1, 1]`, which the model's row has already read."""
        self.context.extend(patch, prefilled=True)

    def restart_reply(self, patches: Patches) -> None:
        """Replace the reply in progress by `patches [1, P]`."""
        self.context.replace(self.context.spans[-1], patches)

    def end_reply(self, speaking: bool) -> None:
        """Close a reply that the model did not end."""
        self.context.extend(self.prompt.turn_end(speaking))

    def truncate_reply(self, span: Span, played_patches: int) -> None:
        """Keep only the first `played_patches` of a reply's speech: barge-in cuts memory here."""
        truncated = truncated_reply(self.prompt, self._body(span), span.user_spoke, played_patches)
        if truncated is None:
            self.context.remove(span)
        else:
            self.context.replace(span, truncated)

    def speech_length(self, span: Span) -> int:
        """Patches of speech in a reply."""
        return speech_patches(self.prompt, self._body(span))

    # saved sessions

    def restore(self, saved: SavedSession, settings: SessionSettings) -> None:
        """Replace everything by what a saved session remembers, patch for patch.

        Args:
            saved: The saved session.
            settings: The session's settings.

        Raises:
            UserError: It does not fit into the context, or has no system prompt.
        """
        system_length = 0 if saved.system is None else len(saved.system.patches.text)
        spans, position = [], system_length
        for turn in saved.remembered:
            span = Span(
                number=turn.number,
                role=turn.role,
                start=position,
                stop=position + len(turn.patches.text),
                separator=turn.separator,
                user_spoke=turn.user_spoke,
                speech_offset=turn.speech_offset,
                rate=1.0 if turn.reply is None else turn.reply.rate,
                answer=_answer_of(turn),
                text=turn.text if turn.reply is None else None,
            )
            spans.append(span)
            position = span.stop
        self.context.restore(saved.context, system_length, spans)
        self.transcript = next(
            (turn.transcript or turn.text for turn in saved.remembered[-1:] if turn.user_spoke), None
        )
        self._restore_request(saved, settings)
        assert saved.system is not None  # or there would be no context
        system = self.system._replace(mode=saved.system.mode)  # type: ignore[arg-type]
        rendered, patches = system.render(self.prompt), saved.system.patches
        same = np.array_equal(rendered.text[0], patches.text) and np.array_equal(rendered.codes[0], patches.codes)
        # The saved prompt may hold instructions that the settings do not give, such as those of a single reply.
        self.system = system if same else system._replace(instructions=UNKNOWN_INSTRUCTIONS)

    def _restore_request(self, saved: SavedSession, settings: SessionSettings) -> None:
        """Look again for a request in a typed turn that is not answered yet."""
        self._request = None
        for turn in saved.remembered[-1:]:
            if turn.role != "assistant" and not turn.user_spoke:
                self._read_request(HistoryTurn(turn.role, turn.text, None), settings)

    # the system prompt

    def update_system_prompt(
        self,
        settings: SessionSettings,
        speak: bool | None = None,
        read_aloud: bool = False,
        options: ReplyOptions = SESSION_DEFAULTS,
    ) -> None:
        """Update the system prompt to the modality of the user's last turn and of the answer.

        Args:
            settings: The session's settings.
            speak: Whether the answer is spoken; None: as in the settings.
            read_aloud: Whether the answer reads a given text; the request then counts as typed.
            options: A reply's own instructions and tools, in force until the next turn.
        """
        users = [span for span in self.context.spans[-2:] if span.role == "user"]  # the last turn may be a reply
        user_spoke = users[-1].user_spoke if users else (self.system.mode[0] == "s" and not read_aloud)
        speak = settings.speak if speak is None else speak
        mode: Mode = f"{'s' if user_spoke else 't'}2{'s' if speak else 't'}"  # type: ignore[assignment]
        system = SystemPrompt.from_settings(self.prompt, settings, mode, options)
        if not system.same(self.system):
            self.context.set_system_prompt(system.render(self.prompt))
            self.system = system

    def _body(self, span: Span) -> Patches:
        return self.context.patches(span.body_start, span.stop)


def _answer_of(turn: TurnBlock) -> str:
    if turn.role != "assistant":
        return ""
    whole = None if turn.reply is None else turn.reply.answer
    return (turn.text if whole is None else whole) or ""
