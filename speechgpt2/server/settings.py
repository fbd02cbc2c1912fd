"""A wire session's settings in the words of engine and dialogue."""

from __future__ import annotations

from collections.abc import Sequence

from speechgpt2.duplex import protocol
from speechgpt2.duplex.protocol import DialogueSettings, ReplyOptions, SessionSettings
from speechgpt2.server import wire
from speechgpt2.types import Speech, Tool

LONGEST = SessionSettings().max_patches  # of one answer


def of_session(
    session: wire.Session, notes: Sequence[str] = (), greeting: Speech | None = None, paced: bool = True
) -> SessionSettings:
    """How the model speaks. `notes`: system messages that came later."""
    instructions = "\n".join(filter(None, (session.instructions, *notes)))
    return SessionSettings(
        speak=session.speaks,
        instructions=instructions or None,
        greeting=greeting,
        max_patches=_patches(session.max_output_tokens),
        paced=paced,
        tools=_tools(session),
        require_tool=session.require_tool,
    )


def of_dialogue(session: wire.Session) -> DialogueSettings:
    """How turns are taken."""
    detection = session.audio.input.turn_detection
    if detection is None:
        return DialogueSettings(turn_detection=None)
    turns: protocol.ServerVad | protocol.SemanticVad
    if isinstance(detection, wire.SemanticVad):
        turns = protocol.SemanticVad(detection.eagerness, detection.create_response, detection.interrupt_response)
    else:
        turns = protocol.ServerVad(
            detection.threshold,
            detection.prefix_padding_ms,
            detection.silence_duration_ms,
            detection.idle_timeout_ms,
            detection.create_response,
            detection.interrupt_response,
        )
    return DialogueSettings(turn_detection=turns)


def of_reply(session: wire.Session, instructions: str | None = None) -> ReplyOptions:
    """One answer, where it differs; `instructions` of its own."""
    most, tools = _patches(session.max_output_tokens), _tools(session)
    return ReplyOptions(instructions, session.speaks, most, tools=tools, require_tool=session.require_tool)


def _tools(session: wire.Session) -> tuple[Tool, ...]:
    """Those that the model is told of."""
    told = () if session.tool_choice == "none" else session.tools
    return tuple(Tool(tool.name, tool.description, tool.parameters) for tool in told)


def _patches(tokens: int | str) -> int:
    return min(LONGEST, tokens) if isinstance(tokens, int) else LONGEST
