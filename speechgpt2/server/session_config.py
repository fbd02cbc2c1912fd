"""The settings of a Realtime session as a client sees them: defaults, validation, partial updates.

config = config.updated({"audio": {"output": {"voice": "…"}}})      # other fields keep their values
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo, field_validator

from speechgpt2.duplex.protocol import Engine
from speechgpt2.errors import UserError
from speechgpt2.server.audio_formats import WireFormat
from speechgpt2.server.mcp_config import McpTool
from speechgpt2.server.schema import NoEffect, ProtocolError, WireModel, ineffective, shorten, validate
from speechgpt2.style import FASTEST, SLOWEST, parse_style
from speechgpt2.types import SAMPLE_RATE


class AudioFormatConfig(WireModel):
    """An audio format. `rate` applies to PCM only: 24 kHz, or that of telephony and of many microphones."""

    type: Literal["audio/pcm", "audio/pcmu", "audio/pcma"] = "audio/pcm"
    rate: Literal[24000, 16000, 8000] = SAMPLE_RATE  # type: ignore[assignment]

    @property
    def wire(self) -> WireFormat:
        """The format with its rate."""
        narrow = self.type == "audio/pcm" and self.rate != SAMPLE_RATE
        return f"audio/pcm;rate={self.rate}" if narrow else self.type  # type: ignore[return-value]


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
    language: Annotated[str | None, NoEffect("the model recognises the language itself")] = None
    prompt: Annotated[str | None, NoEffect("transcription has no prompt")] = None


class AudioInputConfig(WireModel):
    """Settings of the user's audio."""

    format: AudioFormatConfig = AudioFormatConfig()
    turn_detection: Annotated[ServerVadConfig | SemanticVadConfig, Field(discriminator="type")] | None = (
        ServerVadConfig()
    )
    transcription: TranscriptionConfig | None = None
    noise_reduction: Annotated[dict[str, Any] | None, NoEffect("the audio is taken as it is")] = None


def _voice_name(value: Any) -> Any:
    """Return the name in OpenAI's form of a custom voice, `{"id": …}`."""
    return value.get("id") if isinstance(value, dict) else value


DEFAULT_VOICE = "default"  # the voice of a model that offers none to choose from
VoiceName = Annotated[str, BeforeValidator(_voice_name), Field(min_length=1)]


def _style_names(names: str) -> str:
    try:
        parse_style(names)
    except UserError as error:
        raise ValueError(str(error)) from None
    return names


StyleNames = Annotated[str, AfterValidator(_style_names)]
AnySpeed = Annotated[float, Field(ge=SLOWEST, le=FASTEST)]  # the limits are OpenAI's
Speed = Annotated[float, Field(ge=SLOWEST, le=1.5)]  # of a session


