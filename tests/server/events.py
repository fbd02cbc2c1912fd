"""Validation of server events with openai-python's types."""

from functools import cache

from tests import needs


@cache
def adapter():
    needs.module("openai", "dev")
    from openai.types.realtime import RealtimeServerEvent
    from pydantic import TypeAdapter

    return TypeAdapter(RealtimeServerEvent)


def checked(event):
    """Return the event; fails if openai-python does not know its type, or a field is missing or invalid."""
    parsed = adapter().validate_python(event)
    assert parsed.type == event["type"]
    return event
