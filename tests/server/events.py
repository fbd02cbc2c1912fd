"""Every event of a server must be one that openai-python's own types accept."""

from functools import cache

from tests import needs


@cache
def adapter():
    needs.module("openai", "dev")
    from openai.types.realtime import RealtimeServerEvent
    from pydantic import TypeAdapter

    return TypeAdapter(RealtimeServerEvent)


def checked(event):
    """The event itself. Fails if its type is not among openai-python's, or a field is missing or mistyped."""
    parsed = adapter().validate_python(event)
    assert parsed.type == event["type"]
    return event
