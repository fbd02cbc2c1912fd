"""The settings of a Realtime session as a client sees them: defaults, validation, partial updates.

config = config.updated({"audio": {"output": {"voice": "…"}}})      # other fields keep their values
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from speechgpt2.server.audio_formats import WireFormat
from speechgpt2.server.schema import WireModel, validate
from speechgpt2.types import SAMPLE_RATE


class AudioFormatConfig(WireModel):
    """An audio format; `rate` applies to PCM only, and a client may omit it."""

    type: WireFormat = "audio/pcm"
    rate: Literal[24000] = SAMPLE_RATE  # type: ignore[assignment]


class ServerVadConfig(WireModel):
    """Turns end after a fixed silence."""

    type: Literal["server_vad"] = "server_vad"
    threshold: float = Field(default=0.5, ge=0, le=1)
    prefix_padding_ms: int = Field(default=300, ge=0, le=5_000)
    silence_duration_ms: int = Field(default=500, ge=0, le=10_000)
    idle_timeout_ms: int | None = Field(default=None, ge=1_000, le=600_000)
    create_response: bool = True
    interrupt_response: bool = True


class SemanticVadConfig(WireModel):
    """Turns end when the model considers them complete, after at most 8, 4 or 2 s of silence."""

    type: Literal["semantic_vad"] = "semantic_vad"
    eagerness: Literal["low", "medium", "high", "auto"] = "auto"
    create_response: bool = True
    interrupt_response: bool = True


class TranscriptionConfig(WireModel):
    """Requests transcripts of the user's speech. The speech model writes them, whichever `model` is named."""

    model: str | None = None
    language: str | None = None
    prompt: str | None = None


class AudioInputConfig(WireModel):
    """Settings of the user's audio. `noise_reduction` is accepted and has no effect."""

    format: AudioFormatConfig = AudioFormatConfig()
    turn_detection: Annotated[ServerVadConfig | SemanticVadConfig, Field(discriminator="type")] | None = (
        ServerVadConfig()
    )
    transcription: TranscriptionConfig | None = None
    noise_reduction: dict[str, Any] | None = None


class AudioOutputConfig(WireModel):
    """Settings of the model's audio. `voice` and `speed` are accepted and have no effect."""

    format: AudioFormatConfig = AudioFormatConfig()
    voice: str | dict[str, Any] = "default"
    speed: float = Field(default=1.0, ge=0.25, le=1.5)


class AudioConfig(WireModel):
    """Settings of the audio in both directions."""

    input: AudioInputConfig = AudioInputConfig()
    output: AudioOutputConfig = AudioOutputConfig()


class FunctionTool(WireModel):
    """A function that the model may call; `parameters` is a JSON schema."""

    type: Literal["function"]
    name: str = Field(min_length=1, max_length=64)
    description: str = ""
    parameters: dict[str, Any] = Field(default_factory=dict)


Modalities = Annotated[list[Literal["text", "audio"]], Field(min_length=1, max_length=2)]
ToolChoice = Literal["none", "auto", "required"] | dict[str, Any]
MaxTokens = Annotated[int, Field(ge=1, le=4096)] | Literal["inf"]
NULLABLE = {"turn_detection", "transcription", "noise_reduction", "idle_timeout_ms"}  # null is a value of these


class SessionConfig(WireModel):
    """All settings of a Realtime session. Settings that the model cannot follow are accepted and returned."""

    type: Literal["realtime"] = "realtime"
    model: str = ""
    instructions: str = Field(default="", max_length=32_768)
    output_modalities: Modalities = Field(default=["audio"])
    audio: AudioConfig = AudioConfig()
    tools: list[FunctionTool] = Field(default_factory=list)
    tool_choice: ToolChoice = "auto"
    max_output_tokens: MaxTokens = "inf"
    include: list[str] | None = None
    tracing: str | dict[str, Any] | None = None
    truncation: str | dict[str, Any] = "auto"
    prompt: dict[str, Any] | None = None

    def updated(self, changes: dict[str, Any], prefix: str = "session") -> SessionConfig:
        """Return a copy with `changes` merged in, at any depth.

        Raises:
            ProtocolError: A field is invalid; its path starts with `prefix`.
        """
        return validate(SessionConfig, merge(self.model_dump(), changes), prefix)

    @field_validator("tool_choice")
    @classmethod
    def _check_tool_choice(cls, choice: ToolChoice, info: ValidationInfo) -> ToolChoice:
        check_tool_choice(choice, [tool.name for tool in info.data.get("tools", ())])
        return choice

    @property
    def require_tool(self) -> bool | str:
        """Whether every response must begin with a tool call; the tool's name if one is required."""
        return tool_name(self.tool_choice) if isinstance(self.tool_choice, dict) else self.tool_choice == "required"

    @property
    def speaks(self) -> bool:
        """Whether responses are spoken."""
        return "audio" in self.output_modalities


def check_tool_choice(choice: ToolChoice, tools: Sequence[str]) -> None:
    """Check that a tool chosen by name exists.

    Raises:
        ValueError: It does not.
    """
    if isinstance(choice, dict) and tool_name(choice) not in tools:
        raise ValueError(f"must name one of the tools, which are {', '.join(tools) or 'none'}")


def tool_name(choice: dict[str, Any]) -> str:
    """Return the chosen function's name, from the form of the Realtime API or of chat completions."""
    function = choice.get("function", choice)
    return str(function.get("name", "")) if isinstance(function, dict) else ""


def merge(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """Merge `new` into `old`, key by key.

    null resets a setting to its default, or is its value if the key is in `NULLABLE`. A mapping with another `type`
    replaces the old mapping, since the settings of one turn detection mean nothing to another.
    """
    merged = dict(old)
    for key, value in new.items():
        before = old.get(key)
        if value is None and key not in NULLABLE:
            merged.pop(key, None)
        elif isinstance(value, dict):
            same = before if isinstance(before, dict) else {}
            merged[key] = merge(same if value.get("type") in (None, same.get("type")) else {}, value)
        else:
            merged[key] = value
    return merged
