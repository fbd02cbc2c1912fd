"""Tools that the server runs: beside the audio, with fillers, interruptions and failures; the session stays healthy."""

import contextlib
import json
import time
from pathlib import Path

import pytest

from speechgpt2.errors import UserError
from speechgpt2.server.config import ToolsConfig
from tests import needs
from tests.assistant.mcp_process import demo_server
from tests.server.conftest import open_client, serving, silence, voice

needs.module("jsonschema", "assistant")

DEMO = str(Path(__file__).with_name("tools_demo.py"))
TONE = 0.1  # seconds of speech from which the fake dialogue takes it for a turn


@pytest.fixture(scope="module")
def served():
    with serving(tools=ToolsConfig(functions=DEMO, filler_seconds=0.3), context=8192) as running:
        yield running


def ask(client, text):
    """Type a question that makes the fake model call tools; returns the events of that response."""
    client.write(text)
    return client.until("response.done")


def memory(served):
    """What the model of the latest session knows."""
    return list(served.engine.sessions[-1].memory.values())


def item_of(events, type):
    return next(event["item"] for event in events if event["type"] == "response.output_item.added")


def answer(client):
    """The text of the next response that has one."""
    while True:
        [*_, done] = client.until("response.done", seconds=60)
        for item in done["response"]["output"]:
            if item["type"] == "message":
                return item["content"][0].get("transcript") or item["content"][0].get("text")


def test_call_is_run_and_answered(served):
    with open_client(served) as client:
        client.update(output_modalities=["text"])
        events = ask(client, 'call weather{"city": "Paris"}')
        item = item_of(events, "mcp_call")
        assert (item["type"], item["name"], item["server_label"]) == ("mcp_call", "weather", "speechgpt2")
        kinds = [event["type"] for event in events]
        assert "response.mcp_call_arguments.done" in kinds and "response.output_item.done" in kinds
        events = client.until("response.created")
        assert [event["type"] for event in events] == [
            "response.mcp_call.in_progress",
            "response.mcp_call.completed",
            "conversation.item.done",
            "response.created",
        ]
        assert events[2]["item"]["output"] == "sunny in Paris" and events[2]["item"]["error"] is None
        assert answer(client).startswith("you said sunny in Paris")
        assert memory(served)[-2] == "tool: sunny in Paris"


def test_calls_of_a_response_run_at_once_and_are_answered_together(served):
    with open_client(served) as client:
        client.update(output_modalities=["text"])
        ask(client, 'call slow{"seconds": 0.5} call slow{"seconds": 0.4} call weather{"city": "Rome"}')
        start = time.monotonic()
        answer(client)
        assert time.monotonic() - start < 0.85
        turns = [turn for turn in memory(served) if turn.startswith("tool:")]
        assert len(turns) == 1 and "0.5 s have passed" in turns[0]


@pytest.mark.parametrize(
    "call, reason",
    [
        ("call hangs{}", "gave no answer within 0.3 seconds"),
        ("call breaks{}", "no network"),
        ('call weather{"city": 5}', "arguments of weather are wrong"),
        ("call tides{}", "There is no tool tides"),
    ],
)
def test_failure_is_a_result_for_the_model(served, call, reason):
    with open_client(served) as client:
        client.update(output_modalities=["text"])
        ask(client, call)
        failed = client.until("response.mcp_call.failed")
        assert failed[-1]["output_index"] == 0
        done = client.until("conversation.item.done")[-1]["item"]
        assert reason in done["error"]["message"] and done["output"] is None
        served.wait(lambda: reason in memory(served)[-2])
        client.until("response.done")
        ask(client, "hello")  # the session is healthy


def test_long_wait_is_filled_once_and_cut_by_the_answer(served):
    with open_client(served) as client:
        ask(client, 'call slow{"seconds": 0.7}')
        [*_, done] = client.until("response.done")
        filler = done["response"]
        assert filler["output"][0]["content"][0]["transcript"].startswith("One")
        assert filler["status"] in ("completed", "cancelled") and "reason" not in filler["status_details"]
        assert "have passed" in answer(client)
        assert not any("moment" in turn for turn in memory(served))  # the model forgets the filler


