"""A dialogue with a fake session: calls and events, on a clock that runs with the microphone."""

import asyncio
from functools import wraps

import numpy as np
import pytest

from speechgpt2.duplex.dialogue import Dialogue
from speechgpt2.duplex.protocol import (
    DialogueSettings,
    IdleTimeout,
    ReplyStarted,
    SemanticVad,
    ServerVad,
    UserTurnCommitted,
)
from speechgpt2.errors import UserError
from speechgpt2.types import (
    AudioDelta,
    Interrupted,
    ReplyDone,
    SpeechStarted,
    SpeechStopped,
    TextDelta,
    ToolCall,
    Transcript,
    Turn,
)
from tests.duplex.session import LevelVad, Session, audio

BLOCK = 768  # 32 ms
HAND = DialogueSettings(turn_detection=None)
VAD = DialogueSettings(ServerVad(silence_ms=512, prefix_ms=320), speculate_ms=192, interrupt_ms=288)


def run(test):
    @wraps(test)
    def call(*arguments, **options):
        asyncio.run(asyncio.wait_for(test(*arguments, **options), 20))

    return call


class Talk:
    """A dialogue, its session, and all it told; `now` in seconds follows the microphone."""

    def __init__(self, settings=VAD):
        self.session, self.now, self.received, self.said = Session(), 0.0, [], 0
        self.dialogue = Dialogue(self.session, settings, LevelVad, lambda: self.now)
        self.reader = asyncio.create_task(self.read())

    async def read(self):
        async for event in self.dialogue.events():
            self.received.append(event)

    async def play(self, milliseconds, level, chunk=BLOCK):
        """The microphone, `level` its loudness; a ramp on top tells samples apart."""
        total = round(milliseconds * 24)
        pcm = (level * (1 + 1e-4 * np.arange(self.said, self.said + total) / 24_000)).astype(np.float32)
        await self.feed(pcm, chunk)
        return pcm

    async def feed(self, pcm, chunk=BLOCK):
        self.said += len(pcm)
        for start in range(0, len(pcm), chunk):
            piece = pcm[start : start + chunk]
            self.dialogue.append_audio(piece)
            self.now += len(piece) / 24_000
            await self.settle()

    async def voice(self, milliseconds, chunk=BLOCK):
        return await self.play(milliseconds, 0.3, chunk)

    async def silence(self, milliseconds, chunk=BLOCK):
        return await self.play(milliseconds, 1e-5, chunk)

    async def settle(self):
        for _ in range(6):
            await asyncio.sleep(0)

    async def tell(self, *events):
        self.session.tell(*events)
        await self.settle()

    def news(self):
        received, self.received = self.received, []
        return received

    def names(self):
        return [type(event).__name__ for event in self.news()]


@run
async def test_detected_turn_includes_its_prefix_and_is_answered():
    talk = Talk()
    before = await talk.silence(960)
    turn = await talk.voice(640)
    pause = await talk.silence(224)
    assert talk.session.calls == ["start_turn", "end_turn", "respond"]
    sent = talk.session.audio_of(1)
    said = np.concatenate([before, turn, pause])
    begin = (960 - 320) * 24
    assert np.array_equal(sent, said[begin : begin + len(sent)]) and len(sent) == (320 + 640 + 192) * 24
    assert talk.news() == [SpeechStarted(960 * 24)]
    await talk.tell(Transcript("Hi?"), TextDelta("Hello."))
    assert talk.news() == []
    await talk.silence(320)
    end = (960 + 640) * 24
    assert talk.news() == [
        SpeechStopped(end),
        UserTurnCommitted(1, 960 * 24, end),
        ReplyStarted(2),
        Transcript("Hi?"),
        TextDelta("Hello."),
    ]
    await talk.tell(TextDelta("How are you?"), ReplyDone("stop"))
    assert talk.news() == [TextDelta("How are you?"), ReplyDone("stop")]


@run
async def test_resumed_turn_has_no_gap_and_hides_the_speculative_reply():
    talk = Talk()
    said = [await talk.voice(640), await talk.silence(320)]
    await talk.tell(Transcript("I"), TextDelta("Oh"), audio(0.1))
    said += [await talk.voice(640), await talk.silence(192)]
    assert talk.session.calls == ["start_turn", "end_turn", "respond", "rollback", "end_turn", "respond"]
    assert np.array_equal(talk.session.audio_of(1), np.concatenate(said))
    assert talk.names() == ["SpeechStarted"]
    await talk.silence(512)
    assert talk.news()[1:] == [UserTurnCommitted(1, 0, (640 + 320 + 640) * 24), ReplyStarted(3)]


@run
async def test_detection_does_not_depend_on_chunking():
    calls, turns = [], []
    for chunk in (BLOCK, 24_000, 1_001):
        talk = Talk()
        await talk.silence(960, chunk)
        await talk.voice(960, chunk)
        await talk.silence(960, chunk)
        calls.append(talk.session.calls)
        turns.append([event for event in talk.news() if isinstance(event, UserTurnCommitted)])
        assert abs(len(talk.session.audio_of(1)) - (320 + 960 + 192) * 24) <= 2 * BLOCK
    assert calls[0] == calls[1] == calls[2] and turns[0] == turns[1] == turns[2]


