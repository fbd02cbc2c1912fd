"""Writes a session's memory as the entries of a saved session: those parts that are new or have changed.

A session is written once nothing in it can be rolled back. The context as it was before the latest reply is kept until
then and written first, so that replay can generate the reply from exactly what precedes it in the file.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np

from speechgpt2 import config
from speechgpt2.conversation import reply_content, to_patches
from speechgpt2.duplex.protocol import ReplyOptions, SessionSettings
from speechgpt2.engine.context import Span
from speechgpt2.engine.history import History
from speechgpt2.engine.reply_styles import ReplyStyles, StyleState
from speechgpt2.engine.truncation import speech_patches
from speechgpt2.sessions.entries import (
    EntryWriter,
    PatchBlock,
    Removed,
    ReplyInfo,
    SavedSession,
    Settings,
    SystemBlock,
    TurnBlock,
    digest,
)
from speechgpt2.style import Style
from speechgpt2.types import Speech, Tool


@dataclass(frozen=True)
class Snapshot:
    """What a session remembers at one time: settings, system prompt, and turns by number with the patches of each."""

    settings: dict[str, Any]
    system: SystemBlock
    turns: dict[int, tuple[Span, PatchBlock]]
    forgotten: frozenset[int]


class SessionRecorder:
    """Saves one session of the engine. For the engine's thread.

    Args:
        history: The session's memory.
        styles: The styles that the user asks for.
        writer: Receives the entries, and must not block. None: nothing is saved.
        saved: What the session's file holds already.
    """

    def __init__(
        self, history: History, styles: ReplyStyles, writer: EntryWriter | None, saved: SavedSession | None = None
    ):
        self._history, self._styles, self._writer = history, styles, writer
        self._settings = saved.settings if saved is not None else None
        self._system = saved.system if saved is not None else None
        self._turns = {turn.number: turn.patches for turn in saved.remembered} if saved is not None else {}
        turns = saved.turns.values() if saved is not None else ()
        self._replies = {turn.number: replace(turn.reply, generated=None) for turn in turns if turn.reply is not None}
        self._cut = {number for number, info in self._replies.items() if info.played is not None}
        self._generated: dict[int, PatchBlock] = {}  # cut replies as generated, which the file does not have yet
        self._before: Snapshot | None = None  # what the session remembered before the latest reply

    def reply_started(self, number: int, options: ReplyOptions, settings: SessionSettings, styles: StyleState) -> None:
        """A reply is about to be generated from what the context holds; `styles`: those asked for before it."""
        if self._writer is None:
            return
        span = self._history.last
        assert span is not None
        self._before = self._snapshot(settings, styles, number)
        context = digest(self._history.context.patch_block(0, span.start))
        self._replies[number] = ReplyInfo(options_to_dict(options), "interrupted", context)

    def reply_ended(self, number: int, reason: str) -> None:
        """A reply is complete."""
        if number in self._replies:
            self._replies[number] = replace(self._replies[number], reason=reason)

    def reply_cut(self, span: Span) -> None:
        """A reply is about to be cut to what was played."""
        if span.number in self._replies:
            self._cut.add(span.number)
            if span.number not in self._turns and span.number not in self._generated:
                self._generated[span.number] = self._history.context.patch_block(span.start, span.stop)

    def record_rollback(self) -> None:
        """The latest reply was rolled back, and leaves no trace."""
        self._before = None

    def record_deletion(self, number: int) -> None:
        """A turn was deleted. `save` finds that by itself, except for a turn that was forgotten before."""
        if self._writer is not None and number not in self._turns:
            self._writer.write(Removed((number,), True))

    def save(self, settings: SessionSettings, unfinished: int | None = None) -> None:
        """Write what is new, without the turn `unfinished`."""
        if self._writer is None:
            return
        before, self._before = self._before, None
        if before is not None:
            self._write_changes(before, self._writer)
        self._write_changes(self._snapshot(settings, self._styles.state(settings), unfinished), self._writer)

    def _snapshot(self, settings: SessionSettings, styles: StyleState, unfinished: int | None) -> Snapshot:
        context = self._history.context
        system = SystemBlock(self._history.system.mode, context.patch_block(0, context.system_length))
        spans = (replace(span) for span in context.spans if span.number != unfinished)
        turns = {span.number: (span, context.patch_block(span.start, span.stop)) for span in spans}
        values = {**settings_to_dict(settings), "styles": styles_to_dict(styles)}
        return Snapshot(values, system, turns, frozenset(context.forgotten))

    def _write_changes(self, now: Snapshot, writer: EntryWriter) -> None:
        new = {number: turn for number, turn in now.turns.items() if number not in self._turns}
        changed = {number: turn for number, turn in now.turns.items() if number in self._turns}
        # New turns first: a reply follows what stood before it when it was generated.
        for number, (span, block) in [*new.items(), *changed.items()]:
            if number in new or not self._turns[number].same(block):
                self._turns[number] = block
                writer.write(self._turn(span, block))
                self._generated.pop(number, None)
        if now.settings != self._settings:
            self._settings = now.settings
            writer.write(Settings(now.settings))
        if self._system is None or not self._system.same(now.system):
            self._system = now.system
            writer.write(now.system)
        gone = {number for number in self._turns if number not in now.turns}
        for numbers, deleted in ((gone - now.forgotten, True), (gone & now.forgotten, False)):
            if numbers:
                writer.write(Removed(tuple(sorted(numbers)), deleted))
        for number in gone:
            del self._turns[number]

    def _turn(self, span: Span, block: PatchBlock) -> TurnBlock:
        text, content, info = span.text, None, self._replies.get(span.number)
        if span.role == "assistant":
            body = to_patches(block.part(span.separator, len(block.text)))
            content = reply_content(self._history.prompt, body, span.user_spoke)
            if info is not None:
                info = replace(
                    info,
                    played=speech_patches(self._history.prompt, body) if span.number in self._cut else None,
                    generated=self._generated.get(span.number),
                    answer=None if span.answer == content.text else span.answer,
                    rate=span.rate,
                )
        return TurnBlock(
            number=span.number,
            role=span.role,
            patches=block,
            separator=span.separator,
            speech_offset=span.speech_offset,
            user_spoke=span.user_spoke,
            text=text if content is None or info is None else content.text,
            transcript=None if content is None else content.transcript,
            calls=() if content is None else content.calls,
            at=round(time.time(), 3),
            reply=info,
        )


def restore_session(saved: SavedSession, settings: SessionSettings, history: History, styles: ReplyStyles) -> None:
    """Resume a saved session.

    Args:
        saved: The saved session.
        settings: The settings of the resumed session.
        history: Its memory, which is replaced.
        styles: The styles that the user asks for, which are replaced.

    Raises:
        UserError: It does not fit into the context, or has no system prompt.
    """
    history.restore(saved, settings)
    styles.restore(styles_from_dict(saved.settings.get("styles", {})))


# settings as JSON


def settings_to_dict(settings: SessionSettings) -> dict[str, Any]:
    """Return settings as a JSON object. A greeting is encoded already, and has no samples."""
    values = {field.name: getattr(settings, field.name) for field in fields(settings)}
    values["tools"] = [asdict(tool) for tool in settings.tools]
    values["style"] = config.to_dict(settings.style)
    if (greeting := settings.greeting) is not None:
        codes, tokens = np.asarray(greeting.codes), greeting.tokens
        values["greeting"] = {"codes": codes.tolist(), "text": greeting.text, "tokens": tokens and list(tokens)}
    return values


def settings_from_dict(values: dict[str, Any]) -> SessionSettings:
    """Return the settings of a JSON object. What it holds as "styles" is for `styles_from_dict`."""
    values = {name: value for name, value in values.items() if name != "styles"}
    values["tools"] = tuple(Tool(**tool) for tool in values["tools"])
    values["style"] = config.from_dict(Style, values["style"])
    if (greeting := values["greeting"]) is not None:
        tokens = greeting["tokens"]
        codes = np.array(greeting["codes"], np.int64)
        values["greeting"] = Speech(codes=codes, text=greeting["text"], tokens=tokens and tuple(tokens))
    return SessionSettings(**values)


def styles_to_dict(styles: StyleState) -> dict[str, Any]:
    """Return the styles that the user asked for as a JSON object."""
    return {name: None if style is None else config.to_dict(style) for name, style in styles._asdict().items()}


def styles_from_dict(values: dict[str, Any]) -> StyleState:
    """Return the styles of a JSON object."""
    return StyleState(**{name: style and config.from_dict(Style, style) for name, style in values.items()})


def options_to_dict(options: ReplyOptions) -> dict[str, Any]:
    """Return those options as a JSON object that differ from the settings."""
    values = {field.name: getattr(options, field.name) for field in fields(options)}
    if options.tools is not None:
        values["tools"] = [asdict(tool) for tool in options.tools]
    if options.style is not None:
        values["style"] = config.to_dict(options.style)
    return {name: value for name, value in values.items() if value is not None}


def options_from_dict(values: dict[str, Any]) -> ReplyOptions:
    """Return the options of a JSON object."""
    tools, style = values.get("tools"), values.get("style")
    tools = None if tools is None else tuple(Tool(**tool) for tool in tools)
    return ReplyOptions(**{**values, "tools": tools, "style": style and config.from_dict(Style, style)})