def test_filler_is_in_the_language_of_the_user(served):
    with open_client(served) as client:
        ask(client, '你好 call slow{"seconds": 0.7}')
        [*_, done] = client.until("response.done")
        assert done["response"]["output"][0]["content"][0]["transcript"].startswith("请")


def test_short_wait_has_no_filler(served):
    with open_client(served) as client:
        ask(client, 'call slow{"seconds": 0.05}')
        assert "have passed" in answer(client)


def test_speech_cancels_a_call_unless_it_is_kept(served):
    with open_client(served) as client:
        ask(client, 'call order{"seconds": 0.9} call slow{"seconds": 0.8}')
        client.append(voice(TONE))
        failed = client.until("response.mcp_call.failed")
        assert failed[-1]["output_index"] == 1
        assert "Cancelled" in client.until("conversation.item.done")[-1]["item"]["error"]["message"]
        client.append(silence(0.6))
        client.until("response.done")  # the answer to what was said
        assert "ordered" in answer(client)


def test_call_in_the_background_is_answered_when_it_comes(served):
    with open_client(served) as client:
        client.update(output_modalities=["text"])
        ask(client, 'call research{"seconds": 0.8}')
        assert "is at work" in answer(client)
        client.write("meanwhile")
        assert "meanwhile" in answer(client)
        assert "Result of research" in answer(client) and "found" in memory(served)[-2]


def test_client_cancels_pending_calls(served):
    with open_client(served) as client:
        client.update(output_modalities=["text"])
        ask(client, 'call slow{"seconds": 0.9}')
        client.until("response.mcp_call.in_progress")
        client.send("response.cancel")
        client.until("response.mcp_call.failed")
        client.send("response.cancel")
        assert client.until("error")[-1]["error"]["code"] == "response_cancel_not_active"
        ask(client, "hello")


def test_calls_end_with_the_session(served):
    before = time.monotonic()
    with open_client(served) as client:
        ask(client, 'call slow{"seconds": 0.9}')
    served.wait(lambda: not served.engine.open_sessions)
    assert time.monotonic() - before < 5
    with open_client(served) as client:
        ask(client, "hello")


def test_client_keeps_its_own_tools_beside_those_of_the_server(served):
    own = {"type": "function", "name": "lamp", "description": "Switch the lamp.", "parameters": {"type": "object"}}
    with open_client(served) as client:
        client.update(output_modalities=["text"], tools=[own])
        assert next(tool.name for tool in served.engine.sessions[-1].settings.tools) == "lamp"
        events = ask(client, "call lamp{}")
        assert item_of(events, "function_call")["type"] == "function_call"
        client.send("session.update", session={"type": "realtime", "tools": [{**own, "name": "weather"}]})
        error = client.until("error")[-1]["error"]
        assert error["param"] == "session.tools[0].name" and "has a tool 'weather' itself" in error["message"]


def test_malformed_call_is_repaired(served):
    with open_client(served) as client:
        client.update(output_modalities=["text"])
        ask(client, "garbled")
        client.until("response.mcp_call.failed")
        failed = client.until("conversation.item.done")[-1]["item"]
        assert "The tool call cannot be read: it is not JSON" in failed["error"]["message"]
        events = client.until("response.done")  # the model repeats it
        assert item_of(events, "mcp_call")["name"] == "weather"
        assert "sunny in Paris" in answer(client)


SORRY = "Sorry, that did not work."
WITHOUT_ANSWER = [
    pytest.param('call loops{"city": "Rome"}', id="calls without end"),
    pytest.param('call weather{"city": "say nothing"}', id="no words after a result"),
]