@run
async def test_barge_in_reports_played_audio_and_stops_the_reply():
    talk = Talk()
    await talk.voice(320)
    await talk.silence(640)
    await talk.tell(audio(2.0))
    await talk.silence(480)
    talk.news()
    await talk.voice(640)
    played = (480 + 288) * 24
    assert talk.session.calls[3:] == [("interrupt", played - BLOCK), "start_turn"]  # the clock runs after the block
    assert talk.news() == [
        Interrupted(played - BLOCK), ReplyDone("interrupted"), SpeechStarted((320 + 640 + 480) * 24),
    ]  # fmt: skip
    await talk.silence(640)
    assert talk.names() == ["SpeechStopped", "UserTurnCommitted", "ReplyStarted"]


@run
async def test_barge_in_retracts_unread_events():
    talk = Talk()
    talk.reader.cancel()
    dialogue, session = talk.dialogue, talk.session
    events = dialogue.events()
    dialogue.respond()
    assert await anext_of(events) == ReplyStarted(1)
    session.tell(audio(0.5), TextDelta("a"), audio(0.5), ToolCall("bell", "{}"), ReplyDone("stop"))
    assert isinstance(await anext_of(events), AudioDelta)
    talk.now += 0.2
    dialogue.interrupt()
    assert await anext_of(events) == Interrupted(4800)
    assert await anext_of(events) == ReplyDone("interrupted")
    assert session.calls[-1] == ("truncate", 1, 4800)  # it had been made to its end
    dialogue.close()
    assert [event async for event in events] == []


def anext_of(events):
    return asyncio.wait_for(events.__anext__(), 5)


async def talk_over_a_reply(seconds, voice):
    """A dialogue whose user speaks for `voice` milliseconds into a reply of so many `seconds`."""
    talk = Talk()
    talk.dialogue.respond()
    await talk.tell(audio(seconds))
    await talk.silence(480)
    await talk.voice(voice)
    return talk


@run
async def test_backchannel_does_not_interrupt():
    talk = await talk_over_a_reply(4.0, voice=224)
    await talk.silence(480)
    assert talk.session.calls == ["respond"]
    assert talk.names() == ["ReplyStarted", "AudioDelta"]


@run
async def test_echo_does_not_interrupt_but_a_louder_voice_does():
    talk = Talk()
    talk.dialogue.respond()
    answer = audio(6.0, level=0.1)
    await talk.tell(answer)
    await talk.silence(96)
    await talk.feed(0.5 * answer.pcm[: 3 * 24_000])
    assert talk.session.calls == ["respond"]
    await talk.voice(640)
    assert talk.session.calls[1][0] == "interrupt"


@run
async def test_headset_user_can_interrupt_from_the_first_word():
    talk = Talk()
    talk.dialogue.respond()
    await talk.tell(audio(6.0, level=0.1))
    await talk.play(320, 0.05)
    assert talk.session.calls[1][0] == "interrupt"


@run
async def test_echo_interrupts_without_the_guard():
    talk = Talk(DialogueSettings(ServerVad(), echo_guard=False))
    talk.dialogue.respond()
    answer = audio(6.0, level=0.1)
    await talk.tell(answer)
    await talk.feed(0.5 * answer.pcm[:24_000])
    assert talk.session.calls[1][0] == "interrupt"


@run
async def test_interruption_can_be_disabled():
    talk = Talk(DialogueSettings(ServerVad(interrupt_response=False)))
    talk.dialogue.respond()
    await talk.tell(audio(1.0), ReplyDone("stop"))
    await talk.voice(960)
    assert talk.session.calls == ["respond"]
    await talk.voice(320)
    assert talk.session.calls == ["respond", "start_turn"]


@run
async def test_create_response_false_only_commits_turns():
    talk = Talk(DialogueSettings(ServerVad(create_response=False, silence_ms=512)))
    await talk.voice(640)
    await talk.silence(960)
    assert talk.session.calls == ["start_turn", "end_turn"]
    assert talk.names() == ["SpeechStarted", "SpeechStopped", "UserTurnCommitted"]
    assert talk.dialogue.respond() == 2


@pytest.mark.parametrize(("transcript", "wait"), [("Go home.", 256), ("Go…", 2016), (None, 512)])
@run
async def test_semantic_vad_ends_a_complete_turn(transcript, wait):
    talk = Talk(DialogueSettings(SemanticVad("high"), speculate_ms=192))
    await talk.voice(640)
    await talk.silence(224)
    await talk.tell(Transcript(transcript) if transcript else TextDelta("So."))
    waited = 224
    while "UserTurnCommitted" not in [type(event).__name__ for event in talk.received]:
        await talk.silence(32)
        waited += 32
    assert waited == wait
    assert talk.names()[1:] == [
        "SpeechStopped",
        "UserTurnCommitted",
        "ReplyStarted",
        "Transcript" if transcript else "TextDelta",
    ]
    assert talk.session.calls == ["start_turn", "end_turn", "respond"]


