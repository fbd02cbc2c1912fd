"""Tools in live sessions: offered in the system prompt, called in a reply, their results answered."""

from __future__ import annotations

import pytest
import torch

from speechgpt2.duplex.protocol import ReplyOptions, SessionSettings
from speechgpt2.errors import UserError
from speechgpt2.lm.segments import concat
from speechgpt2.lm.tools import render_tool_turn
from speechgpt2.types import AudioDelta, Interrupted, ReplyDone, Text, TextDelta, Tool, ToolCall, Transcript, Turn
from tests.engine.results import context_of, events
from tests.engine.tiny import PATCH, ScriptedLM, noise, run, say, talk, tiny_engine, tiny_lm

WEATHER = Tool("weather", "The weather.", {"type": "object", "properties": {}})
CALL = ToolCall("weather", '{"city": "Paris"}')
WRITTEN = render_tool_turn(Turn("assistant", (CALL,)))
RESULT = Turn("tool", (Text("25"),))


def make(chain_of_modality=False, tools=True):
    """An engine with room for a system line with tools, its model's prompt and its script."""
    lm = tiny_lm(ScriptedLM, chain_of_modality=chain_of_modality, tools=tools)
    lm.script = []
    return tiny_engine(lm, context=4096), lm.prompt, lm.script


def text(prompt, words):
    return [(token, None) for token in prompt.encode(words)]


def end(prompt, speaking=False):
    return [(token, None) for token in prompt.turn_end(speaking).text[0].tolist()]


def same(session, *parts):
    found, wanted = context_of(session), concat(*parts)
    return all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def words(found):
    return "".join(event.text for event in found if isinstance(event, TextDelta))


def rest(found):
    return [event for event in found if not isinstance(event, (TextDelta, AudioDelta))]


def test_written_call_then_result_then_answer():
    engine, prompt, script = make()
    session = engine.open(SessionSettings(speak=False, tools=(WEATHER,)))
    session.add_turn(Turn.user("weather?"))
    session.respond()
    script += text(prompt, f"Hello.\n{WRITTEN}") + end(prompt)
    found = talk(engine, [session])[session]
    assert words(found) == "Hello." and rest(found) == [CALL, ReplyDone("stop")]

    session.add_turn(RESULT)
    session.respond()
    script += text(prompt, "It's 25.") + end(prompt)
    found = talk(engine, [session])[session]
    assert words(found) == "It's 25." and rest(found) == [ReplyDone("stop")]
    assert same(
        session,
        prompt.system_prompt("t2t", tools=[WEATHER]),
        prompt.user_text("weather?"),
        concat(prompt.text_patches(prompt.encode(f"Hello.\n{WRITTEN}")), prompt.turn_end(speaking=False)),
        prompt.user_text("<tool_response>\n25\n</tool_response>"),
        prompt.reply("It's 25."),
    )


@pytest.mark.parametrize("chain_of_modality", [False, True], ids=["plain", "draft"])
def test_spoken_turn_is_answered_by_a_call_without_speech(chain_of_modality):
    """And the dialogue goes on as a spoken one, though a result is written."""
    engine, prompt, script = make(chain_of_modality)
    session = engine.open(SessionSettings(tools=(WEATHER,)))
    say(session, noise(0.4))
    session.respond()
    transcript = [*text(prompt, "weather"), (prompt.special_ids.transcript_end, None)] if chain_of_modality else []
    script += transcript + text(prompt, WRITTEN) + end(prompt)
    found = talk(engine, [session])[session]
    assert found == [*([Transcript("weather")] if chain_of_modality else []), CALL, ReplyDone("stop")]
    session.add_turn(RESULT)
    session.respond()
    script += end(prompt)
    assert talk(engine, [session])[session] == [ReplyDone("stop")] and session.slot.history.system.mode == "s2s"


