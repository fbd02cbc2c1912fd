"""The tool loop on a scripted conversation: rounds, their limit, interruption, and what is said when it fails."""

from types import SimpleNamespace

import numpy as np
import pytest

from speechgpt2.errors import UserError
from speechgpt2.types import AudioDelta, ReplyDone, Text, TextDelta, ToolCall, Transcript, Turn
from tests import needs

needs.module("jsonschema", "assistant")

from speechgpt2.assistant.loop import NO_MORE, run, stream
from speechgpt2.assistant.toolbox import Toolbox, ToolResult

PARIS, ROME = ToolCall("weather", '{"city": "Paris"}'), ToolCall("weather", '{"city": "Rome"}')
DONE = ReplyDone("stop")
ANSWER = [TextDelta("It is sunny."), DONE]


class ScriptedConversation:
    """A conversation whose replies are known; it remembers its turns and how its replies ended."""

    def __init__(self, *replies, tools=True, speak=False, reads_aloud=True):
        self.tools, self.replies = tools, list(replies)
        self.speak, self.reads_aloud = speak, reads_aloud
        self.turns, self.ended = [], []

    def ask(self, turn, stream):
        self.turns.append(turn)
        return self._reply(self.replies.pop(0))

    def say(self, text):
        return self._reply([TextDelta(text), DONE])

    def _reply(self, events):
        try:
            yield from events
            self.ended.append("complete")
        except GeneratorExit:
            self.ended.append("interrupted")
            raise

    def collect(self, events):
        return SimpleNamespace(events=list(events))


@pytest.fixture
def cities():
    return []


@pytest.fixture
def toolbox(cities):
    def weather(city: str) -> str:
        """Look up the weather."""
        cities.append(city)
        return f"sunny in {city}"

    return Toolbox([weather])


def tool_texts(*texts):
    return Turn("tool", tuple(Text(text) for text in texts))


def test_calls_of_a_reply_are_run_and_answered(toolbox):
    conversation = ScriptedConversation([TextDelta("Wait."), PARIS, ROME, DONE], ANSWER)
    answer = run(conversation, Turn.user("Hello"), toolbox)
    assert conversation.turns == [Turn.user("Hello"), tool_texts("sunny in Paris", "sunny in Rome")]
    assert answer.reply.events == ANSWER and answer.rounds == 1
    assert [(result.call, result.text) for result in answer.results] == [
        (PARIS, "sunny in Paris"),
        (ROME, "sunny in Rome"),
    ]


def test_events_of_all_replies_are_streamed_in_order(toolbox):
    events = list(stream(ScriptedConversation([PARIS, DONE], ANSWER), Turn.user("Hello"), toolbox))
    assert events[:2] == [PARIS, DONE] and isinstance(events[2], ToolResult) and events[3:] == ANSWER


def test_reply_without_calls_ends_the_turn(toolbox, cities):
    answer = run(ScriptedConversation(ANSWER), Turn.user("Hello"), toolbox)
    assert answer.reply.events == ANSWER and answer.results == () and answer.rounds == 0 and cities == []


def test_rounds_are_limited(toolbox, cities):
    conversation = ScriptedConversation([PARIS, DONE], [ROME, DONE], [PARIS, DONE], ANSWER)
    answer = run(conversation, Turn.user("Hello"), toolbox, max_rounds=2)
    assert cities == ["Paris", "Rome"]
    assert conversation.turns[-1] == tool_texts(NO_MORE) and not answer.results[-1].ok
    assert answer.reply.events == ANSWER and answer.rounds == 3 and conversation.replies == []


GARBLED = ToolCall("", '{"name": "weather", "arguments": {"city": "Par')


def test_model_may_repair_a_malformed_call_once(toolbox, cities):
    conversation = ScriptedConversation([GARBLED, DONE], [PARIS, DONE], ANSWER)
    answer = run(conversation, Turn.user("Hello"), toolbox)
    result = conversation.turns[1].segments[0].text
    assert "not JSON (Unterminated string" in result and "Repeat it" in result and answer.results[0].invalid
    assert cities == ["Paris"] and answer.reply.events == ANSWER and answer.rounds == 2