@run
async def test_manual_turns_hold_all_audio_until_commit():
    talk = Talk(HAND)
    with pytest.raises(UserError, match="no audio"):
        talk.dialogue.commit_audio()
    said = [await talk.silence(480), await talk.voice(480)]
    talk.dialogue.commit_audio()
    assert np.array_equal(talk.session.audio_of(1), np.concatenate(said))
    talk.dialogue.respond()
    await talk.settle()
    assert talk.news() == [UserTurnCommitted(1, 0, 960 * 24), ReplyStarted(2)]
    more = [await talk.voice(320)]  # while the reply is given
    assert talk.session.calls == ["start_turn", "end_turn", "respond"]
    await talk.tell(ReplyDone("stop"))
    more += [await talk.voice(320)]
    talk.dialogue.commit_audio()
    assert np.array_equal(talk.session.audio_of(3), np.concatenate(more))
    await talk.settle()
    assert talk.news() == [ReplyDone("stop"), UserTurnCommitted(3, 960 * 24, 1600 * 24)]


@run
async def test_typed_turn_leaves_uncommitted_audio():
    talk = Talk(HAND)
    said = [await talk.voice(320)]
    talk.dialogue.add_turn(Turn.user("Hello"))
    said += [await talk.voice(320)]
    talk.dialogue.commit_audio()
    assert talk.session.calls == [
        "start_turn",
        "discard_turn",
        ("add_turn", Turn.user("Hello")),
        "start_turn",
        "end_turn",
    ]
    assert np.array_equal(talk.session.audio_of(3), np.concatenate(said))


@run
async def test_typed_turn_commits_the_detected_one():
    talk = Talk()
    await talk.voice(320)
    talk.dialogue.add_turn(Turn.user("Hello"))
    await talk.settle()
    assert talk.session.calls == ["start_turn", "end_turn", ("add_turn", Turn.user("Hello"))]
    assert talk.names() == ["SpeechStarted", "SpeechStopped", "UserTurnCommitted"]


@run
async def test_cleared_audio_leaves_no_trace():
    for pause in (0, 320):
        talk = Talk()
        await talk.voice(320)
        await talk.silence(pause)
        talk.dialogue.clear_audio()
        assert talk.session.calls[-1] == "discard_turn" and not talk.session.replying
        await talk.silence(960)
        assert talk.names() == ["SpeechStarted"]


@run
async def test_history_change_during_a_pause_restarts_the_speculative_reply():
    talk = Talk()
    await talk.voice(320)
    await talk.silence(320)
    talk.dialogue.truncate(7, 100)
    assert talk.session.calls[2:] == ["respond", "rollback", ("truncate", 7, 100), "end_turn", "respond"]
    await talk.voice(320)
    assert talk.session.calls[-1] == "rollback"


@run
async def test_history_change_during_speech_keeps_the_turn():
    talk = await talk_over_a_reply(2.0, voice=480)
    talk.dialogue.truncate(1, 5000)
    await talk.voice(320)
    assert talk.session.calls[2:] == ["start_turn", ("truncate", 1, 5000)] and talk.session.speaking


@run
async def test_idle_timeout_is_reported_and_answered():
    talk = Talk(DialogueSettings(ServerVad(idle_timeout_ms=960)))
    talk.dialogue.respond()
    await talk.tell(audio(0.5), ReplyDone("stop"))
    talk.news()
    await talk.silence(2048)
    timeout, started = talk.news()
    assert isinstance(timeout, IdleTimeout) and timeout.end - timeout.start >= 960 * 24
    assert started == ReplyStarted(2)


@run
async def test_turn_detection_can_change_during_a_dialogue():
    talk = Talk(HAND)
    await talk.voice(320)
    talk.dialogue.configure(VAD)
    assert talk.session.calls[-1] == "discard_turn"
    await talk.silence(320)
    await talk.voice(320)
    await talk.silence(640)
    assert talk.news()[:2] == [SpeechStarted(640 * 24), SpeechStopped(960 * 24)]
    with pytest.raises(UserError, match="threshold"):
        talk.dialogue.configure(DialogueSettings(ServerVad(threshold=2.0)))
    assert talk.dialogue.settings == VAD


@run
async def test_interrupt_without_reply_is_an_error():
    talk = Talk()
    with pytest.raises(UserError, match="no reply"):
        talk.dialogue.interrupt()


@run
async def test_invalid_audio_is_refused_and_close_ends_events():
    talk = Talk()
    for wrong in (np.zeros((2, 2)), np.array([np.nan])):
        with pytest.raises(UserError, match="audio"):
            talk.dialogue.append_audio(wrong)
    talk.dialogue.close()
    talk.dialogue.close()
    await asyncio.wait_for(talk.reader, 5)


@run
async def test_session_error_reaches_the_reader():
    talk = Talk()

    async def broken():
        raise RuntimeError("broken")
        yield

    talk.reader.cancel()
    talk.session.events = broken
    with pytest.raises(RuntimeError, match="broken"):
        await asyncio.wait_for(talk.read(), 5)
