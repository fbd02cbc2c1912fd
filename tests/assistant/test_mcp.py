"""MCP servers by the official SDK: their tools are called like Python functions, and none can harm the conversation."""

import asyncio
import json
import sys
import time
from pathlib import Path

import pytest

from speechgpt2.errors import UserError
from speechgpt2.types import ToolCall
from tests import needs
from tests.assistant.mcp_process import DEMO, demo_server

needs.module("jsonschema", "assistant")
needs.module("mcp", "mcp")

from speechgpt2.assistant.mcp_servers import McpServer
from speechgpt2.assistant.toolbox import Toolbox

COMMAND = f"{sys.executable} {DEMO}"


@pytest.fixture(scope="module")
def server():
    with McpServer(COMMAND, connect_seconds=120) as server:
        yield server


def call(server, name, timeout=10.0, **arguments):
    """The result of one call."""
    return Toolbox(server.tools, timeout=timeout).run([ToolCall(name, json.dumps(arguments))])[0]


def test_tool_is_described_and_called(server):
    weather = next(tool.tool for tool in server.tools if tool.tool.name == "weather")
    assert weather.description == "Look up the weather in a city."
    assert weather.parameters["required"] == ["city"]
    result = call(server, "weather", city="Paris", days=2)
    assert (result.text, result.ok) == ("sunny in Paris for 2 days", True)


def test_arguments_are_checked_before_the_call(server):
    result = call(server, "weather", city=5)
    assert not result.ok and "5 is not of type 'string'" in result.text


def test_name_that_no_model_can_call_is_changed_and_failure_is_a_sentence(server):
    result = call(server, "fails_always")
    assert not result.ok and result.text.startswith("The tool fails_always failed") and "no network" in result.text


def test_long_result_is_cut(server):
    result = call(server, "long", timeout=60.0)
    assert result.ok and len(result.text) <= 4000 and "the result has 1000000 characters" in result.text


def test_content_that_is_no_text_is_named(server):
    assert call(server, "picture").text == "[image: cannot be read out]"


def test_call_that_hangs_is_given_up_and_the_server_goes_on():
    with McpServer(COMMAND, connect_seconds=120) as server:
        start = time.monotonic()
        result = call(server, "hangs", timeout=0.3)
        assert not result.ok and "gave no answer within 0.3 seconds" in result.text
        assert time.monotonic() - start < 5


def test_several_calls_run_at_once_from_another_event_loop(server):
    async def ask():
        calls = [ToolCall("weather", json.dumps({"city": city})) for city in ("Paris", "Rome", "Bern")]
        return await Toolbox(server.tools).run_async(calls)

    assert [result.text.split()[2] for result in asyncio.run(ask())] == ["Paris", "Rome", "Bern"]


def test_server_that_dies_is_started_again_for_the_next_call():
    with McpServer(COMMAND, connect_seconds=120) as server:
        before = call(server, "process").text
        failed = call(server, "dies")
        assert not failed.ok and failed.text.startswith("The tool dies failed")
        after = call(server, "process")
        assert after.ok and after.text != before


def test_closing_ends_the_program_and_a_later_call_fails():
    server = McpServer(COMMAND, connect_seconds=120)
    pid = int(call(server, "process").text)
    server.close()
    server.close()
    assert not Path(f"/proc/{pid}").exists() or not Path("/proc").exists()
    assert not call(server, "weather", city="Paris").ok


def test_server_over_http():
    with demo_server() as address, McpServer(address, headers={"X-Test": "1"}, prefix="demo_") as server:
        assert call(server, "demo_weather", city="Bern").text == "sunny in Bern for 1 days"


@pytest.mark.parametrize(
    "address, message",
    [
        ("", "is empty"),
        ('python "', "neither a URL nor a command line"),
        ("/no/such/program", "no MCP server"),
        (f"{sys.executable} -c 'print(1)'", "no MCP server"),
        ("http://127.0.0.1:9/mcp", "no MCP server"),
    ],
)
def test_address_without_a_server_is_one_clear_line(address, message):
    with pytest.raises(UserError, match=message) as error:
        McpServer(address, connect_seconds=10)
    assert "\n" not in str(error.value)


def test_silent_program_is_given_up():
    with pytest.raises(UserError, match=r"gave no answer within 0\.5 seconds"):
        McpServer(f"{sys.executable} -c 'import time; time.sleep(60)'", connect_seconds=0.5)


def test_server_declares_what_becomes_of_a_call_in_a_live_talk(server):
    declared = {tool.tool.name: (tool.background, tool.on_interrupt) for tool in server.tools}
    assert declared["research"] == (True, "keep")  # by its _meta
    assert declared["order"] == (False, "keep")  # it writes
    assert declared["weather"] == (False, "cancel")