def test_second_invalid_call_is_the_last(toolbox, cities):
    wrong = ToolCall("weather", '{"town": "Rome"}')  # not what the schema asks for
    conversation = ScriptedConversation([GARBLED, DONE], [wrong, DONE], [PARIS, DONE], ANSWER)
    answer = run(conversation, Turn.user("Hello"), toolbox)
    assert [result.invalid for result in answer.results] == [True, True, False]
    assert conversation.turns[-1] == tool_texts(NO_MORE) and cities == [] and answer.reply.events == ANSWER


def test_interrupted_reply_calls_no_tool(toolbox, cities):
    conversation = ScriptedConversation([PARIS, AudioDelta(None), DONE])
    events = stream(conversation, Turn.user("Hello"), toolbox)
    assert next(events) == PARIS
    events.close()
    assert cities == [] and conversation.ended == ["interrupted"]


@pytest.mark.parametrize("events", [[PARIS], [PARIS, ReplyDone("interrupted")]])
def test_incomplete_reply_calls_no_tool(toolbox, cities, events):
    answer = run(ScriptedConversation(events), Turn.user("Hello"), toolbox)
    assert cities == [] and answer.reply.events == events


FAILED_EN, FAILED_ZH = [TextDelta("Sorry, that did not work."), DONE], [TextDelta("抱歉，这次没有成功。"), DONE]
WORDLESS = [TextDelta(" "), DONE]


@pytest.mark.parametrize(
    "replies",
    [
        pytest.param([[GARBLED, DONE], [GARBLED, DONE], [GARBLED, DONE], [GARBLED, DONE]], id="never readable"),
        pytest.param([[PARIS, DONE]] * 6, id="calls without end"),
        pytest.param([[PARIS, DONE]] * 5 + [[TextDelta("I look it up."), PARIS, DONE]], id="words and a call"),
        pytest.param([[PARIS, DONE], WORDLESS], id="no words after a result"),
        pytest.param([[GARBLED, ReplyDone("length")]], id="call cut off"),
        pytest.param([[PARIS, DONE], [PARIS, ReplyDone("length")]], id="second call cut off"),
    ],
)
def test_turn_without_an_answer_ends_with_a_fixed_sentence(toolbox, replies):
    for asked, failed in (("Hello", FAILED_EN), ("天气怎么样？", FAILED_ZH)):
        conversation = ScriptedConversation(*replies, ANSWER)
        answer = run(conversation, Turn.user(asked), toolbox)
        assert answer.reply.events == failed and conversation.replies == [ANSWER]
        assert run(conversation, Turn.user("Hello"), toolbox).reply.events == ANSWER  # the talk goes on


def test_fixed_sentence_is_in_the_language_that_was_spoken(toolbox):
    conversation = ScriptedConversation([Transcript("你好"), PARIS, DONE], WORDLESS)
    events = list(stream(conversation, Turn.user(speech=np.zeros(9600, np.float32)), toolbox))
    assert events[-2:] == FAILED_ZH


def test_reply_without_words_is_no_failure_of_tools(toolbox):
    assert run(ScriptedConversation(WORDLESS), Turn.user("Hello"), toolbox).reply.events == WORDLESS


@pytest.mark.parametrize("said", [WORDLESS, [PARIS, DONE]])
def test_model_that_cannot_read_aloud_is_asked_to_say_it(toolbox, said):
    """If it does not, the sentence is written."""
    spoken = {"speak": True, "reads_aloud": False}
    conversation = ScriptedConversation([PARIS, DONE], WORDLESS, ANSWER, **spoken)
    assert run(conversation, Turn.user("Hello"), toolbox).reply.events == ANSWER
    assert conversation.turns[-1].segments[0].text.endswith("nothing else: Sorry, that did not work.")
    conversation = ScriptedConversation([PARIS, DONE], WORDLESS, said, **spoken)
    assert run(conversation, Turn.user("Hello"), toolbox).reply.events == FAILED_EN


