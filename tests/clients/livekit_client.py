"""livekit-agents' realtime plugin, unmodified: a text turn, a voice turn, an interruption with truncation, a tool.

pip install livekit-agents livekit-plugins-openai
python livekit_client.py http://127.0.0.1:8000/v1 question.wav [key]

Only a server of tests.clients.fake_server is sure to call the tool: `mini` was not trained to.
"""

import asyncio
import sys
import wave

from livekit import rtc
from livekit.agents import function_tool, llm
from livekit.plugins.openai import realtime

RATE, BLOCK = 24_000, 480


def blocks(pcm):
    for start in range(0, len(pcm), 2 * BLOCK):
        piece = pcm[start : start + 2 * BLOCK]
        yield rtc.AudioFrame(piece, RATE, 1, len(piece) // 2)


async def say(session, pcm):
    for frame in blocks(pcm):
        session.push_audio(frame)
        await asyncio.sleep(0.02)


async def first_audio(generation):
    """The message's id, once its first sound is there."""
    async for message in generation.message_stream:
        async for _ in message.audio_stream:
            return message.message_id
    raise AssertionError("no sound")


@function_tool
async def weather(city: str) -> str:
    """Look up the weather in a city."""
    return "sunny"


async def call_tool(session):
    """Have the model call a tool, and answer with its result."""
    await session.update_tools([weather])
    context = session.chat_ctx.copy()
    context.add_message(role="user", content='call weather{"city": "Paris"}')
    await session.update_chat_ctx(context)
    generation = await asyncio.wait_for(session.generate_reply(), 60)
    calls = [call async for call in generation.function_stream]
    if not calls:
        return "not called"
    context = session.chat_ctx.copy()
    context.insert(llm.FunctionCallOutput(call_id=calls[0].call_id, name="weather", output="sunny", is_error=False))
    await session.update_chat_ctx(context)
    await first_audio(await asyncio.wait_for(session.generate_reply(), 60))
    return f"called with {calls[0].arguments}, result answered"


async def main(url, path, key):
    with wave.open(path) as file:
        speech = file.readframes(file.getnframes())
    model = realtime.RealtimeModel(model="mini", base_url=url, api_key=key)
    session = model.session()
    generations, errors = asyncio.Queue(), []
    session.on("generation_created", generations.put_nowait)
    session.on("error", errors.append)
    started = asyncio.Event()
    session.on("input_speech_started", lambda _: started.set())
    try:
        generation = await asyncio.wait_for(session.generate_reply(instructions="Greet the user."), 60)
        await asyncio.wait_for(first_audio(generation), 60)
        await generations.get()
        print("reply on request: heard")
        await asyncio.sleep(4)

        await say(session, speech)
        quiet = asyncio.create_task(say(session, bytes(2 * RATE * 60)))
        generation = await asyncio.wait_for(generations.get(), 60)
        item = await asyncio.wait_for(first_audio(generation), 60)
        quiet.cancel()
        print("voice turn: answered")

        started.clear()
        await asyncio.sleep(0.3)
        await say(session, speech)
        await asyncio.wait_for(started.wait(), 30)
        session.truncate(message_id=item, modalities=["audio"], audio_end_ms=300, audio_transcript="")
        await asyncio.sleep(1)
        assert not errors, errors
        print("interruption: truncated")

        await asyncio.sleep(4)
        print("tool:", await call_tool(session))
        assert not errors, errors
    finally:
        await session.aclose()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:3], sys.argv[3] if len(sys.argv) > 3 else "none"))
