"""What a client may send, checked: the messages of the OpenAI Realtime protocol and the settings of a session.

    message = wire.parse(text)             # -> Append, Commit, ItemCreate, …; raises WireError that names the field
    session = session.updated({"audio": {"output": {"voice": "…"}}})       # what is not mentioned stays as it was

Unknown fields are ignored, as clients of newer versions send them; a known field with a bad value is an error.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from speechgpt2.server.formats import Format
from speechgpt2.types import SAMPLE_RATE


class WireError(Exception):
    """What the client asked cannot be done: becomes the protocol's `error`, and the session lives on."""

    def __init__(self, message: str, code: str = "invalid_value", param: str | None = None):
        super().__init__(message)
        self.code, self.param = code, param


class Message(BaseModel):
    """Base of everything a client sends."""

    model_config = ConfigDict(extra="ignore", strict=True, frozen=True)


# a session's settings


class AudioFormat(Message):
    type: Format = "audio/pcm"
    rate: Literal[24000] = SAMPLE_RATE  # type: ignore[assignment]  # of PCM only; a client may leave it out


class ServerVad(Message):
    """Turns end after some silence."""

    type: Literal["server_vad"] = "server_vad"
    threshold: float = Field(default=0.5, ge=0, le=1)
    prefix_padding_ms: int = Field(default=300, ge=0, le=5_000)
    silence_duration_ms: int = Field(default=500, ge=0, le=10_000)
    idle_timeout_ms: int | None = Field(default=None, ge=1_000, le=600_000)
    create_response: bool = True
    interrupt_response: bool = True


class SemanticVad(Message):
    """Turns end when the model thinks so, at the latest after 8, 4 or 2 s of silence."""

    type: Literal["semantic_vad"] = "semantic_vad"
    eagerness: Literal["low", "medium", "high", "auto"] = "auto"
    create_response: bool = True
    interrupt_response: bool = True


class Transcription(Message):
    """Whether the client wants to know what was heard; the model itself tells, whichever is named."""

    model: str | None = None
    language: str | None = None
    prompt: str | None = None


class AudioInput(Message):
    format: AudioFormat = AudioFormat()
    turn_detection: Annotated[ServerVad | SemanticVad, Field(discriminator="type")] | None = ServerVad()
    transcription: Transcription | None = None
    noise_reduction: dict[str, Any] | None = None  # accepted, not done


class AudioOutput(Message):
    format: AudioFormat = AudioFormat()
    voice: str | dict[str, Any] = "default"
    speed: float = Field(default=1.0, ge=0.25, le=1.5)  # accepted and shown; the model speaks as it speaks


class Audio(Message):
    input: AudioInput = AudioInput()
    output: AudioOutput = AudioOutput()


class Tool(Message):
    """A function that the model may call; `parameters` is a JSON schema."""

    type: Literal["function"]
    name: str = Field(min_length=1, max_length=64)
    description: str = ""
    parameters: dict[str, Any] = {}


Modalities = Annotated[list[Literal["text", "audio"]], Field(min_length=1, max_length=2)]
ToolChoice = Literal["none", "auto", "required"] | dict[str, Any]
MaxTokens = Annotated[int, Field(ge=1, le=4096)] | Literal["inf"]
KEPT_NULL = {"turn_detection", "transcription", "noise_reduction", "idle_timeout_ms"}  # where null is a value


class Session(Message):
    """All settings of a session. What the model cannot do is accepted and shown, so that clients go on."""

    type: Literal["realtime"] = "realtime"
    model: str = ""
    instructions: str = Field(default="", max_length=32_768)
    output_modalities: Modalities = ["audio"]
    audio: Audio = Audio()
    tools: list[Tool] = []
    tool_choice: ToolChoice = "auto"
    max_output_tokens: MaxTokens = "inf"
    include: list[str] | None = None
    tracing: str | dict[str, Any] | None = None
    truncation: str | dict[str, Any] = "auto"
    prompt: dict[str, Any] | None = None

    def updated(self, changes: dict[str, Any], where: str = "session") -> Session:
        """These settings with `changes` merged in, however deep. Errors: `WireError` naming the field."""
        return checked(Session, merge(self.model_dump(), changes), where)

    @field_validator("tool_choice")
    @classmethod
    def _known(cls, choice: ToolChoice, info: ValidationInfo) -> ToolChoice:
        check_choice(choice, [tool.name for tool in info.data.get("tools", ())])
        return choice

    @property
    def require_tool(self) -> bool | str:
        """Whether answers begin with a call of a tool, and of which if it matters."""
        return name_of(self.tool_choice) if isinstance(self.tool_choice, dict) else self.tool_choice == "required"

    @property
    def speaks(self) -> bool:
        """Whether answers are spoken."""
        return "audio" in self.output_modalities


def check_choice(choice: ToolChoice, tools: Sequence[str]) -> None:
    """Errors: ValueError unless a tool that is chosen by name is among `tools`."""
    if isinstance(choice, dict) and name_of(choice) not in tools:
        raise ValueError(f"must name one of the tools, which are {', '.join(tools) or 'none'}")


def name_of(choice: dict[str, Any]) -> str:
    """The function that is chosen, in the form of the Realtime API or of chat completions."""
    function = choice.get("function", choice)
    return str(function.get("name", "")) if isinstance(function, dict) else ""