def test_conversation_without_tools_is_refused(toolbox):
    with pytest.raises(UserError, match=r"pass tools=toolbox\.tools"):
        stream(ScriptedConversation(tools=False), Turn.user("Hello"), toolbox)


def test_loop_on_a_real_conversation():
    """The model reads the result of its call and answers; its words are scripted, its state is real."""
    from speechgpt2.chat import SpeechGPT
    from speechgpt2.lm.segments import concat
    from tests.lm.tiny import tiny_lm
    from tests.test_chat import CountingCodec, ScriptedLM, same

    def weather() -> str:
        """Look up the weather."""
        return "25"

    toolbox, lm = Toolbox([weather]), tiny_lm(tools=True)
    prompt = lm.prompt
    calling = prompt.reply('<tool_call>\n{"name": "weather", "arguments": {}}\n</tool_call>')
    lm = ScriptedLM(lm, calling, prompt.reply("It's 25."))
    conversation = SpeechGPT(CountingCodec(), lm).conversation("t2t", tools=toolbox.tools)
    answer = run(conversation, Turn.user("what"), toolbox)
    assert (answer.reply.text, answer.reply.reason, answer.reply.calls) == ("It's 25.", "stop", ())
    assert [(result.call, result.text) for result in answer.results] == [(ToolCall("weather", "{}"), "25")]
    result = prompt.user_text("<tool_response>\n25\n</tool_response>")
    system = prompt.system_prompt("t2t", tools=toolbox.tools)
    assert same(lm.read, concat(system, prompt.user_text("what"), calling, result, prompt.reply("It's 25.")))


@pytest.mark.parametrize("chain_of_modality", [True, False])
@pytest.mark.parametrize("mode", ["t2t", "t2s"])
def test_fixed_sentence_of_a_real_conversation_is_remembered(chain_of_modality, mode):
    """It is read aloud where the answers are spoken and the model can do so."""
    import torch

    from speechgpt2.chat import SpeechGPT
    from speechgpt2.lm.segments import concat
    from tests.lm.tiny import tiny_lm
    from tests.test_chat import CountingCodec, ScriptedLM

    def weather() -> str:
        """Look up the weather."""
        return "25"

    toolbox, lm = Toolbox([weather]), tiny_lm(tools=True, chain_of_modality=chain_of_modality)
    prompt, aloud = lm.prompt, mode == "t2s" and chain_of_modality
    calling = prompt.reply('<tool_call>\n{"name": "weather", "arguments": {}}\n</tool_call>')
    silent = [prompt.reply("")] * (2 if mode == "t2s" and not chain_of_modality else 1)
    speech = prompt.speech_patches(torch.zeros(9, 3, dtype=torch.int64), [prompt.special_ids.filler] * 3)
    reading = [concat(speech, prompt.turn_end(speaking=True))] if aloud else []
    lm = ScriptedLM(lm, calling, *silent, *reading, prompt.reply("Hello."))
    conversation = SpeechGPT(CountingCodec(), lm).conversation(mode, tools=toolbox.tools)
    reply = run(conversation, Turn.user("what"), toolbox).reply
    assert (reply.text, reply.reason) == ("Sorry, that did not work.", "stop")
    assert len(reply.pcm) == len(reply.codes) * 960 == 9 * 960 * aloud
    assert run(conversation, Turn.user("Hello"), toolbox).reply.text == "Hello."
    assert [turn.text for turn in conversation.log.turn_blocks()][-3:] == [reply.text, "Hello", "Hello."]
    written = prompt.encode(reply.text)
    assert prompt.tokenizer.decode(written) in prompt.tokenizer.decode(lm.read.text[0].tolist())
