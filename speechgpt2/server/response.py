"""One answer as the wire tells it: every event of the protocol in its order.

    response.created
        response.output_item.added · conversation.item.added · response.content_part.added
            …output_audio_transcript.delta · …output_audio.delta         (or …output_text.delta)
            the .done of each · response.content_part.done
        conversation.item.done · response.output_item.done
    response.done

A call of a function is an item of its own. An answer ends once, whichever way: completed, cancelled by a client or by
the user's voice, incomplete, failed.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from speechgpt2.server import formats
from speechgpt2.server.conversation import Conversation, Item, Part, new_id
from speechgpt2.server.formats import Encoder
from speechgpt2.server.wire import Session
from speechgpt2.types import FRAME_SIZE, SAMPLE_RATE

PATCH = 3 * FRAME_SIZE
LONGEST_DELTA = formats.samples(60)  # the protocol's clients expect 20–80 ms at a time
CUSHION = 0.1  # seconds that a client holds before it plays

Emit = Callable[..., None]  # emit("response.created", response={…})
Status = Literal["in_progress", "completed", "cancelled", "incomplete", "failed"]


@dataclass
class Heard:
    """What the model was given since its last answer: written pieces, and samples of speech."""

    pieces: int = 0
    samples: int = 0


@dataclass
class Usage:
    """Tokens in the model's own measure: a patch of 120 ms, or a piece of text, is one."""

    heard: Heard
    pieces: int = 0
    samples: int = 0

    def shown(self) -> dict[str, Any]:
        """As the wire shows it."""
        given = {"text_tokens": self.heard.pieces, "audio_tokens": -(-self.heard.samples // PATCH)}
        made = {"text_tokens": self.pieces, "audio_tokens": -(-self.samples // PATCH)}
        return {
            "input_tokens": sum(given.values()),
            "output_tokens": sum(made.values()),
            "total_tokens": sum(given.values()) + sum(made.values()),
            "input_token_details": {**given, "cached_tokens": 0},
            "output_token_details": made,
        }


class Response:
    """An answer in the making. `session` holds the settings it is made with."""

    def __init__(
        self,
        emit: Emit,
        session: Session,
        conversation: Conversation,
        number: int,
        heard: Heard,
        metadata: dict[str, str] | None = None,
    ):
        self.id, self.number, self.status = new_id("resp"), number, "in_progress"
        self.session, self.conversation, self.metadata = session, conversation, metadata
        self.items: list[Item] = []
        self.usage = Usage(heard)
        self.began: float | None = None  # when its first sound was sent
        self.heard: int | None = None  # samples, if the client has said so before the end
        self.ending: str | None = None  # why it will be cut short
        self._emit = emit
        self._reason: str | None = None
        self._error: dict[str, Any] | None = None
        self._encoder = Encoder(session.audio.output.format.type)
        self._open: Item | None = None  # the message that grows

    @property
    def message(self) -> Item | None:
        """The spoken or written item, if there is one."""
        return next((item for item in self.items if item.type == "message"), None)

    def begin(self) -> None:
        """The model is about to answer."""
        self._emit("response.created", response=self.shown())

    def write(self, text: str) -> None:
        """The next words."""
        part = self._part()
        part.text = (part.text or "") + text
        self.usage.pieces += 1
        kind = "output_audio_transcript" if part.spoken else "output_text"
        self._emit(f"response.{kind}.delta", **self._place(), delta=text)

    def ran_dry(self, now: float) -> bool:
        """Whether a listener with some cushion has played all that was sent."""
        return self.began is not None and now > self.began + self.usage.samples / SAMPLE_RATE + CUSHION

    def speak(self, pcm: np.ndarray, now: float) -> None:
        """The next speech, `pcm [N]`."""
        if self.began is None:
            self.began = now
        part, pieces = self._part(), -(-len(pcm) // LONGEST_DELTA)
        for piece in np.array_split(pcm, max(1, pieces)):
            data = self._encoder.push(piece)
            self.conversation.hear(part, data)
            self._emit("response.output_audio.delta", **self._place(), delta=base64.b64encode(data).decode())
        self.usage.samples += len(pcm)

    def call(self, name: str, arguments: str) -> None:
        """The model calls a function."""
        self._close("completed")
        item = Item(new_id("item"), "function_call", "assistant", "in_progress", call_id=new_id("call"), name=name)
        item.number = self.number
        self._add(item)
        place = {**self._place(item), "call_id": item.call_id}
        del place["content_index"]
        item.arguments, item.status = arguments, "completed"
        self._emit("response.function_call_arguments.delta", **place, delta=arguments)
        self._emit("response.function_call_arguments.done", **place, name=name, arguments=arguments)
        self._finish(item)

    def end(self, status: Status, reason: str | None = None, error: dict[str, Any] | None = None) -> None:
        """No more comes."""
        self._close("completed" if status == "completed" else "incomplete")
        self.status, self._reason, self._error = status, reason, error
        self._emit("response.done", response=self.shown())

    def shown(self) -> dict[str, Any]:
        """As the wire shows it."""
        details: dict[str, Any] | None = None
        if self.status != "in_progress":
            details = {"type": self.status}
            details |= {"reason": self._reason} if self._reason else {}
            details |= {"error": self._error} if self._error else {}
        return {
            "id": self.id,
            "object": "realtime.response",
            "status": self.status,
            "status_details": details,
            "output": [item.shown() for item in self.items],
            "output_modalities": self.session.output_modalities,
            "audio": {"output": self.session.audio.output.model_dump(include={"format", "voice"})},
            "max_output_tokens": self.session.max_output_tokens,
            "metadata": self.metadata,
            "conversation_id": self.conversation.id,
            "usage": None if self.status == "in_progress" else self.usage.shown(),
        }

    def _part(self) -> Part:
        """The part that grows; the item is there from its first content on."""
        if self._open is None:
            kind: Literal["output_audio", "output_text"] = "output_audio" if self.session.speaks else "output_text"
            self._open = Item(new_id("item"), role="assistant", status="in_progress", number=self.number)
            self._add(self._open)
            part = Part(kind, format=self.session.audio.output.format.type)
            self._open.parts.append(part)
            self._emit("response.content_part.added", **self._place(), part=_bare(part))
        return self._open.parts[0]

    def _add(self, item: Item) -> None:
        self.items.append(item)
        place = {"response_id": self.id, "output_index": len(self.items) - 1}
        self._emit("response.output_item.added", **place, item=item.shown())
        before = self.conversation.add(item)
        self._emit("conversation.item.added", previous_item_id=before, item=item.shown())

    def _close(self, status: Literal["completed", "incomplete"]) -> None:
        if self._open is None:
            return
        item, part, place = self._open, self._open.parts[0], self._place()
        if part.spoken:
            self._emit("response.output_audio.done", **place)
            self._emit("response.output_audio_transcript.done", **place, transcript=part.text or "")
        else:
            self._emit("response.output_text.done", **place, text=part.text or "")
        self._emit("response.content_part.done", **place, part=_bare(part))
        item.status, self._open = status, None
        self._finish(item)

    def _finish(self, item: Item) -> None:
        before = self.conversation.before(item.id)
        self._emit("conversation.item.done", previous_item_id=before, item=item.shown())
        place = {"response_id": self.id, "output_index": self.items.index(item)}
        self._emit("response.output_item.done", **place, item=item.shown())

    def _place(self, item: Item | None = None) -> dict[str, Any]:
        item = item or self._open
        assert item is not None
        index = self.items.index(item)
        return {"response_id": self.id, "item_id": item.id, "output_index": index, "content_index": 0}


def _bare(part: Part) -> dict[str, Any]:
    """A part in the events of a response, where its type is called `audio` or `text`."""
    if part.spoken:
        return {"type": "audio", "transcript": part.text or ""}
    return {"type": "text", "text": part.text or ""}
