"""The real model, the real ear, a real socket: a spoken question, an interruption, turns by hand."""

import asyncio
from pathlib import Path

import numpy as np
import pytest

from speechgpt2 import audio
from tests import needs
from tests.server.conftest import line, serving, silence
from tests.server.test_realtime import BY_HAND

needs.module("onnxruntime", "server")
QUESTION = Path(__file__).parents[2] / "examples" / "question-1.wav"
PATIENCE = 120.0  # seconds: other programs may be running


@pytest.fixture(scope="module")
def mini():
    from speechgpt2.duplex.dialogue import Dialogue
    from speechgpt2.engine.config import EngineConfig
    from speechgpt2.engine.engine import Engine

    engine = Engine.from_pretrained("mini", config=EngineConfig(slots=2))
    engine.start()
    with serving(engine, Dialogue, slots=2) as served:
        yield served


def speak(client, pcm):
    for start in range(0, len(pcm), 2400):
        client.append(pcm[start : start + 2400])


@pytest.mark.slow
def test_a_spoken_question_an_interruption_and_another_turn(mini):
    question = audio.load(QUESTION)
    with line(mini) as client:
        client.update(audio={"input": {"transcription": {"model": "own"}}})
        speak(client, np.concatenate([silence(0.5), question, silence(1.0)]))
        events = client.until("response.output_audio.delta", PATIENCE)
        kinds = [event["type"] for event in events]
        for kind in ("speech_started", "speech_stopped", "committed"):
            assert kinds.count(f"input_audio_buffer.{kind}") == 1
        stopped = next(event for event in events if event["type"].endswith("speech_stopped"))
        assert abs(stopped["audio_end_ms"] - 500 - 1000 * len(question) / 24_000) < 400
        heard = [e["transcript"] for e in events if e["type"].endswith("transcription.completed")]
        assert len(heard) == 1 and heard[0]

        speak(client, np.concatenate([question, silence(1.0)]))  # speaks up
        events = client.until("response.done", PATIENCE)
        assert events[-1]["response"]["status"] == "cancelled"
        item = events[-1]["response"]["output"][0]["id"]
        client.send("conversation.item.truncate", item_id=item, content_index=0, audio_end_ms=0)
        client.until("conversation.item.truncated", PATIENCE)
        done = client.until("response.done", PATIENCE)[-1]["response"]
        assert done["status"] == "completed" and done["output"][0]["content"][0]["transcript"].strip()


@pytest.mark.slow
def test_turns_by_hand_and_written_answers(mini):
    with line(mini) as client:
        client.update(**BY_HAND, output_modalities=["text"])
        speak(client, audio.load(QUESTION))
        client.send("input_audio_buffer.commit")
        client.send("response.create")
        events = client.until("response.done", PATIENCE)
        assert [event["type"] for event in events].count("input_audio_buffer.committed") == 1
        assert events[-1]["response"]["output"][0]["content"][0]["text"].strip()
        client.write("Hello")
        assert client.until("response.done", PATIENCE)[-1]["response"]["status"] == "completed"
    mini.wait(lambda: not mini.engine.stats().used, 20)


@pytest.mark.slow
def test_a_call(mini):
    needs.module("aiortc", "webrtc")
    from tests.server.test_webrtc import calling, one, types

    question = audio.load(QUESTION)

    async def story():
        async with calling(mini) as client:
            client.microphone.say(silence(0.5), question)
            events = await client.until("output_audio_buffer.started", PATIENCE)
            assert "input_audio_buffer.speech_stopped" in types(events)
            await asyncio.sleep(0.3)
            client.send("output_audio_buffer.clear")
            events = await client.until("conversation.item.truncated", PATIENCE)
            assert "output_audio_buffer.cleared" in types(events) and 200 <= events[-1]["audio_end_ms"] <= 500
            cut = client.when("output_audio_buffer.cleared")
            client.microphone.say(question)
            events = await client.until("output_audio_buffer.stopped", PATIENCE)
            assert one(events, "response.done")["response"]["status"] == "completed"
            await asyncio.sleep(0.2)
            assert [at for at in client.loud() if at > cut + 0.2]
        while mini.engine.stats().used:
            await asyncio.sleep(0.05)

    asyncio.run(story())
