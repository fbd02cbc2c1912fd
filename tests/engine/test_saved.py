"""A saved session goes on in another engine as if nothing had happened, and its replies can be generated again."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from speechgpt2.duplex.protocol import ReplyOptions, SessionSettings
from speechgpt2.engine.recording import options_from_dict, options_to_dict, settings_from_dict, settings_to_dict
from speechgpt2.engine.replay import replay
from speechgpt2.errors import UserError
from speechgpt2.sessions.entries import Resumed, Settings
from speechgpt2.sessions.session_file import read_entries, to_line
from speechgpt2.sessions.store import SessionFolder
from speechgpt2.style import named_style
from speechgpt2.types import Interrupted, Speech, Text, Tool, ToolCall, Turn
from tests.engine import test_style as styles
from tests.engine.results import audio_of, context_of, events, same
from tests.engine.test_style import LONG, SLOWER, styled_engine
from tests.engine.tiny import PATCH, SHORT, answer, noise, run, say, talk, tiny_engine, tiny_lm

ID = "sess_1"
TOOL = Tool("weather", "The weather in a city.", {"type": "object", "properties": {"city": {"type": "string"}}})


def open_saved(engine, folder, settings=SHORT):
    file = SessionFolder(folder).create(engine.session_header(ID, "tiny", "key-1"))
    return engine.open(settings, None, file)


def resume(engine, folder, settings=None):
    file, saved = SessionFolder(folder).resume(ID)
    file.write(Resumed(0.0))
    return engine.open(settings or settings_from_dict(saved.settings), saved, file)


def whole(session):
    """Tokens, codes and chunks of a context, and its turns."""
    context = session.slot.history.context
    spans = [
        (s.number, s.role, s.start, s.stop, s.separator, s.user_spoke, s.speech_offset, s.text) for s in context.spans
    ]
    return (*context_of(session), torch.from_numpy(context.chunk_starts[: context.length].copy())), spans


def ask(engine, session, pcm):
    found = answer(engine, session, pcm)
    session.save()
    run(engine)
    return found


def assert_goes_on(engine, session, folder, **options):
    """Resume the session in another engine: it holds the same and says the same."""
    twin_engine = tiny_engine(**options)
    settings = session.slot.settings
    session.save()
    run(engine)
    copy = folder / "copy"
    copy.mkdir()
    (copy / f"{ID}.jsonl").write_bytes((folder / f"{ID}.jsonl").read_bytes())
    twin = resume(twin_engine, copy, settings)
    run(twin_engine)
    (patches, spans), (twin_patches, twin_spans) = whole(session), whole(twin)
    assert spans == twin_spans
    assert all(torch.equal(a, b) for a, b in zip(patches, twin_patches, strict=True))
    for options in (None, ReplyOptions(speak=False)):
        answers = []
        for one, its in ((engine, session), (twin_engine, twin)):
            answers.append(answer(one, its, noise(0.7, 9), options))
        assert np.array_equal(audio_of(answers[0]), audio_of(answers[1]))
        assert same(session, twin)


def test_resumed_session_goes_on(tmp_path):
    engine = tiny_engine()
    session = open_saved(engine, tmp_path)
    for number in range(3):
        ask(engine, session, noise(0.5 + 0.13 * number, number))
    assert_goes_on(engine, session, tmp_path)


def test_everything_that_changes_a_context_is_saved(tmp_path):
    engine = tiny_engine()
    session = open_saved(engine, tmp_path, replace(SHORT, tools=(TOOL,), instructions="Hello"))
    ask(engine, session, noise(0.5))
    typed = session.add_turn(Turn.user("what is the weather like?"))
    session.respond(ReplyOptions(speak=False, instructions="Be there."))
    talk(engine, [session])
    session.save()
    session.add_turn(Turn.user("Hello", noise(0.4, 4)))
    session.add_turn(Turn("assistant", (ToolCall("weather", "{}"),)))
    session.add_turn(Turn("tool", (Text("25 degrees"),)))
    session.respond()
    talk(engine, [session])
    session.save()
    session.delete_turn(typed)
    session.configure(replace(SHORT, seed=8, greeting=Speech(pcm=noise(0.6, 5), text="Hello there")))
    ask(engine, session, noise(0.4, 6))
    saved = SessionFolder(tmp_path).load(ID)
    assert typed not in saved.turns and saved.turns.keys() == {1, 2, *range(4, 11)}
    assert_goes_on(engine, session, tmp_path)


def interrupted(engine, session):
    """Ask, and interrupt the reply after two patches."""
    say(session, noise(0.6, 1))
    number = session.respond()
    found = []

    def enough():
        found.extend(events(session))
        return len(audio_of(found)) >= 3 * PATCH

    run(engine, enough)
    session.interrupt(2 * PATCH)
    session.save()
    run(engine)
    return number


def test_interrupted_reply_is_saved_as_played_and_as_generated(tmp_path):
    engine = tiny_engine()
    session = open_saved(engine, tmp_path)
    number = interrupted(engine, session)
    turn = SessionFolder(tmp_path).load(ID).turns[number]
    assert turn.reply.reason == "interrupted" and turn.reply.played == len(turn.speech(1024)) // 3 == 2
    assert len(turn.reply.generated.text) > 3
    ask(engine, session, noise(0.4, 2))
    session.truncate(number, PATCH)
    session.save()
    run(engine)
    turn = SessionFolder(tmp_path).load(ID).turns[number]
    assert turn.reply.played == 1 and turn.reply.generated is None
    assert [reply.status for reply in replay(tiny_engine(), tmp_path / f"{ID}.jsonl")] == ["same"] * 2
    assert_goes_on(engine, session, tmp_path)


def test_forgotten_turns_stay_in_the_file(tmp_path):
    engine = tiny_engine(context=128)
    session = open_saved(engine, tmp_path, replace(SHORT, instructions="Hello"))
    for number in range(6):
        ask(engine, session, noise(0.8, number))
    saved = SessionFolder(tmp_path).load(ID)
    assert saved.forgotten and len(saved.turns) == 12 > len(saved.remembered)
    session.delete_turn(1)
    assert_goes_on(engine, session, tmp_path, context=128)
    assert 1 not in SessionFolder(tmp_path).load(ID).turns


def test_what_may_be_rolled_back_is_not_saved(tmp_path):
    engine = tiny_engine()
    session = open_saved(engine, tmp_path)
    ask(engine, session, noise(0.5))
    answer(engine, session, noise(0.5, 1))
    assert len(SessionFolder(tmp_path).load(ID).turns) == 2
    session.rollback()
    session.append_audio(noise(0.3, 2))
    session.end_turn()
    session.respond()
    talk(engine, [session])
    session.save()
    run(engine)
    saved = SessionFolder(tmp_path).load(ID)
    assert len(saved.turns) == 4
    assert [reply.status for reply in replay(tiny_engine(), tmp_path / f"{ID}.jsonl")] == ["same"] * 2


def test_turn_is_saved_before_its_reply_ends(tmp_path):
    engine = tiny_engine()
    session = open_saved(engine, tmp_path)
    say(session, noise(0.6))
    session.save()
    session.respond()
    run(engine, lambda: session.slot.generation is not None and session.slot.generation.decoding)
    assert [turn.role for turn in SessionFolder(tmp_path).load(ID).turns.values()] == ["user"]


@pytest.mark.parametrize("options", [{}, {"chain_of_modality": True, "draft_tokens": 3}, {"tools": True}])
def test_replay_says_the_same(tmp_path, options):
    engine = tiny_engine(tiny_lm(**options))
    session = open_saved(engine, tmp_path, SessionSettings(max_patches=25, seed=3))
    for number in range(3):
        ask(engine, session, noise(0.5, number))
    interrupted(engine, session)
    answer(engine, session, noise(0.5, 4))
    session.configure(SessionSettings(max_patches=20, seed=5, instructions="Hello"))
    session.respond(ReplyOptions(speak=False, max_patches=7))
    talk(engine, [session])
    session.save()
    run(engine)
    session.close()
    run(engine)
    again = resume(second := tiny_engine(tiny_lm(**options)), tmp_path)
    ask(second, again, noise(0.5, 7))
    found = list(replay(tiny_engine(tiny_lm(**options)), tmp_path / f"{ID}.jsonl"))
    assert [reply.status for reply in found] == ["same"] * len(found) and len(found) == 7


def test_replay_shows_differences(tmp_path):
    engine = tiny_engine()
    session = open_saved(engine, tmp_path)
    for number in range(2):
        ask(engine, session, noise(0.5, number))
    path = tmp_path / f"{ID}.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    settings = next(i for i, line in enumerate(lines) if b'"type":"settings"' in line)
    entries = list(read_entries(path))
    assert isinstance(entries[settings], Settings)
    entries[settings] = Settings({**entries[settings].values, "seed": 99})
    path.write_bytes(b"".join(to_line(entry, 1024) for entry in entries))
    found = list(replay(tiny_engine(), path))
    assert [reply.status for reply in found] == ["different"] * 2 and found[0].differs_at is not None


def test_replay_of_a_deleted_past_is_unknown(tmp_path):
    engine = tiny_engine()
    session = open_saved(engine, tmp_path)
    for number in range(2):
        ask(engine, session, noise(0.5, number))
    session.delete_turn(1)
    session.save()
    session.close()
    run(engine)
    found = list(replay(tiny_engine(), tmp_path / f"{ID}.jsonl"))
    assert [reply.status for reply in found] == ["unknown"] * 2


def test_other_models_are_refused(tmp_path):
    engine = tiny_engine()
    session = open_saved(engine, tmp_path)
    ask(engine, session, noise(0.5))
    session.close()
    run(engine)
    other = tiny_lm()
    with torch.no_grad():
        next(p for p in other.parameters() if p.ndim == 1).add_(1.0)
    with pytest.raises(UserError, match="a different language model"):
        resume(tiny_engine(other), tmp_path)


def test_context_must_fit(tmp_path):
    engine = tiny_engine()
    session = open_saved(engine, tmp_path)
    for number in range(2):
        ask(engine, session, noise(2.5, number))
    session.close()
    run(engine)
    with pytest.raises(UserError, match="this engine holds 128"):
        resume(tiny_engine(context=128), tmp_path)


# styles


def as_json(values):
    return json.loads(json.dumps(values))


def test_settings_and_options_keep_style_and_speed():
    slower = named_style("slower")
    settings = replace(SHORT, style=slower, speed=1.5, tools=(TOOL,), response_schema={"type": "object"})
    assert settings_from_dict(as_json(settings_to_dict(settings))) == settings
    for options in (ReplyOptions(style=slower, speed=2.0, tools=(TOOL,)), ReplyOptions()):
        assert options_from_dict(as_json(options_to_dict(options))) == options


def go_on(engine, session, folder, *replies):
    """Close the session; resume it in another engine, whose model says `replies`."""
    session.save()
    session.close()
    run(engine)
    engine = styled_engine(*replies)
    return engine, resume(engine, folder)


def rate_of_answer(engine, session):
    number = session.respond()
    found = talk(engine, [session])[session]
    return styles.text_of(found), session.slot.history.context.find(number).rate


def test_style_that_the_user_asked_for_lasts_after_a_resume(tmp_path):
    engine = styled_engine(("speak slower", None))
    session = open_saved(engine, tmp_path, LONG)
    assert styles.ask(engine, session)[2] == SLOWER
    engine, session = go_on(engine, session, tmp_path, ("what", "Hello"))
    assert styles.ask(engine, session) == ("what", "Hello", SLOWER)
    engine, session = go_on(engine, session, tmp_path, ("speak normally", None))
    assert styles.ask(engine, session)[2] == 1.0
    engine, session = go_on(engine, session, tmp_path, ("what", "Hello"))
    assert styles.ask(engine, session) == ("what", "Hello", 1.0)


def test_style_of_a_turn_that_was_rolled_back_is_not_saved(tmp_path):
    engine = styled_engine(("what", "Hello"), ("speak slower", None))
    session = open_saved(engine, tmp_path, LONG)
    styles.ask(engine, session)
    answer(engine, session, noise(0.4))
    session.rollback()
    session.end_turn()
    engine, session = go_on(engine, session, tmp_path, ("what", "Hello"))
    assert styles.ask(engine, session) == ("what", "Hello", 1.0)


def test_typed_request_is_answered_after_a_resume_by_the_whole_last_answer(tmp_path):
    engine = styled_engine(("what", "Hello there"))
    session = open_saved(engine, tmp_path, LONG)
    say(session, noise(0.4))
    session.respond()
    run(engine, until=lambda: session.event_queue.reply_samples >= 2 * PATCH)
    session.interrupt(PATCH)
    run(engine)
    assert any(isinstance(event, Interrupted) for event in events(session))
    session.add_turn(Turn.user("Say that again, slower"))
    engine, session = go_on(engine, session, tmp_path, (None, None))
    assert rate_of_answer(engine, session) == ("Hello there", SLOWER)


def test_answer_to_a_tool_after_a_resume_has_the_style_of_its_question(tmp_path):
    engine = styled_engine((None, "Hello"))
    session = open_saved(engine, tmp_path, LONG)
    assert styles.ask(engine, session, "Slowly: what is the weather?") == (None, "Hello", SLOWER)
    session.add_turn(Turn("tool", (Text("25 degrees"),)))
    engine, session = go_on(engine, session, tmp_path, (None, "It's 25"), (None, "Hello"))
    assert rate_of_answer(engine, session) == ("It's 25", SLOWER)
    assert styles.ask(engine, session, "Hello") == (None, "Hello", 1.0)


def test_reply_is_cut_after_a_resume_at_the_rate_at_which_it_was_spoken(tmp_path):
    engine = styled_engine(("what", "Hello"))
    session = open_saved(engine, tmp_path, replace(LONG, speed=2.0))
    styles.ask(engine, session)
    session.configure(LONG)
    engine, session = go_on(engine, session, tmp_path)
    session.truncate(2, 4 * PATCH // 2 + engine.core._codec_delay)
    run(engine)
    history = session.slot.history
    assert history.speech_length(history.context.find(2)) == 4


def test_replay_follows_requests(tmp_path):
    script = (("what", "Hello there"), (None, None), ("speak slower", None), ("what", "Hello"))
    engine = styled_engine(*script)
    session = open_saved(engine, tmp_path, LONG)
    for text in (None, "Say that again, slower", None, None):
        styles.ask(engine, session, text)
        session.save()
        run(engine)
    session.close()
    run(engine)
    found = list(replay(styled_engine(*script), tmp_path / f"{ID}.jsonl"))
    assert [reply.status for reply in found] == ["same"] * 4