@pytest.mark.parametrize("asked", WITHOUT_ANSWER)
@pytest.mark.parametrize("modality", ["audio", "text"])
def test_turn_without_an_answer_ends_with_a_fixed_sentence(served, asked, modality):
    with open_client(served) as client:
        client.update(output_modalities=[modality])
        for words, sentence in (("", SORRY), ("天气 ", "抱歉，这次没有成功。")):
            ask(client, f"{words}{asked}")
            seen = len(client.seen)
            assert answer(client) == sentence
            kinds = [event["type"] for event in client.seen[seen:]]
            assert ("response.output_audio.delta" in kinds) == (modality == "audio")
            assert memory(served)[-1] == f"assistant: {sentence}"
        ask(client, "hello")  # the session is healthy, and says no more of it
        assert memory(served)[-2:][0] == "user: hello"


@pytest.mark.parametrize("asked", WITHOUT_ANSWER)
def test_rest_ends_with_the_fixed_sentence(served, asked):
    openai = needs.module("openai", "dev")
    with openai.OpenAI(api_key="none", base_url=f"{served.http}/v1", max_retries=0) as client:
        messages = [{"role": "user", "content": asked}]
        choice = client.chat.completions.create(model="mini", messages=messages).choices[0]
        assert (choice.finish_reason, choice.message.content) == ("stop", SORRY)
        options = {"modalities": ["text", "audio"], "audio": {"voice": "default", "format": "wav"}}
        message = client.chat.completions.create(model="mini", messages=messages, **options).choices[0].message
        assert message.audio.transcript == SORRY and len(message.audio.data) > 10_000
        assert client.responses.create(model="mini", input=f"你好 {asked}").output_text == "抱歉，这次没有成功。"


def test_malformed_call_of_a_tool_of_the_client_is_repaired():
    """Also over REST. The client gets the valid call only."""
    own = {"name": "lamp", "description": "Switch the lamp.", "parameters": {"type": "object"}}
    with serving() as plain:
        with open_client(plain) as client:
            client.update(output_modalities=["text"], tools=[{"type": "function", **own}])
            ask(client, "garbled")
            client.until("response.mcp_call.failed")
            assert item_of(client.until("response.done"), "function_call")["name"] == "weather"
        openai = needs.module("openai", "dev")
        with openai.OpenAI(api_key="none", base_url=f"{plain.http}/v1", max_retries=0) as client:
            messages = [{"role": "user", "content": "garbled"}]
            tools = [{"type": "function", "function": own}]
            choice = client.chat.completions.create(model="mini", messages=messages, tools=tools).choices[0]
            [call] = choice.message.tool_calls
            assert choice.finish_reason == "tool_calls" and call.function.name == "weather"


def test_rest_runs_the_tools_of_the_server(served):
    openai = needs.module("openai", "dev")
    with openai.OpenAI(api_key="none", base_url=f"{served.http}/v1", max_retries=0) as client:
        messages = [{"role": "user", "content": 'call weather{"city": "Bern"}'}]
        choice = client.chat.completions.create(model="mini", messages=messages).choices[0]
        assert choice.finish_reason == "stop" and choice.message.content.startswith("you said sunny in Bern")
        assert not choice.message.tool_calls
        reply = client.responses.create(model="mini", input='call weather{"city": "Bern"}', tool_choice="none")
        assert reply.output_text.startswith("you said call weather")


def mcp_tool(url, **options):
    return {"type": "mcp", "server_label": "demo", "server_url": url, **options}


def test_clients_may_name_mcp_servers_only_where_the_server_allows_it():
    tools = ToolsConfig(mcp_hosts=("mcp.example.org",))
    with serving(tools=tools, host="0.0.0.0", allow_unauthenticated=True) as network, open_client(network) as client:
        session = {"type": "realtime", "tools": [mcp_tool("http://169.254.169.254/latest")]}
        client.send("session.update", session=session)
        error = client.until("error")[-1]["error"]
        assert error["param"] == "session.tools[0].server_url" and "does not connect" in error["message"]


@pytest.mark.parametrize(
    "tool, param",
    [
        (mcp_tool("ftp://x.test"), "server_url"),
        (mcp_tool("http://x.test", connector_id="connector_gmail"), "connector_id"),
        (mcp_tool("http://x.test", allowed_tools={"read_only": True}), "allowed_tools"),
        (mcp_tool("http://x.test", require_approval="sometimes"), "require_approval"),
        ({"type": "mcp", "server_label": "a b", "server_url": "http://x.test"}, "server_label"),
        ({"type": "mcp", "server_label": "a"}, "server_url"),
    ],
)
def test_wrong_mcp_tool_is_an_error_that_names_the_field(served, tool, param):
    with open_client(served) as client:
        client.send("session.update", session={"type": "realtime", "tools": [tool]})
        assert f"session.tools[0].{param}" in client.until("error")[-1]["error"]["param"]


