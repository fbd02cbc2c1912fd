"""Unmodified clients, each with a voice turn, an interruption with truncation, and a text turn."""

import asyncio
import base64
import time

from speechgpt2 import audio
from tests import needs
from tests.server.conftest import silence, voice

openai = needs.module("openai", "dev")
INSTANT = {"type": "server_vad", "silence_duration_ms": 100}


def encoded(pcm):
    return base64.b64encode(audio.to_pcm16(pcm)).decode()


def remembered_words(served):
    """Return the words of the latest reply in the model's history."""
    memory = served.engine.sessions[-1].memory
    return [said for said in memory.values() if said.startswith("assistant")][-1].split()[1:]


# openai-python


async def until(connection, kind):
    """The events up to the first of this type."""
    events = []
    async for event in connection:
        assert event.type != "error", event
        events.append(event)
        if event.type == kind:
            return events
    raise AssertionError(f"no {kind}")


def test_openai_python(served):
    async def scenario():
        client = openai.AsyncOpenAI(api_key="none", base_url=f"{served.http}/v1", max_retries=0)
        async with client, client.realtime.connect(model="mini") as connection:
            await until(connection, "session.created")
            detection = {"audio": {"input": {"turn_detection": INSTANT}}, "type": "realtime"}
            await connection.session.update(session=detection)
            await until(connection, "session.updated")

            await connection.input_audio_buffer.append(audio=encoded(voice(0.3)))
            await connection.input_audio_buffer.append(audio=encoded(silence(0.2)))
            events = await until(connection, "response.output_audio.delta")
            assert "input_audio_buffer.speech_stopped" in [event.type for event in events]
            await asyncio.sleep(0.5)
            await connection.input_audio_buffer.append(audio=encoded(voice(0.2)))
            done = (await until(connection, "response.done"))[-1].response
            assert done.status == "cancelled" and done.status_details.reason == "turn_detected"
            item = done.output[0].id
            await connection.conversation.item.truncate(item_id=item, content_index=0, audio_end_ms=200)
            assert (await until(connection, "conversation.item.truncated"))[-1].audio_end_ms == 200
            assert remembered_words(served) == ["you"]
            await connection.conversation.item.retrieve(item_id=item)
            await until(connection, "conversation.item.retrieved")

            await connection.session.update(session={"type": "realtime", "output_modalities": ["text"]})
            await until(connection, "session.updated")
            words = [{"type": "input_text", "text": "hello"}]
            await connection.conversation.item.create(item={"type": "message", "role": "user", "content": words})
            await connection.response.create()
            done = (await until(connection, "response.done"))[-1].response
            assert done.output[0].content[0].text.startswith("you said hello")

    asyncio.run(scenario())


def test_openai_python_with_a_client_secret(served):
    async def scenario():
        async with openai.AsyncOpenAI(api_key="none", base_url=f"{served.http}/v1") as client:
            session = {"type": "realtime", "instructions": "Rhyme."}
            secret = await client.realtime.client_secrets.create(session=session)
            assert secret.value.startswith("ek_") and secret.session.instructions == "Rhyme."
        client = openai.AsyncOpenAI(api_key=secret.value, base_url=f"{served.http}/v1")
        async with client, client.realtime.connect(model="mini") as connection:
            assert (await until(connection, "session.created"))[-1].session.instructions == "Rhyme."

    asyncio.run(scenario())


# openai-agents


def test_openai_agents(served, monkeypatch):
    agents = needs.module("agents.realtime", "dev")
    monkeypatch.setenv("OPENAI_AGENTS_DISABLE_TRACING", "1")
    called = []

    def weather(city: str) -> str:
        """The weather in a city."""
        called.append(city)
        return "sunny"

    from agents import function_tool

    async def scenario():
        agent = agents.RealtimeAgent(name="Host", instructions="Be kind.", tools=[function_tool(weather)])
        runner = agents.RealtimeRunner(agent)
        config = {"url": served.ws + "?model=mini", "api_key": "none"}
        async with await runner.run(model_config=config) as session:
            events = Events(session)
            assert served.engine.sessions[-1].settings.instructions in (None, "Be kind.")
            await session.send_message("hello")
            await events.until("audio_end")
            await events.until("agent_end")
            assert served.engine.sessions[-1].settings.instructions == "Be kind."

            await session.send_audio(audio.to_pcm16(voice(0.3)))
            await session.send_audio(audio.to_pcm16(silence(0.4)))
            await events.until("audio")
            await asyncio.sleep(0.6)
            await session.send_audio(audio.to_pcm16(voice(0.2)))
            await events.until("audio_interrupted")
            await events.until("agent_end")
            await until_true(lambda: len(remembered_words(served)) < 12)
            assert len(remembered_words(served)) >= 1
            await session.send_audio(audio.to_pcm16(silence(0.4)))
            await events.until("agent_end")

            await session.send_message("please call")
            await events.until("tool_end")
            await until_true(lambda: called == ["Paris"])

    asyncio.run(asyncio.wait_for(scenario(), 60))


class Events:
    """An agents session's events; errors end the test, but for one that the SDK itself expects."""

    def __init__(self, session):
        self.iterator = session.__aiter__()

    async def until(self, kind):
        end = time.monotonic() + 20
        while time.monotonic() < end:
            event = await asyncio.wait_for(self.iterator.__anext__(), 20)
            if event.type == "error":
                assert getattr(event.error, "code", None) == "response_cancel_not_active", event.error
            if event.type == kind:
                return event
        raise AssertionError(f"no {kind}")


async def until_true(ready):
    for _ in range(200):
        if ready():
            return
        await asyncio.sleep(0.02)
    raise AssertionError("timeout")
