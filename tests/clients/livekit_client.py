"""livekit-agents' realtime plugin, unmodified: a text turn, a voice turn, an interruption with truncation.

pip install livekit-agents livekit-plugins-openai
python livekit_client.py http://127.0.0.1:8000/v1 question.wav [key]
"""

import asyncio
import sys
import wave

from livekit import rtc
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
    finally:
        await session.aclose()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:3], sys.argv[3] if len(sys.argv) > 3 else "none"))
