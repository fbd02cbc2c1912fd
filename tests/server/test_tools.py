"""Tools over the wire: a scripted model calls one, unmodified clients run it, and the model answers what it gave."""

import asyncio
import json

import pytest
import torch

from speechgpt2.lm.tools import render_tool_turn
from speechgpt2.types import Text, ToolCall, Turn
from tests import needs
from tests.engine.results import context_of
from tests.engine.tiny import ScriptedLM, tiny_codec, tiny_lm
from tests.server.conftest import open_client, serving
from tests.server.test_clients import Events, until, until_true

openai = needs.module("openai", "dev")
needs.module("onnxruntime", "server")

CALL = ToolCall("weather", '{"city": "Paris"}')
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
FUNCTION = {"name": "weather", "description": "The weather in a city.", "parameters": PARAMETERS}
REALTIME = {"type": "function", **FUNCTION}
CHAT = {"type": "function", "function": FUNCTION}
ASKED = "weather in Paris?"


class Model:
    """A server with a real engine and dialogue, whose model follows a script."""

    def __init__(self, served, lm):
        self.served, self.lm = served, lm

    def will(self, *replies, speech=False):
        """Say this next: calls, or words; in `speech` they stand in its text stream."""
        prompt = self.lm.prompt
        for reply in replies:
            text = reply if isinstance(reply, str) else render_tool_turn(Turn("assistant", (reply,)))
            tokens = prompt.encode(text)
            spoken = speech and isinstance(reply, str)
            codes = torch.zeros(len(tokens), 3, 3, dtype=torch.int64) if spoken else [None] * len(tokens)
            self.lm.script += [(prompt.special_ids.speech_start, None)] if spoken else []
            self.lm.script += zip(tokens, codes, strict=True)
            self.lm.script += [(token, None) for token in prompt.turn_end(spoken).text[0].tolist()]

    def knows(self):
        """Return the context of the latest session as text."""
        session = list(self.served.engine.core.sessions.values())[-1]
        return self.lm.prompt.tokenizer.decode(context_of(session).text[0].tolist())


@pytest.fixture(scope="module")
def model():
    from speechgpt2.duplex.dialogue import Dialogue
    from speechgpt2.engine.config import EngineConfig
    from speechgpt2.engine.engine import Engine

    lm = tiny_lm(ScriptedLM, tools=True)
    lm.script = []
    engine = Engine(tiny_codec(), lm, EngineConfig(slots=2, context=8192))  # its tokenizer knows few words
    engine.start()
    with serving(engine, Dialogue, slots=2) as served:
        yield Model(served, lm)


def weather(city: str) -> str:
    """The weather in a city."""
    return f"25 degrees in {city}"


def test_openai_python_calls_a_tool(model):
    async def scenario():
        model.will(CALL, "It's 25 degrees.")
        client = openai.AsyncOpenAI(api_key="none", base_url=f"{model.served.http}/v1", max_retries=0)
        async with client, client.realtime.connect(model="mini") as connection:
            await connection.session.update(
                session={"type": "realtime", "output_modalities": ["text"], "tools": [REALTIME]}
            )
            words = [{"type": "input_text", "text": ASKED}]
            await connection.conversation.item.create(item={"type": "message", "role": "user", "content": words})
            await connection.response.create()
            await until(connection, "response.created")
            events = await until(connection, "response.done")
            kinds = [event.type for event in events]
            assert kinds == [
                "response.output_item.added",
                "conversation.item.added",
                "response.function_call_arguments.delta",
                "response.function_call_arguments.done",
                "conversation.item.done",
                "response.output_item.done",
                "response.done",
            ]
            [call] = events[-1].response.output
            assert (call.type, call.name, call.arguments) == ("function_call", CALL.name, CALL.arguments)
            assert events[1].item.call_id == events[3].call_id == events[5].item.call_id == call.call_id
            assert events[1].item.name == CALL.name and '"name": "weather", "description"' in model.knows()

            output = weather(**json.loads(call.arguments))
            await connection.conversation.item.create(
                item={"type": "function_call_output", "call_id": call.call_id, "output": output}
            )
            await connection.response.create()
            [answer] = (await until(connection, "response.done"))[-1].response.output
            assert answer.content[0].text == "It's 25 degrees."
            assert f"<tool_response>\n{weather('Paris')}\n</tool_response> ###" in model.knows()

            for item in (call.id, answer.id):
                await connection.conversation.item.delete(item_id=item)
                await until(connection, "conversation.item.deleted")
            await until_true(lambda: '"Paris"' not in model.knows() and "It's" not in model.knows())

    asyncio.run(asyncio.wait_for(scenario(), 60))


def test_openai_agents_calls_a_tool(model, monkeypatch):
    agents = needs.module("agents.realtime", "dev")
    from agents import function_tool

    monkeypatch.setenv("OPENAI_AGENTS_DISABLE_TRACING", "1")

    async def scenario():
        model.will(CALL, "It's 25 degrees.", speech=True)
        agent = agents.RealtimeAgent(name="Host", instructions="Be kind.", tools=[function_tool(weather)])
        config = {"url": model.served.ws + "?model=mini", "api_key": "none"}
        async with await agents.RealtimeRunner(agent).run(model_config=config) as session:
            events = Events(session)
            await session.send_message(ASKED)
            done = await events.until("tool_end")
            assert (done.tool.name, done.output) == ("weather", weather("Paris"))
            await events.until("audio_end")
            await until_true(lambda: "25 degrees in Paris" in model.knows() and "Be kind." in model.knows())
            assert not model.lm.script  # all was said

    asyncio.run(asyncio.wait_for(scenario(), 60))


