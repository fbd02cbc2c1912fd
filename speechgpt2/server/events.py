"""Sending the server events of the OpenAI Realtime protocol."""

from __future__ import annotations

from typing import Any

from speechgpt2.server.channel import Channel
from speechgpt2.server.items import ConversationItem, new_id
from speechgpt2.server.metrics import Metrics
from speechgpt2.server.schema import ProtocolError


class EventSender:
    """Gives every event its id and puts it into the channel."""

    def __init__(self, channel: Channel[Any], metrics: Metrics):
        self._channel, self._metrics = channel, metrics

    def send(self, type: str, **fields: Any) -> None:
        """Send an event.

        Raises:
            SlowConsumerError: The client reads too slowly.
        """
        self._channel.send({"type": type, "event_id": new_id("event"), **fields})

    def send_item(self, item: ConversationItem, previous_id: str | None) -> None:
        """Send the two events of an item that is complete when it is added."""
        for event in ("added", "done"):
            self.send(f"conversation.item.{event}", previous_item_id=previous_id, item=item.to_dict())

    def send_error(self, error: ProtocolError, event_id: str | None = None) -> None:
        """Send an error event; `event_id` names the client's message that caused it."""
        self._metrics.errors.labels(error.code).inc()
        fields = {"type": error.kind, "code": error.code, "message": str(error), "param": error.param}
        self.send("error", error={**fields, "event_id": event_id})
