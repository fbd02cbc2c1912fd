"""pipecat's realtime service, unmodified: a text turn, a voice turn, an interruption with truncation.

pip install pipecat-ai openai websockets
python pipecat_client.py ws://127.0.0.1:8000/v1/realtime question.wav [key]
"""

import asyncio
import sys
import wave

from pipecat.frames.frames import (
    ErrorFrame,
    InputAudioRawFrame,
    LLMContextFrame,
    LLMFullResponseEndFrame,
    TTSAudioRawFrame,
)
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineWorker
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.processors.frame_processor import FrameProcessor
from pipecat.services.openai.realtime.llm import OpenAIRealtimeLLMService
from pipecat.workers.runner import WorkerRunner

RATE, BLOCK = 24_000, 960  # bytes of 20 ms


class Listener(FrameProcessor):
    """Counts what comes out of the service."""

    def __init__(self):
        super().__init__()
        self.audio_frames = self.answers = 0
        self.errors = []

    async def process_frame(self, frame, direction):
        await super().process_frame(frame, direction)
        self.audio_frames += isinstance(frame, TTSAudioRawFrame)
        self.answers += isinstance(frame, LLMFullResponseEndFrame)
        if isinstance(frame, ErrorFrame):
            self.errors.append(frame.error)
        await self.push_frame(frame, direction)


async def say(task, pcm):
    for start in range(0, len(pcm), BLOCK):
        await task.queue_frame(InputAudioRawFrame(pcm[start : start + BLOCK], RATE, 1))
        await asyncio.sleep(0.02)


async def until(ready, seconds=60):
    for _ in range(50 * seconds):
        if ready():
            return
        await asyncio.sleep(0.02)
    raise AssertionError("waited in vain")


async def talk(task, listener, service, speech):
    truncated = []
    send = service.send_client_event

    async def watched(event):
        truncated.extend([event] if event.type == "conversation.item.truncate" else [])
        await send(event)

    service.send_client_event = watched
    await task.queue_frame(LLMContextFrame(LLMContext([{"role": "user", "content": "Hello"}])))
    await until(lambda: listener.answers == 1 and listener.audio_frames)
    print("text turn: answered")

    audio_frames = listener.audio_frames
    await asyncio.sleep(4)
    await say(task, speech)
    quiet = asyncio.create_task(say(task, bytes(2 * RATE * 60)))
    await until(lambda: listener.audio_frames > audio_frames)
    quiet.cancel()
    print("voice turn: answered")

    await asyncio.sleep(0.3)
    answers = listener.answers
    await say(task, speech)
    await until(lambda: truncated and listener.answers > answers)
    await asyncio.sleep(0.5)
    assert not listener.errors, listener.errors
    print(f"interruption: truncated at {truncated[-1].audio_end_ms} ms")


async def main(url, path, key):
    with wave.open(path) as file:
        speech = file.readframes(file.getnframes())
    service, listener = OpenAIRealtimeLLMService(api_key=key, base_url=url), Listener()
    task = PipelineWorker(Pipeline([service, listener]))
    runner = WorkerRunner(handle_sigint=False)
    await runner.add_workers(task)
    running = asyncio.create_task(runner.run())
    await asyncio.sleep(1)
    try:
        await talk(task, listener, service, speech)
    finally:
        await task.cancel()
        await running


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:3], sys.argv[3] if len(sys.argv) > 3 else "none"))