def test_mcp_server_that_is_none_fails_and_the_session_goes_on(served):
    with open_client(served) as client:
        client.update(output_modalities=["text"], tools=[mcp_tool("http://127.0.0.1:9/mcp")])
        client.until("mcp_list_tools.failed", seconds=60)
        item = client.until("conversation.item.done")[-1]["item"]
        assert "no MCP server" in item["error"]["message"]
        ask(client, "hello")


def test_unusable_source_of_tools_is_an_error_at_the_start():
    with pytest.raises(UserError, match="no such file"), serving(tools=ToolsConfig(functions="missing.py")):
        pass


def test_approval_without_a_call_is_an_error(served):
    with open_client(served) as client:
        item = {"type": "mcp_approval_response", "approval_request_id": "mcpr_x", "approve": True}
        client.send("conversation.item.create", item=item)
        assert client.until("error")[-1]["error"]["param"] == "item.approval_request_id"


# an MCP server by the official SDK, and a model that follows a script


@contextlib.contextmanager
def scripted(chain_of_modality, **tools):
    """A server with a real engine that may speak: its model, and what the script of a short speech is."""
    needs.module("onnxruntime", "server")
    import torch

    from speechgpt2.duplex.dialogue import Dialogue
    from speechgpt2.engine.config import EngineConfig
    from speechgpt2.engine.engine import Engine
    from tests.engine.tiny import ScriptedLM, tiny_codec, tiny_lm
    from tests.server.test_tools import Model

    lm = tiny_lm(ScriptedLM, tools=True, chain_of_modality=chain_of_modality)
    lm.script, codes = [], torch.zeros(3, 3, dtype=torch.int64)
    engine = Engine(tiny_codec(), lm, EngineConfig(slots=2, context=8192))
    engine.start()
    ended = [(token, None) for token in lm.prompt.turn_end(speaking=True).text[0].tolist()]
    with serving(engine, Dialogue, slots=2, context=8192, tools=ToolsConfig(**tools)) as served:
        yield Model(served, lm), [(lm.prompt.special_ids.filler, codes)] * 3 + ended


@pytest.fixture(scope="module")
def model():
    needs.module("mcp", "mcp")
    with scripted(False, timeout=6.0, filler_seconds=0.0) as (model, _):
        yield model


def call(name, **arguments):
    from speechgpt2.types import ToolCall

    return ToolCall(name, json.dumps(arguments))


def connect(client, url, **options):
    client.update(output_modalities=["text"], tools=[mcp_tool(url, **options)])
    client.until("mcp_list_tools.completed", seconds=60)
    return client.until("conversation.item.done")[-1]["item"]


def test_mcp_server_of_the_client(model):
    with demo_server() as url, open_client(model.served) as client:
        item = connect(client, url, require_approval="never", allowed_tools=["weather", "huge", "hangs", "dies"])
        assert [tool["name"] for tool in item["tools"]] == ["weather", "hangs", "huge", "dies"]
        for asked, output in (
            (call("weather", city="Paris"), "sunny in Paris for 1 days"),
            (call("huge"), "[cut: the result has 10000000 characters]"),
            (call("hangs"), "gave no answer within 6 seconds"),
            (call("dies"), "The tool dies failed"),
        ):
            model.will(asked, "It's 25.")
            client.write("weather?")
            client.until("response.done", seconds=60)
            done = client.until("conversation.item.done", seconds=60)[-1]["item"]
            assert output in (done["output"] or done["error"]["message"])
            assert answer(client) == "It's 25." and output.split("[")[0] in model.knows()
        client.update(output_modalities=["text"], tools=[])
        model.will("Hello.")
        client.write("Hello")
        assert answer(client) == "Hello." and "<tools>" not in model.knows()


