"""Functions that a server under test runs."""

import time

from speechgpt2.assistant.functions import tool


@tool
def weather(city: str) -> str:
    """Look up the weather in a city."""
    return f"sunny in {city}"


@tool
def slow(seconds: float) -> str:
    """Take some time."""
    time.sleep(seconds)
    return f"{seconds} s have passed"


@tool(on_interrupt="keep")
def order(seconds: float) -> str:
    """Order something, which must not be cancelled."""
    time.sleep(seconds)
    return "ordered"


@tool(background=True, on_interrupt="keep")
def research(seconds: float) -> str:
    """Find something out while the talk goes on."""
    time.sleep(seconds)
    return "found"


@tool(timeout=0.3)
def hangs() -> str:
    """Take too long."""
    time.sleep(3)
    return "late"


@tool
def loops(city: str) -> str:
    """Have the fake model call this again."""
    return f'call loops{{"city": "{city}"}}'


@tool
def breaks() -> str:
    """Break."""
    raise RuntimeError("no network")
