"""pipecat's realtime service, unmodified: a text turn, a voice turn, an interruption with truncation, a tool.

pip install pipecat-ai openai websockets
python pipecat_client.py ws://127.0.0.1:8000/v1/realtime question.wav [key]

Only a server of tests.clients.fake_server is sure to call the tool: `mini` was not trained to.
"""

import asyncio
import sys
import wave
from functools import partial

from pipecat.adapters.llm.schemas.function_schema import FunctionSchema
from pipecat.adapters.llm.schemas.tools_schema import ToolsSchema
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
from pipecat.processors.aggregators.llm_response_universal import LLMContextAggregatorPair
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


async def talk(speech, context, task, listener, service):
    truncated = []
    send = service.send_client_event

    async def watched(event):
        truncated.extend([event] if event.type == "conversation.item.truncate" else [])
        await send(event)

    service.send_client_event = watched
    await task.queue_frame(LLMContextFrame(context))
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
    print(f"interruption: truncated at {truncated[-1].audio_end_ms} ms")


CITY = {"city": {"type": "string"}}
TOOLS = ToolsSchema([FunctionSchema("weather", "Look up the weather in a city.", CITY, ["city"])])


async def call_tool(context, task, listener, service):
    """Have the model call a tool, and answer with its result."""
    cities = []

    async def weather(call):
        cities.append(call.arguments["city"])
        await call.result_callback("sunny")

    service.register_function("weather", weather)
    await task.queue_frame(LLMContextFrame(context))
    await until(lambda: listener.answers)
    if cities:
        await until(lambda: listener.audio_frames)
    print(f"tool: called for {cities[0]}, result answered" if cities else "tool: not called")


async def run(url, key, context, steps):
    """Run a pipeline around the service while `steps` lasts. It sends the messages of its first context only."""
    service, listener = OpenAIRealtimeLLMService(api_key=key, base_url=url), Listener()
    pair = LLMContextAggregatorPair(context)
    task = PipelineWorker(Pipeline([pair.user(), service, listener, pair.assistant()]))
    runner = WorkerRunner(handle_sigint=False)
    await runner.add_workers(task)
    running = asyncio.create_task(runner.run())
    await asyncio.sleep(1)
    try:
        await steps(context, task, listener, service)
        assert not listener.errors, listener.errors
    finally:
        await task.cancel()
        await running


async def main(url, path, key):
    with wave.open(path) as file:
        speech = file.readframes(file.getnframes())
    await run(url, key, LLMContext([{"role": "user", "content": "Hello"}]), partial(talk, speech))
    asked = [{"role": "user", "content": 'call weather{"city": "Paris"}'}]
    await run(url, key, LLMContext(asked, TOOLS), call_tool)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:3], sys.argv[3] if len(sys.argv) > 3 else "none"))
