"""The real model and voice activity detection behind a real socket."""

import asyncio
from pathlib import Path

import numpy as np
import pytest

from speechgpt2 import audio
from tests import needs
from tests.server.conftest import open_client, serving, silence
from tests.server.test_realtime import MANUAL

needs.module("onnxruntime", "server")
QUESTION = Path(__file__).parents[2] / "examples" / "question-1.wav"
TIMEOUT = 120.0  # seconds: other programs may be running


@pytest.fixture(scope="module")
def mini():
    from speechgpt2.duplex.dialogue import Dialogue
    from speechgpt2.engine.config import EngineConfig
    from speechgpt2.engine.engine import Engine

    engine = Engine.from_pretrained("mini", config=EngineConfig(slots=2))
    engine.start()
    with serving(engine, Dialogue, slots=2) as served:
        yield served


def append_in_blocks(client, pcm):
    for start in range(0, len(pcm), 2400):
        client.append(pcm[start : start + 2400])


@pytest.mark.slow
def test_spoken_question_and_barge_in(mini):
    question = audio.load(QUESTION)
    with open_client(mini) as client:
        client.update(audio={"input": {"transcription": {"model": "own"}}})
        append_in_blocks(client, np.concatenate([silence(0.5), question, silence(1.0)]))
        events = client.until("response.output_audio.delta", TIMEOUT)
        kinds = [event["type"] for event in events]
        for kind in ("speech_started", "speech_stopped", "committed"):
            assert kinds.count(f"input_audio_buffer.{kind}") == 1
        stopped = next(event for event in events if event["type"].endswith("speech_stopped"))
        assert abs(stopped["audio_end_ms"] - 500 - 1000 * len(question) / 24_000) < 400
        transcripts = [e["transcript"] for e in events if e["type"].endswith("transcription.completed")]
        assert len(transcripts) == 1 and transcripts[0]

        append_in_blocks(client, np.concatenate([question, silence(1.0)]))  # barge-in
        events = client.until("response.done", TIMEOUT)
        assert events[-1]["response"]["status"] == "cancelled"
        item = events[-1]["response"]["output"][0]["id"]
        client.send("conversation.item.truncate", item_id=item, content_index=0, audio_end_ms=0)
        client.until("conversation.item.truncated", TIMEOUT)
        done = client.until("response.done", TIMEOUT)[-1]["response"]
        assert done["status"] == "completed" and done["output"][0]["content"][0]["transcript"].strip()


@pytest.mark.slow
def test_manual_turns_and_written_responses(mini):
    with open_client(mini) as client:
        client.update(**MANUAL, output_modalities=["text"])
        append_in_blocks(client, audio.load(QUESTION))
        client.send("input_audio_buffer.commit")
        client.send("response.create")
        events = client.until("response.done", TIMEOUT)
        assert [event["type"] for event in events].count("input_audio_buffer.committed") == 1
        assert events[-1]["response"]["output"][0]["content"][0]["text"].strip()
        client.write("Hello")
        assert client.until("response.done", TIMEOUT)[-1]["response"]["status"] == "completed"
    mini.wait(lambda: not mini.engine.stats().used, 20)


@pytest.mark.slow
def test_webrtc_call(mini):
    needs.module("aiortc", "webrtc")
    from tests.server.test_webrtc import calling, one, types

    question = audio.load(QUESTION)

    async def scenario():
        async with calling(mini) as client:
            client.microphone.say(silence(0.5), question)
            events = await client.until("output_audio_buffer.started", TIMEOUT)
            assert "input_audio_buffer.speech_stopped" in types(events)
            await asyncio.sleep(0.3)
            client.send("output_audio_buffer.clear")
            events = await client.until("conversation.item.truncated", TIMEOUT)
            assert "output_audio_buffer.cleared" in types(events) and 200 <= events[-1]["audio_end_ms"] <= 500
            cut = client.when("output_audio_buffer.cleared")
            client.microphone.say(question)
            events = await client.until("output_audio_buffer.stopped", TIMEOUT)
            assert one(events, "response.done")["response"]["status"] == "completed"
            await asyncio.sleep(0.2)
            assert [at for at in client.loud() if at > cut + 0.2]
        while mini.engine.stats().used:
            await asyncio.sleep(0.05)

    asyncio.run(scenario())
