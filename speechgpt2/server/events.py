"""Sending the server events of the OpenAI Realtime protocol."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from speechgpt2.server.channel import Channel
from speechgpt2.server.items import ConversationItem, new_id
from speechgpt2.server.metrics import Metrics
from speechgpt2.server.schema import ProtocolError
from speechgpt2.server.session_config import SessionConfig
from speechgpt2.sessions.entries import EntryWriter, WireItem, WireItemRemoved, WireSettings

SECRETS = {"tools": {"__all__": {"authorization", "headers"}}}  # settings that are not saved
log = logging.getLogger("sg2.realtime")


class EventSender:
    """Gives every event its id and puts it into the channel. What has to outlive the connection is saved."""

    def __init__(self, channel: Channel[Any], metrics: Metrics):
        self._channel, self._metrics = channel, metrics
        self.record: EntryWriter | None = None  # where settings and items are saved
        self._warnings: list[str] = []  # that are not sent yet

    def warn(self, warnings: Sequence[str]) -> None:
        """Attach warnings about ignored fields to the next event."""
        if warnings:
            log.warning("a message has fields without effect", extra={"fields": {"warnings": list(warnings)}})
            self._warnings += warnings

    def send(self, type: str, **fields: Any) -> None:
        """Send an event.

        Raises:
            SlowConsumerError: The client reads too slowly.
        """
        if self._warnings:  # current clients fail on an unknown event type but ignore an unknown field
            fields, self._warnings = {**fields, "warnings": self._warnings}, []
        self._channel.send({"type": type, "event_id": new_id("event"), **fields})

    def send_item(self, item: ConversationItem, previous_id: str | None) -> None:
        """Send the two events of an item that is complete when it is added."""
        self.send_item_added(item, previous_id)
        self.send_item_done(item, previous_id)

    def send_item_added(self, item: ConversationItem, previous_id: str | None) -> None:
        """Send that an item is in the conversation; `previous_id` is that of the item before it."""
        self.send("conversation.item.added", previous_item_id=previous_id, item=item.to_dict())

    def send_item_done(self, item: ConversationItem, previous_id: str | None) -> None:
        """Send that an item is complete."""
        self.send("conversation.item.done", previous_item_id=previous_id, item=item.to_dict())
        self.save_item(item, previous_id)

    def save_settings(self, config: SessionConfig) -> None:
        """Save the session's settings, without secrets."""
        if self.record is not None:
            self.record.write(WireSettings(config.model_dump(mode="json", exclude=SECRETS)))

    def save_deletion(self, id: str) -> None:
        """Save that an item was deleted."""
        if self.record is not None:
            self.record.write(WireItemRemoved(id))

    def save_item(self, item: ConversationItem, previous_id: str | None) -> None:
        """Save an item that is new or has changed, if the session is saved."""
        if self.record is not None:
            self.record.write(WireItem(item.to_dict(), previous_id, item.turn))

    def send_error(self, error: ProtocolError, event_id: str | None = None) -> None:
        """Send an error event; `event_id` names the client's message that caused it."""
        self._metrics.errors.labels(error.code).inc()
        fields = {"type": error.kind, "code": error.code, "message": str(error), "param": error.param}
        self.send("error", error={**fields, "event_id": event_id})
