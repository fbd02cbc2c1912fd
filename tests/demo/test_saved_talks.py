"""Conversations of the demo that the server saves, styles, and what a browser remembers."""

import asyncio
from contextlib import aclosing

import pytest

from speechgpt2.demo.connection import ServerAddress
from speechgpt2.demo.saved_talks import MAX_REMEMBERED, SavedTalks, forget, remember, text_of
from speechgpt2.demo.session import DemoSession
from speechgpt2.errors import UserError
from speechgpt2.server.config import SessionsConfig
from speechgpt2.style import NORMAL, named_style
from tests.server.conftest import serving
from tests.server.fake import SavingEngine


def saving(folder):
    return serving(SavingEngine(), sessions=SessionsConfig(str(folder)))


async def ask(session, words, mode="t2t"):
    async with aclosing(session.ask(words, mode)) as events:
        async for _ in events:
            pass
    return [(line.role, line.text) for line in session.transcript]


def test_conversation_goes_on_and_is_deleted(tmp_path):
    async def scenario(server):
        session, talks = DemoSession(server), SavedTalks(server)
        assert session.saved_id is None
        before = await ask(session, "first")
        id = session.saved_id
        await session.clear()
        assert session.saved_id is None and session.transcript == []

        await session.resume(await talks.load(id))
        assert [(line.role, line.text) for line in session.transcript] == before
        again = await ask(session, "second")
        assert again[:2] == before and len(again) == 4 and session.saved_id == id

        other = DemoSession(server)
        await ask(other, "mine")
        assert other.saved_id != id
        await session.close()
        await talks.delete(id)
        await talks.delete(id)  # it is gone already
        with pytest.raises(UserError, match="no such conversation"):
            await talks.load(id)
        await other.close()

    with saving(tmp_path) as served:
        asyncio.run(asyncio.wait_for(scenario(ServerAddress(served.http, saves=True)), 600))
    assert len(list(tmp_path.glob("*.jsonl"))) == 1


def test_conversation_goes_on_after_it_was_idle(tmp_path):
    async def scenario(server):
        session = DemoSession(server)
        before = await ask(session, "first")
        session._connection.close("nothing was said")
        await session._connection.wait_closed()
        assert (await ask(session, "second"))[:2] == before
        await session.close()

    with saving(tmp_path) as served:
        asyncio.run(asyncio.wait_for(scenario(ServerAddress(served.http, saves=True)), 600))
    assert len(list(tmp_path.glob("*.jsonl"))) == 1


def test_style_and_speed_reach_the_server():
    async def scenario(served):
        session = DemoSession(ServerAddress(served.http))
        await ask(session, "as usual")
        settings = lambda: served.engine.sessions[-1].settings  # noqa: E731
        assert (settings().style, settings().speed) == (named_style("calm"), 1.0)  # the server's own
        session.delivery = {"style": "whisper", "speed": 1.25}
        await ask(session, "whisper")
        assert (settings().style, settings().speed) == (named_style("whisper"), 1.25)
        session.delivery["style"] = None
        await ask(session, "and now")
        assert settings().style == NORMAL and session.saved_id is None
        await session.close()

    with serving(style="calm") as served:
        asyncio.run(asyncio.wait_for(scenario(served), 600))


def test_browser_remembers_the_latest_first():
    talks = remember(remember([], "a", "x" * 100), "b", "second")
    assert [talk["id"] for talk in talks] == ["b", "a"] and len(talks[1]["title"]) == 60
    assert remember(talks, "a", "other words")[0] == talks[1]
    assert forget(talks, "b") == [talks[1]]
    for number in range(100):
        talks = remember(talks, str(number), "")
    assert len(talks) == MAX_REMEMBERED


def test_text_of_a_message():
    assert text_of({"content": [{"text": "a"}, {"transcript": "b"}, {"transcript": None}]}) == "a b"
    assert text_of({"role": "user"}) == ""
