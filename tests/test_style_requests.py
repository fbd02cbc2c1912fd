"""Requests for a style in words: found where they are, and not where they are not."""

import pytest

from speechgpt2.persona import gallery
from speechgpt2.style import NORMAL, Style, named_style
from speechgpt2.style_requests import StyleRequest, find_request, styles_in

ONLY = {  # the whole turn: the styles, and whether they last
    "say it faster": ("faster", False),
    "Say that again, more slowly, please.": ("slower", False),
    "Please speak more slowly.": ("slower", True),
    "Can you talk a little bit louder?": ("louder", True),
    "Could you please speak slower?": ("slower", True),
    "louder please": ("louder", True),
    "A bit slower, please": ("slower", True),
    "whisper": ("whisper", True),
    "Please whisper.": ("whisper", True),
    "whisper it": ("whisper", True),
    "Say it in a whisper.": ("whisper", False),
    "Say it happily!": ("happy", False),
    "Be happy": ("happy", True),
    "sound angry please": ("angry", True),
    "Speak in a sad voice.": ("sad", True),
    "from now on, speak calmly": ("calm", True),
    "Speak faster this time.": ("faster", False),
    "speak in a deeper voice": ("lower", True),
    "not so fast please": ("slower", True),
    "normal voice again": ("normal", True),
    "Speak normally again, please.": ("normal", True),
    "repeat that in a high voice": ("higher", False),
    "speak slower and louder": ("slower louder", True),
    "说慢一点": ("slower", True),
    "请说慢一点。": ("slower", True),
    "请你说话快一点好吗？": ("faster", True),
    "你能不能说慢点": ("slower", True),
    "slow down please": ("slower", True),
    "You speak too fast": ("slower", True),
    "go back to your normal voice": ("normal", True),
    "你说得太快了": ("slower", True),
    "请用悄悄话跟我说": ("whisper", True),
    "小点声": ("softer", True),
    "大声点": ("louder", True),
    "大声一点吧": ("louder", True),
    "小声一点": ("softer", True),
    "用悄悄话": ("whisper", True),
    "用悄悄话说": ("whisper", True),
    "再说一遍，慢一点": ("slower", False),
    "再慢一点说一遍": ("slower", False),
    "以后都说快一点": ("faster", True),
    "用开心的语气说": ("happy", True),
    "恢复正常": ("normal", True),
    "用正常的声音说话": ("normal", True),
    "声音高一点": ("higher", True),
    "别那么快": ("slower", True),
}
QUESTIONS = {  # a question with a style: the styles, whether they last, and the question
    "Whisper: what is the capital of France?": ("whisper", False, "what is the capital of France"),
    "Please speak slowly. What is the capital of France?": ("slower", True, "What is the capital of France"),
    "What is the capital of France? Say it slowly.": ("slower", False, "What is the capital of France?"),
    "Tell me a joke, in a whisper": ("whisper", False, "Tell me a joke"),
    "Tell me a joke, but louder please.": ("louder", False, "Tell me a joke"),
    "Tell me what the capital is in a whisper": ("whisper", False, "Tell me what the capital is"),
    "count to five slowly": ("slower", False, "count to five"),
    "Can you tell me a story in a happy voice?": ("happy", False, "Can you tell me a story"),
    "whisper the capital of France": ("whisper", False, "the capital of France"),
    "please speak slowly what is three plus five": ("slower", False, "what is three plus five"),
    "用悄悄话告诉我法国的首都是哪里": ("whisper", False, "告诉我法国的首都是哪里"),
    "说慢一点，法国的首都是哪里？": ("slower", True, "法国的首都是哪里"),
    "Slowly: what is the capital of France?": ("slower", False, "what is the capital of France"),
    "法国的首都是哪里？用悄悄话说": ("whisper", False, "法国的首都是哪里？"),
    "慢慢地数到五": ("slower", False, "数到五"),
    "大声告诉我你的名字": ("louder", False, "告诉我你的名字"),
}
NONE = [
    "",
    "Tell me which animal is faster",
    "When should I slow down?",
    "Why do cars slow down",
    "Tell me how to sing loudly",
    "Say who speaks louder.",
    "Repeat after me: speak slowly.",
    "Say: slower",
    "跟我说：慢一点",
    "他为什么大声说",
    "大声说话的人是谁",
    "What is the capital of France?",
    "Which animal is faster, a horse or a dog?",
    "Who is louder?",
    "Say whisper.",
    "say happy",
    "I am happy.",
    "happy",
    "I feel sad today",
    "The opposite of fast is slow.",
    "How do you say slower in Chinese?",
    "Why do people whisper?",
    "I walk slowly to school every day.",
    "What does calm mean?",
    "Is light faster than sound?",
    "Calm down",
    "What is the opposite of slow?",
    "Is everything back to normal?",
    "快乐的反义词是什么",
    "火车比汽车快吗",
    "你今天高兴吗",
    "慢慢是什么意思",
    "我今天很难过",
    "谁跑得更快？",
    "大声的反义词是小声",
    "今天天气正常吗",
    "平静",
]


@pytest.mark.parametrize("text", ONLY)
def test_turn_that_is_only_a_request(text):
    names, lasting = ONLY[text]
    assert find_request(text) == StyleRequest(tuple(names.split()), lasting)


@pytest.mark.parametrize("text", QUESTIONS)
def test_question_keeps_its_words(text):
    names, lasting, rest = QUESTIONS[text]
    assert find_request(text) == StyleRequest(tuple(names.split()), lasting, rest)


@pytest.mark.parametrize("text", NONE)
def test_turn_without_a_request(text):
    assert find_request(text) is None


def test_comparing_requests_add_up_and_others_replace():
    faster, happy, normal = (find_request(text) for text in ("speak faster", "speak happily", "speak normally"))
    once = faster.applied(NORMAL)
    assert once == named_style("faster") and faster.applied(once).rate == pytest.approx(once.rate**2)
    assert happy.applied(once) == named_style("happy") and normal.applied(once) == NORMAL
    assert faster.applied(Style(rate=0.8)).rate == pytest.approx(1.0)


@pytest.mark.parametrize("text", ["a" * 100_000, "speak " * 60, "慢" * 200, "please " * 40 + "x", "用" * 299])
def test_any_text_is_read_at_once(text):
    assert find_request(text) is None


def test_descriptions_name_their_styles():
    assert styles_in("Speak slowly and calmly, with a pause.") == ("slower", "calm")
    assert styles_in("说话温柔、缓慢。") == ("softer", "slower")
    assert styles_in("In a French accent.") == ()


def test_personas_have_the_styles_that_they_describe():
    found = {name: styles_in(persona.style or "") for name, persona in gallery().items()}
    assert found["storyteller"] == ("slower",) and found["pirate"] == ("lower",)
    assert found["newsreader"] == ("calm", "faster") and found["nainai"] == ("softer", "slower")