def test_call_within_speech_ends_the_sound():
    engine, prompt, script = make()
    session = engine.open(SessionSettings(tools=(WEATHER,)))
    session.add_turn(Turn.user("weather?"))
    session.respond()
    row = prompt.encode(f"Hello. {WRITTEN}")
    codes = torch.randint(0, 1024, (len(row), 3, 3), generator=torch.Generator().manual_seed(0))
    script += [(prompt.special_ids.speech_start, None), *zip(row, codes, strict=True), *end(prompt, speaking=True)]
    found = talk(engine, [session])[session]
    assert words(found) == "Hello." and rest(found) == [CALL, ReplyDone("stop")] == found[-2:]
    begun = next(n for n in range(1, len(row) + 1) if "<tool_call>" in prompt.tokenizer.decode(row[:n]))
    assert sum(len(event.pcm) for event in found if isinstance(event, AudioDelta)) == (begun - 1) * PATCH


def test_interrupted_reply_calls_no_tools():
    engine, prompt, script = make(chain_of_modality=True)
    session = engine.open(SessionSettings(tools=(WEATHER,)))
    session.add_turn(Turn.user("weather?"))
    session.respond()
    codes = torch.zeros(30, 3, 3, dtype=torch.int64)
    script += [*text(prompt, f"Hello.{WRITTEN}"), (prompt.special_ids.speech_start, None)]
    script += [(prompt.special_ids.filler, code) for code in codes]
    run(engine, until=lambda: session.event_queue.reply_samples >= 2 * PATCH)
    session.interrupt(0)
    assert events(session) == [Interrupted(0), ReplyDone("interrupted")]
    engine.step()
    assert same(session, prompt.system_prompt("t2s", tools=[WEATHER]), prompt.user_text("weather?"))


def test_tools_of_a_reply_and_of_settings():
    engine, prompt, script = make()
    session = engine.open(SessionSettings(speak=False, tools=(WEATHER,)))
    session.add_turn(Turn.user("weather?"))
    for options, tools, found in (
        (ReplyOptions(tools=()), (), [ReplyDone("stop")]),
        (None, [WEATHER], [CALL, ReplyDone("stop")]),
        (ReplyOptions("Hello"), [WEATHER], [CALL, ReplyDone("stop")]),
    ):
        number = session.respond(options)
        script += text(prompt, WRITTEN) + end(prompt)
        assert rest(talk(engine, [session])[session]) == found
        session.delete_turn(number)
        run(engine)
        system = options and options.instructions
        assert same(session, prompt.system_prompt("t2t", None, system, tools), prompt.user_text("weather?"))
    session.configure(SessionSettings(speak=False))
    run(engine)
    assert same(session, prompt.system_prompt("t2t"), prompt.user_text("weather?"))


def test_tools_are_not_offered_to_an_untrained_model():
    engine, prompt, script = make(tools=False)
    session = engine.open(SessionSettings(speak=False, tools=(WEATHER,)))
    session.add_turn(Turn.user("weather?"))
    session.respond()
    script += text(prompt, WRITTEN) + end(prompt)
    found = talk(engine, [session])[session]
    assert words(found) == WRITTEN and rest(found) == [ReplyDone("stop")]
    assert same(session, prompt.system_prompt("t2t"), prompt.user_text("weather?"), prompt.reply(WRITTEN))


def test_history_with_calls_and_results():
    engine, prompt, _ = make()
    session = engine.open(SessionSettings(speak=False))
    for turn in (Turn.user("Hello"), Turn("assistant", (Text("Hello."), CALL)), Turn("tool", (Text("25"), Text("2")))):
        number = session.add_turn(turn)
    session.add_turn(RESULT)
    run(engine)
    results = "<tool_response>\n25\n</tool_response>\n<tool_response>\n2\n</tool_response>"
    one = prompt.user_text("<tool_response>\n25\n</tool_response>")
    before = [prompt.system_prompt("t2t"), prompt.user_text("Hello"), prompt.reply(f"Hello.\n{WRITTEN}")]
    assert same(session, *before, prompt.user_text(results), prompt.turn_end(speaking=False), one)
    session.delete_turn(number)
    run(engine)
    assert same(session, *before, one)
    for turn in (Turn("user", (CALL,)), Turn("assistant", ()), Turn("assistant", (Text("a"), Text("b")))):
        with pytest.raises(UserError, match="one segment"):
            session.add_turn(turn)
