"""Conversion of a wire session's settings to those of engine and dialogue."""

from __future__ import annotations

import secrets
from collections.abc import Sequence

from speechgpt2.duplex import protocol
from speechgpt2.duplex.protocol import DialogueSettings, ReplyOptions, SessionSettings
from speechgpt2.server.session_config import SemanticVadConfig, SessionConfig
from speechgpt2.style import NORMAL, parse_style
from speechgpt2.types import Speech, Tool

MAX_SEED = 2**31  # of a session that names none
MAX_PATCHES = SessionSettings().max_patches  # of one response


def session_settings(
    config: SessionConfig,
    system_messages: Sequence[str] = (),
    greeting: Speech | None = None,
    paced: bool = True,
    hosted: Sequence[Tool] = (),
) -> SessionSettings:
    """Return the engine session's settings.

    Args:
        config: The session's settings on the wire.
        system_messages: System items, appended to the instructions.
        greeting: Speech with which the conversation begins.
        paced: Whether speech is generated in real time rather than as fast as possible.
        hosted: Tools that the server runs.
    """
    instructions = "\n".join(filter(None, (config.instructions, *system_messages)))
    temperature = 0.0 if config.only_transcribes else None
    return SessionSettings(
        speak=config.speaks,
        instructions=instructions or None,
        greeting=greeting,
        voice=config.audio.output.voice,
        temperature=temperature if config.temperature is None else config.temperature,
        top_p=config.top_p,
        seed=secrets.randbelow(MAX_SEED) if config.seed is None else config.seed,
        max_patches=_max_patches(config.max_output_tokens),
        paced=paced,
        tools=_tools(config, hosted),
        require_tool=config.require_tool,
        style=parse_style(config.audio.output.style or NORMAL.name),
        speed=config.audio.output.speed,
    )


def dialogue_settings(config: SessionConfig) -> DialogueSettings:
    """Return the settings of turn detection."""
    detection = config.audio.input.turn_detection
    if detection is None:
        return DialogueSettings(turn_detection=None)
    turns: protocol.ServerVad | protocol.SemanticVad
    if isinstance(detection, SemanticVadConfig):
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


def reply_options(
    config: SessionConfig, instructions: str | None = None, hosted: Sequence[Tool] = (), style: str | None = None
) -> ReplyOptions:
    """Return the options of one reply.

    Args:
        config: The reply's settings on the wire.
        instructions: Instructions of its own.
        hosted: Tools that the server runs.
        style: Names of a style of its own.
    """
    return ReplyOptions(
        instructions,
        config.speaks,
        _max_patches(config.max_output_tokens),
        tools=_tools(config, hosted),
        require_tool=config.require_tool,
        style=None if style is None else parse_style(style),
        speed=config.audio.output.speed,
    )


def _tools(config: SessionConfig, hosted: Sequence[Tool]) -> tuple[Tool, ...]:
    if config.tool_choice == "none" or config.only_transcribes:
        return ()
    own = (Tool(tool.name, tool.description, tool.parameters) for tool in config.functions)
    return (*own, *hosted)


def _max_patches(tokens: int | str) -> int:
    return min(MAX_PATCHES, tokens) if isinstance(tokens, int) else MAX_PATCHES