class AudioOutputConfig(WireModel):
    """Settings of the model's audio. `style` is an extension: named styles, with commas between them."""

    format: AudioFormatConfig = AudioFormatConfig()
    voice: VoiceName = DEFAULT_VOICE
    speed: Speed = 1.0
    style: StyleNames | None = None


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
Temperature = Annotated[float, Field(ge=0, le=2)]
TopP = Annotated[float, Field(gt=0, le=1)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
MaxTokens = Annotated[int, Field(ge=1, le=4096)] | Literal["inf"]
BETA_FIELDS = {
    "modalities": "output_modalities",
    "voice": "audio.output.voice",
    "speed": "audio.output.speed",
    "output_audio_format": "audio.output.format",
    "input_audio_format": "audio.input.format",
    "input_audio_transcription": "audio.input.transcription",
    "input_audio_noise_reduction": "audio.input.noise_reduction",
    "turn_detection": "audio.input.turn_detection",
    "max_response_output_tokens": "max_output_tokens",
}
NULLABLE = {"turn_detection", "transcription", "noise_reduction", "idle_timeout_ms"}  # null is a value of these


class SessionConfig(WireModel):
    """All settings of a session. One of type "transcription" writes down what the user says, and never responds.

    `model` is the served one, whatever a client names. `temperature`, `top_p`, `seed` and `persona` are extensions.
    """

    type: Literal["realtime", "transcription"] = "realtime"
    model: str = ""
    persona: str | None = None
    instructions: str = Field(default="", max_length=32_768)
    output_modalities: Modalities = Field(default=["audio"])
    audio: AudioConfig = AudioConfig()
    tools: list[Annotated[FunctionTool | McpTool, Field(discriminator="type")]] = Field(default_factory=list)
    tool_choice: ToolChoice = "auto"
    max_output_tokens: MaxTokens = "inf"
    temperature: Temperature | None = None
    top_p: TopP | None = None
    seed: Seed | None = None
    include: Annotated[list[str] | None, NoEffect("there are no log probabilities")] = None
    tracing: Annotated[str | dict[str, Any] | None, NoEffect("the settings of the server decide what is traced")] = None
    truncation: Annotated[str | dict[str, Any], NoEffect("the oldest turns are forgotten first")] = "auto"
    prompt: Annotated[dict[str, Any] | None, NoEffect("this server stores no prompts")] = None

    def updated(self, changes: dict[str, Any], prefix: str = "session") -> SessionConfig:
        """Return a copy with `changes` merged in, at any depth.

        Raises:
            ProtocolError: A field is invalid, or belongs to the beta protocol; its path starts with `prefix`.
        """
        refuse_beta_fields(changes, prefix)
        return validate(SessionConfig, merge(self.model_dump(), {**changes, "model": self.model}), prefix)

    def with_voice(self, voice: str) -> SessionConfig:
        """Return a copy with another voice."""
        return self._with_output(voice=voice)

    def with_delivery(self, speed: float | None, style: str | None) -> SessionConfig:
        """Return a copy with another speed and style; None leaves them as they are."""
        changes = {"speed": speed, "style": style}
        return self._with_output(**{key: value for key, value in changes.items() if value is not None})

    def _with_output(self, **changes: Any) -> SessionConfig:
        output = self.audio.output.model_copy(update=changes)
        return self.model_copy(update={"audio": self.audio.model_copy(update={"output": output})})

    @field_validator("tool_choice")
    @classmethod
    def _check_tool_choice(cls, choice: ToolChoice, info: ValidationInfo) -> ToolChoice:
        check_tool_choice(choice, [tool.name for tool in info.data.get("tools", ()) if isinstance(tool, FunctionTool)])
        return choice

    @property
    def functions(self) -> list[FunctionTool]:
        """The tools that the client runs."""
        return [tool for tool in self.tools if isinstance(tool, FunctionTool)]

    @property
    def mcp_servers(self) -> list[McpTool]:
        """The MCP servers that this server asks for the client."""
        return [tool for tool in self.tools if isinstance(tool, McpTool)]

    @property
    def require_tool(self) -> bool | str:
        """Whether every response must begin with a tool call; the tool's name if one is required."""
        if isinstance(self.tool_choice, dict):
            return tool_name(self.tool_choice) or True
        return self.tool_choice == "required"

    @property
    def speaks(self) -> bool:
        """Whether responses are spoken."""
        return "audio" in self.output_modalities and not self.only_transcribes

    @property
    def only_transcribes(self) -> bool:
        """Whether the session has no responses."""
        return self.type == "transcription"


def ineffective_settings(config: SessionConfig, changes: Mapping[str, Any], path: str = "session") -> list[str]:
    """List the settings among a client's `changes`, merged into `config` already, that change nothing."""
    named = {key: value for key, value in changes.items() if key != "model"}
    return [*ineffective(config, named, path), *other_model(config.model, changes.get("model"), f"{path}.model")]


def other_model(served: str, named: Any, path: str = "model") -> list[str]:
    """Return a warning if a client names another model than the served one."""
    return [] if named in (None, "", served) else [f"{path} has no effect: {served} responds, not {shorten(named)}"]


def unused_tools(engine: Engine, changes: Mapping[str, Any], path: str = "session.tools") -> list[str]:
    """Return a warning if a client names tools and the model was not trained to call any."""
    if not changes.get("tools") or engine.calls_tools:
        return []
    return [f"{path} has no effect: the model was not trained to call tools"]


def refuse_beta_fields(values: Any, prefix: str) -> None:
    """Raise `ProtocolError` for a setting of the beta protocol, with the name that it has now."""
    for old, new in BETA_FIELDS.items() if isinstance(values, dict) else ():
        if old in values:
            text = f"{prefix}.{old} belongs to the beta of the protocol; it is {prefix}.{new} now."
            raise ProtocolError(text, "unknown_parameter", f"{prefix}.{old}")


def check_tool_choice(choice: ToolChoice, tools: Sequence[str]) -> None:
    """Check that a tool chosen by name exists. Those of MCP servers are known later.

    Raises:
        ValueError: It does not.
    """
    if isinstance(choice, dict) and choice.get("type") != "mcp" and tool_name(choice) not in tools:
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