def merge(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """`new` over `old`, key by key; null takes a setting back to its default, or is a value where it can be one.

    A mapping of another `type` replaces the old one: the settings of one turn detection mean nothing to another.
    """
    merged = dict(old)
    for key, value in new.items():
        before = old.get(key)
        if value is None and key not in KEPT_NULL:
            merged.pop(key, None)
        elif isinstance(value, dict):
            own = before if isinstance(before, dict) else {}
            merged[key] = merge(own if value.get("type") in (None, own.get("type")) else {}, value)
        else:
            merged[key] = value
    return merged


# items of the conversation


class Content(Message):
    type: Literal["input_text", "input_audio", "output_text", "output_audio", "text"]
    text: str | None = None
    audio: str | None = None  # base64, in the session's input format
    transcript: str | None = None


class MessageItem(Message):
    type: Literal["message"]
    role: Literal["user", "assistant", "system"]
    content: list[Content] = Field(min_length=1)
    id: str | None = Field(default=None, min_length=1, max_length=64)


class FunctionCall(Message):
    type: Literal["function_call"]
    name: str
    arguments: str
    call_id: str | None = None
    id: str | None = Field(default=None, min_length=1, max_length=64)


class FunctionCallOutput(Message):
    type: Literal["function_call_output"]
    call_id: str
    output: str
    id: str | None = Field(default=None, min_length=1, max_length=64)


ClientItem = Annotated[MessageItem | FunctionCall | FunctionCallOutput, Field(discriminator="type")]


# messages


class SessionUpdate(Message):
    session: dict[str, Any]


class Append(Message):
    audio: str


class Commit(Message):
    pass


class Clear(Message):
    pass


class ItemCreate(Message):
    item: ClientItem
    previous_item_id: str | None = None


class ItemTruncate(Message):
    item_id: str
    content_index: int = 0
    audio_end_ms: int


class ItemDelete(Message):
    item_id: str


class ItemRetrieve(Message):
    item_id: str


class ResponseAudio(Message):
    output: dict[str, Any] | None = None


class ResponseSettings(Message):
    """What a single answer does differently."""

    conversation: Literal["auto", "none"] = "auto"
    metadata: dict[str, str] | None = None
    instructions: str | None = None
    output_modalities: Modalities | None = None
    audio: ResponseAudio | None = None
    max_output_tokens: MaxTokens | None = None
    tools: list[Tool] | None = None
    tool_choice: ToolChoice | None = None
    input: list[dict[str, Any]] | None = None


class ResponseCreate(Message):
    response: ResponseSettings | None = None


class ResponseCancel(Message):
    response_id: str | None = None


class OutputClear(Message):
    """Of WebRTC: forget the sound that was not yet played."""


MESSAGES: dict[str, type[Message]] = {
    "session.update": SessionUpdate,
    "input_audio_buffer.append": Append,
    "input_audio_buffer.commit": Commit,
    "input_audio_buffer.clear": Clear,
    "conversation.item.create": ItemCreate,
    "conversation.item.truncate": ItemTruncate,
    "conversation.item.delete": ItemDelete,
    "conversation.item.retrieve": ItemRetrieve,
    "response.create": ResponseCreate,
    "response.cancel": ResponseCancel,
    "output_audio_buffer.clear": OutputClear,
}


def read(text: str | bytes) -> dict[str, Any]:
    """The JSON object in `text`. Errors: `WireError`."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        raise WireError("The message is not valid JSON.", "invalid_json") from None
    if not isinstance(value, dict):
        raise WireError("The message must be a JSON object.", "invalid_json")
    return value


def parse(message: dict[str, Any]) -> Message:
    """A client's message by its `type`. Errors: `WireError` naming the field."""
    kind = message.get("type")
    if kind is None:
        raise WireError("The message has no 'type'.", "missing_required_parameter", "type")
    if not isinstance(kind, str) or kind not in MESSAGES:
        known = ", ".join(MESSAGES)
        raise WireError(f"Invalid value: {_short(kind)}. Supported values are: {known}.", "invalid_value", "type")
    return checked(MESSAGES[kind], {key: value for key, value in message.items() if value is not None})


def checked(model: type[Any], values: Any, where: str = "") -> Any:
    """`values` as `model`. Errors: `WireError` for the first field that is wrong, named from `where` on."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        missing = first["type"] == "missing"
        param = _path(where, first["loc"], values, missing)
        code = "missing_required_parameter" if missing else "invalid_value"
        got = "" if missing else f" (got {_short(first['input'])})"
        raise WireError(f"{param}: {first['msg']}{got}.", code, param) from None


def _path(where: str, location: tuple[int | str, ...], values: Any, missing: bool) -> str:
    """A field as the client wrote it. The steps through `values` are keys and places; others name a union's branch."""
    path = where
    for number, step in enumerate(location):
        if isinstance(values, list) and isinstance(step, int):
            path, values = f"{path}[{step}]", values[step]
        elif isinstance(values, dict) and (step in values or (missing and number == len(location) - 1)):
            path, values = f"{path}.{step}" if path else str(step), values.get(step)
    return path


def _short(value: Any) -> str:
    shown = json.dumps(value, ensure_ascii=False, default=str)
    return shown if len(shown) <= 60 else shown[:57] + "…"