def test_chat_completions_calls_a_tool(model):
    with openai.OpenAI(api_key="none", base_url=f"{model.served.http}/v1", max_retries=0) as client:
        create = client.chat.completions.create
        messages = [{"role": "user", "content": ASKED}]
        model.will(CALL)
        choice = create(model="mini", messages=messages, tools=[CHAT]).choices[0]
        assert choice.finish_reason == "tool_calls" and choice.message.content is None
        [call] = choice.message.tool_calls
        assert (call.function.name, call.function.arguments) == (CALL.name, CALL.arguments)

        output = {"role": "tool", "tool_call_id": call.id, "content": weather("Paris")}
        model.will("It's 25 degrees.")
        choice = create(model="mini", messages=[*messages, choice.message, output], tools=[CHAT]).choices[0]
        assert (choice.finish_reason, choice.message.content) == ("stop", "It's 25 degrees.")

        model.will(CALL)
        spoken = create(model="mini", messages=messages, tools=[CHAT], modalities=["text", "audio"]).choices[0]
        assert spoken.finish_reason == "tool_calls" and spoken.message.audio is None

        model.will(f"Hello.\n{render_tool_turn(Turn('assistant', (CALL, CALL)))}")
        with client.chat.completions.stream(model="mini", messages=messages, tools=[CHAT]) as stream:
            final = stream.get_final_completion().choices[0]
        assert final.finish_reason == "tool_calls" and final.message.content == "Hello."
        assert [call.function.arguments for call in final.message.tool_calls] == [CALL.arguments] * 2
        assert len({call.id for call in final.message.tool_calls}) == 2


def test_tool_choice_none_hides_the_tools(model):
    with openai.OpenAI(api_key="none", base_url=f"{model.served.http}/v1", max_retries=0) as client:
        model.will(CALL)
        messages = [{"role": "user", "content": ASKED}]
        answer = client.chat.completions.create(model="mini", messages=messages, tools=[CHAT], tool_choice="none")
        assert answer.choices[0].message.content == render_tool_turn(Turn("assistant", (CALL,)))
    with open_client(model.served) as client:
        client.update(output_modalities=["text"], tools=[REALTIME])
        model.will("Hello.")
        client.send("response.create", response={"tool_choice": "none"})
        client.until("response.done")
        assert "# Tools" not in model.knows()


def test_tool_choice_required(model):
    """The model is given its beginning, and writes the rest."""
    whole = render_tool_turn(Turn("assistant", (CALL,)))
    with openai.OpenAI(api_key="none", base_url=f"{model.served.http}/v1", max_retries=0) as client:
        messages, named = [{"role": "user", "content": ASKED}], {"type": "function", "function": {"name": "weather"}}
        for choice, begun in (("required", whole[: whole.index("weather")]), (named, whole[: whole.index(' {"city')])):
            model.will(whole.removeprefix(begun))
            answer = client.chat.completions.create(model="mini", messages=messages, tools=[CHAT], tool_choice=choice)
            [call] = answer.choices[0].message.tool_calls
            assert (call.function.name, call.function.arguments) == (CALL.name, CALL.arguments)
            assert not model.lm.script
        named["function"]["name"] = "tides"
        with pytest.raises(openai.BadRequestError, match="must name one of the tools, which are weather"):
            client.chat.completions.create(model="mini", messages=messages, tools=[CHAT], tool_choice=named)
    with open_client(model.served) as client:
        named = {"type": "function", "name": "weather"}
        client.send("session.update", session={"type": "realtime", "tool_choice": named})
        assert client.until("error")[-1]["error"]["param"] == "session.tool_choice"
        client.update(output_modalities=["text"], tools=[REALTIME])
        model.will(whole.removeprefix(begun))
        client.send("response.create", response={"tool_choice": named})
        [call] = client.until("response.done")[-1]["response"]["output"]
        assert (call["name"], call["arguments"]) == (CALL.name, CALL.arguments)
        assert model.knows().endswith(f"{whole} ###\n")


def test_earlier_calls_and_results_as_items(model):
    items = (
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": ASKED}]},
        {"type": "function_call", "name": "weather", "arguments": CALL.arguments, "call_id": "one"},
        {"type": "function_call_output", "call_id": "one", "output": "25"},
    )
    with open_client(model.served) as client:
        client.update(output_modalities=["text"])
        for item in items:
            client.send("conversation.item.create", item=item)
            shown = client.until("conversation.item.done")[-1]["item"]
        client.send("conversation.item.retrieve", item_id=shown["id"])
        assert client.until("conversation.item.retrieved")[-1]["item"] == shown
        assert (shown["call_id"], shown["output"]) == ("one", "25")
        model.will("It's 25.")
        client.send("response.create")
        client.until("response.done")
        call, result = render_tool_turn(Turn("assistant", (CALL,))), render_tool_turn(Turn("tool", (Text("25"),)))
        expected = f"[|SpeechGPT|]: {call} ###\n[|Human|]: {result} ###\n[|SpeechGPT|]: It's 25. ###\n"
        assert model.knows().endswith(expected)