def test_model_may_repair_one_invalid_call(model, monkeypatch):
    monkeypatch.setattr("speechgpt2.lm.grammar.installed", lambda: False)  # a grammar would refuse what follows
    with demo_server() as url, open_client(model.served) as client:
        connect(client, url, require_approval="never", allowed_tools=["weather"])
        model.will(call("weather", town="Paris"), call("weather", city="Paris"), "It's 25.")
        client.write("weather?")
        assert answer(client) == "It's 25." and "sunny in Paris" in model.knows()
        model.will(call("weather"), call("weather", city=5), call("weather", city=6), "Hello.")
        client.write("weather?")
        assert answer(client) == "Hello." and "No more tool calls" in model.knows()


def test_client_approves_and_denies_calls(model):
    with demo_server() as url, open_client(model.served) as client:
        connect(client, url, require_approval={"never": {"tool_names": ["process"]}}, allowed_tools=["weather"])
        for approve, output in ((True, "sunny in Paris"), (False, "did not allow")):
            model.will(call("weather", city="Paris"), "Hello.")
            client.write("weather?")
            client.until("response.done", seconds=60)
            request = client.until("conversation.item.added", seconds=60)[-1]["item"]
            assert request["type"] == "mcp_approval_request" and json.loads(request["arguments"]) == {"city": "Paris"}
            item = {"type": "mcp_approval_response", "approval_request_id": request["id"], "approve": approve}
            client.send("conversation.item.create", item=item)
            assert answer(client) == "Hello." and output in model.knows()


def test_filler_is_read_aloud_by_a_real_engine_and_forgotten():
    with scripted(True, functions=DEMO, filler_seconds=0.1) as (model, spoken), open_client(model.served) as client:
        lm = model.lm
        model.will(call("slow", seconds=4))
        lm.script += spoken  # the filler, whose words are given
        lm.script += [(token, None) for token in lm.prompt.encode("It's 25.")]
        lm.script += [(lm.prompt.special_ids.speech_start, None), *spoken]
        client.write("weather?")
        client.until("response.done", seconds=60)
        events = client.until("response.done", seconds=60)
        assert events[-1]["response"]["output"][0]["content"][0]["transcript"] == "One moment, please."
        assert any(event["type"] == "response.output_audio.delta" for event in events)
        assert answer(client) == "It's 25."
        assert "One moment" not in model.knows() and "4.0 s have passed" in model.knows() and not lm.script


def test_call_that_stays_unreadable_by_a_real_engine(monkeypatch):
    """It is spoken, or asked for and then written; the talk goes on. The same over REST, in text."""
    monkeypatch.setattr("speechgpt2.lm.grammar.installed", lambda: False)  # a grammar would refuse these calls
    openai = needs.module("openai", "dev")
    for chain_of_modality in (True, False):
        with scripted(chain_of_modality, functions=DEMO) as (model, spoken), open_client(model.served) as client:
            garbled = ["<tool_call>\n{broken\n</tool_call>"] * 4
            model.will(*garbled)
            if chain_of_modality:
                model.lm.script += spoken
            else:
                model.will(garbled[0])  # asked to say the sentence
            client.write("weather?")
            assert answer(client) == SORRY and not model.lm.script
            kinds = [event["type"] for event in client.seen]
            assert ("response.output_audio.delta" in kinds) == chain_of_modality and "error" not in kinds
            model.lm.script += [(token, None) for token in model.lm.prompt.encode("Hello.")]
            model.lm.script += [(model.lm.prompt.special_ids.speech_start, None), *spoken]
            client.write("weather?")
            client.until("response.done", seconds=60)
            assert SORRY in model.knows() and not model.lm.script
            model.will(*garbled)
            with openai.OpenAI(api_key="none", base_url=f"{model.served.http}/v1", max_retries=0) as rest:
                messages = [{"role": "user", "content": "weather?"}]
                choice = rest.chat.completions.create(model="mini", messages=messages).choices[0]
            assert (choice.finish_reason, choice.message.content) == ("stop", SORRY)
