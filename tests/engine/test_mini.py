"""The engine with the built-in model."""

from pathlib import Path

import numpy as np
import pytest

from speechgpt2 import SpeechGPT, audio
from speechgpt2.duplex.protocol import SessionSettings
from speechgpt2.engine.config import EngineConfig
from speechgpt2.engine.engine import Engine
from speechgpt2.engine.replay import replay
from speechgpt2.sessions.store import SessionFolder
from speechgpt2.types import Interrupted, ReplyDone, TextDelta, Transcript, Turn
from tests.engine.results import audio_of, events, same
from tests.engine.tiny import PATCH, Clock, run, say, talk

pytestmark = pytest.mark.slow
EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def gpt():
    return SpeechGPT.from_pretrained("mini")


def text(found):
    return "".join(event.text for event in found if isinstance(event, TextDelta)).strip()


def test_two_sessions_are_answered_as_if_alone(gpt):
    engine = Engine(gpt.codec, gpt.lm, EngineConfig(slots=2), Clock())
    paths = sorted(EXAMPLES.glob("question-*.wav"))[:2]
    sessions = [engine.open(SessionSettings()) for _ in paths]
    for session, path in zip(sessions, paths, strict=True):
        say(session, audio.load(path))
        session.respond()
    found = talk(engine, sessions)
    for session, path in zip(sessions, paths, strict=True):
        alone = gpt.chat([Turn.user(speech=audio.load(path))])
        transcript = next(event.text for event in found[session] if isinstance(event, Transcript))
        assert (transcript, text(found[session])) == (alone.transcript, alone.text)
        assert len(audio_of(found[session])) == len(alone.pcm) > PATCH


def test_unplayed_words_are_not_remembered(gpt):
    """The draft names them all; after the interruption the memory names only those that began to sound."""
    engine = Engine(gpt.codec, gpt.lm, EngineConfig(slots=1), Clock())
    session = engine.open(SessionSettings())
    session.add_turn(Turn.user("Count from one to nine."))
    number = session.respond()
    run(engine, until=lambda: session.event_queue.reply_samples >= 5 * PATCH)
    written = text(events(session))
    session.interrupt(3 * PATCH)
    assert events(session) == [Interrupted(3 * PATCH), ReplyDone("interrupted")]
    run(engine)
    span = session.slot.history.context.find(number)
    memory = session.slot.history.context.patches(span.body_start, span.stop)
    draft = memory.text[0, : memory.text[0].tolist().index(gpt.lm.prompt.special_ids.speech_start)].tolist()
    kept = gpt.lm.prompt.tokenizer.decode(draft).strip()
    assert len(kept) < len(written) and written.startswith(kept.rstrip(".,"))


def test_saved_session_goes_on(gpt, tmp_path):
    """Greedy and sampled replies of the resumed session equal those of the one that was not interrupted."""
    paths = sorted(EXAMPLES.glob("question-*.wav"))[:2]
    engines = [Engine(gpt.codec, gpt.lm, EngineConfig(slots=1), Clock()) for _ in range(2)]
    folder, settings = SessionFolder(tmp_path), SessionSettings(seed=7, paced=False)
    session = engines[0].open(settings, None, folder.create(engines[0].session_header("sess_1", "mini", "anonymous")))
    for path in paths:
        say(session, audio.load(path))
        session.respond()
        talk(engines[0], [session])
    session.save()
    run(engines[0])
    twin = engines[1].open(settings, folder.load("sess_1"))
    for temperature in (0.0, None):
        answers = []
        for engine, each in zip(engines, (session, twin), strict=True):
            each.configure(SessionSettings(seed=7, paced=False, temperature=temperature))
            say(each, audio.load(paths[0]))
            each.respond()
            answers.append(audio_of(talk(engine, [each])[each]))
        assert len(answers[0]) and np.array_equal(*answers) and same(session, twin)
    session.save()
    run(engines[0])
    again = Engine(gpt.codec, gpt.lm, EngineConfig(slots=1), Clock())
    assert [reply.status for reply in replay(again, tmp_path / "sess_1.jsonl")] == ["same"] * 4
