"""What conversations are made of before anybody speaks: scenes, spoken language, timing, a model's answers."""

import http.server
import json
import random
import threading

import pytest

from speechgpt2.curriculum.texts import read
from speechgpt2.data.conversations.disfluency import DisfluencyConfig, add_disfluencies
from speechgpt2.data.conversations.llm import InvalidScript, LlmConfig, write_script
from speechgpt2.data.conversations.scene_grammar import Scene
from speechgpt2.data.conversations.scenes import scenes
from speechgpt2.data.conversations.script import STYLES, Line, Script, first_words, words_of
from speechgpt2.data.conversations.timing import Distribution, SpeechSpan, TimingConfig, fit
from speechgpt2.errors import UserError


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_every_scene_gives_scripts_that_can_be_spoken(lang):
    seen = set()
    for name, scene in scenes(lang).items():
        for seed in range(30):
            script = add_disfluencies(
                scene.draw(random.Random(seed)), DisfluencyConfig(0.4, 0.3, 0.3), random.Random(seed)
            )
            seen |= {line.kind for line in script.lines} | {line.style for line in script.lines}
            for line in script.lines:
                assert not set(line.text) & set("{}=[]0123456789"), (name, line)
                if lang == "zh":
                    assert all("\u4e00" <= c <= "\u9fff" or c in "，。！？" for c in line.text), line
    assert seen >= {"turn", "backchannel", "interruption", "fast", "slow", "whisper", "sad", "happy"}


def test_slots_are_drawn_once_or_per_use_and_lines_omitted():
    text = "a: {=x} {=x} {y}\nb[{m}]?: yes\na?: {y}\nb{call key={=x}}: {=x}"
    scene = Scene("s", "en", text, {"x": ("one", "two"), "y": ("{x} more",), "m": ("fast", "slow")})
    drawn = [scene.draw(random.Random(seed)) for seed in range(40)]
    assert drawn == [scene.draw(random.Random(seed)) for seed in range(40)]
    assert {len(script.lines) for script in drawn} == {2, 4}
    for script in drawn:
        first, second, *_ = script.lines[0].text.lower().split()
        assert first == second and script.lines[-1].text.lower() == first
        assert script.lines[-1].tool == (("name", "call"), ("key", first))
    assert {line.style for script in drawn for line in script.lines} == {"", "fast", "slow"}


@pytest.mark.parametrize(
    "text, rules, complaint",
    [
        ("a: {x}\nb: y", {}, "no rule for the slot {x}"),
        ("a: {x}\nb: y", {"x": ("{y}",), "y": ("{x}",)}, "in circles"),
        ("a: x\nnothing", {}, "is not a line"),
        ("a: x\na: y", {}, "two roles"),
    ],
)
def test_invalid_scene_is_rejected_when_it_is_read(text, rules, complaint):
    with pytest.raises(UserError, match=complaint):
        Scene("s", "en", text, rules)


@pytest.mark.parametrize(
    "lines, complaint",
    [
        ([Line("c", "x")], "no role 'c'"),
        ([Line("a", "x", style="angry")], "no style"),
        ([Line("a", "...")], "something to say"),
        ([Line("a", "x" * 500)], "at most"),
        ([Line("a", "mm", "backchannel")], "needs a turn"),
        ([Line("a", "x"), Line("a", "no", "interruption")], "needs a turn"),
        ([], "at least one turn"),
    ],
)
def test_invalid_scripts_are_rejected(lines, complaint):
    with pytest.raises(UserError, match=complaint):
        Script("s", "en", ("a", "b"), tuple(lines))


@pytest.mark.parametrize(
    "lang, text",
    [("en", "I would like a coffee, please, and the early train."), ("zh", "我要一杯牛奶，再来两个苹果。")],
)
def test_marks_cover_inserted_words_only(lang, text):
    script = Script("s", lang, ("a", "b"), (Line("a", text),))
    kinds = set()
    for seed in range(200):
        (line,) = add_disfluencies(script, DisfluencyConfig(0.4, 0.3, 0.3), random.Random(seed)).lines
        (mark,) = line.marks
        words = words_of(line.text, lang)
        kinds.add(mark.kind)
        rest = words[: mark.start] + words[mark.end :]
        assert [w.lower() for w in rest] == [w.lower() for w in words_of(text, lang)]
        if mark.kind == "filler":
            said = ("" if lang == "zh" else " ").join(words[mark.start : mark.end]).lower()
            assert said in read("disfluencies")[lang]["fillers"]
        if mark.kind == "repetition":
            assert words[mark.start].lower() == words[mark.end].lower()
    assert kinds == {"filler", "repetition", "repair"}


def test_backchannels_and_styled_lines_stay_unchanged():
    lines = (Line("a", "this is long enough for it"), Line("b", "yes I see that too", "backchannel"),
             Line("b", "now I say it very slowly", style="slow"))  # fmt: skip
    script = Script("s", "en", ("a", "b"), lines)
    loose = add_disfluencies(script, DisfluencyConfig(1.0, 0.0, 0.0), random.Random(0))
    assert loose.lines[0] != lines[0] and loose.lines[1:] == lines[1:]


def test_first_words_keep_their_punctuation():
    assert first_words("Well, I don't, mm-hm, know.", 3, "en") == "Well, I don't"
    assert first_words("你好，我是小王。", 3, "zh") == "你好，我"


def test_fitted_distribution_matches_the_observations():
    rng = random.Random(0)
    conversations = []
    for _ in range(40):
        spans, at = [], 0.0
        for number in range(10):
            length = rng.uniform(1, 3)
            spans.append(SpeechSpan(number % 2, at, at + length))
            if number % 3 == 0:
                back = at + rng.uniform(0.4, 0.6) * length
                spans.append(SpeechSpan(1 - number % 2, back, back + 0.2, backchannel=True))
            at += length + rng.gauss(0.2, 0.3)
        conversations.append(spans)
    fitted = fit(conversations)
    drawn = sorted(fitted.gap.draw(rng) for _ in range(4000))
    assert drawn[2000] == pytest.approx(0.2, abs=0.05)
    assert drawn[640] == pytest.approx(-0.1, abs=0.08) and drawn[3360] == pytest.approx(0.5, abs=0.08)
    assert 0.38 <= fitted.backchannel.draw(rng) <= 0.62
    assert fitted.reaction == TimingConfig().reaction
    with pytest.raises(UserError, match="too few"):
        Distribution.fit([0.1] * 5)
    with pytest.raises(UserError, match="rising"):
        Distribution((1.0, 0.0))


@pytest.fixture
def endpoint():
    """A server of chat completions that gives the answers put into its list."""
    answers, asked = [], []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            asked.append((self.path, json.loads(self.rfile.read(int(self.headers["Content-Length"])))))
            status, body = answers.pop(0)
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body if isinstance(body, bytes) else json.dumps(body).encode())

        def log_message(self, *_):
            """Be quiet."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    config = LlmConfig(f"http://127.0.0.1:{server.server_port}/v1", "some-model", ("tea",))
    yield config, answers, asked
    server.shutdown()
    server.server_close()


def said(content: str) -> tuple[int, dict]:
    return 200, {"choices": [{"message": {"content": content}}]}


GOOD = {"roles": ["host", "guest"], "lines": [
    {"role": "host", "text": "Would you like some tea?"}, {"role": "guest", "text": "mm-hm", "kind": "backchannel"},
    {"role": "guest", "text": "Yes, please.", "style": "happy"},
]}  # fmt: skip


def test_language_model_writes_scripts(endpoint):
    config, answers, asked = endpoint
    answers.append(said(f"Here you are:\n```json\n{json.dumps(GOOD)}\n```"))
    script = write_script(config, "tea", "en", seed=7)
    assert [line.kind for line in script.lines] == ["turn", "backchannel", "turn"] and script.lines[2].style == "happy"
    ((path, body),) = asked
    assert path == "/v1/chat/completions" and body["model"] == "some-model" and body["seed"] == 7
    assert "tea" in body["messages"][0]["content"] and all(m in body["messages"][0]["content"] for m in STYLES)


@pytest.mark.parametrize(
    "content",
    ["no", "{}", '{"roles": ["a"], "lines": []}', json.dumps({**GOOD, "roles": ["x", "y"]}), "[1]",
     json.dumps({**GOOD, "lines": [{"role": "host", "text": "x", "kind": "song"}]}), "{" * 2000],
)  # fmt: skip
def test_invalid_answers_are_rejected(endpoint, content):
    config, answers, _ = endpoint
    answers.append(said(content))
    with pytest.raises(InvalidScript):
        write_script(config, "tea", "en", seed=0)


def test_unusable_endpoint_is_a_user_error(endpoint):
    config, answers, _ = endpoint
    answers.append((401, {}))
    with pytest.raises(UserError, match="401"):
        write_script(config, "tea", "en", seed=0)
    answers.append((200, b"not json"))
    with pytest.raises(InvalidScript):
        write_script(config, "tea", "en", seed=0)
    for url in ("http://127.0.0.1:9/v1", "file:///etc"):
        with pytest.raises(UserError):
            write_script(LlmConfig(url, "m", ("t",)), "t", "en", seed=0)


def test_gaps_are_as_published():
    """Two of five overlap, 18–30 % are above half a second (Heldner and Edlund); 208 ms on average (Stivers et al.)."""
    rng = random.Random(0)
    drawn = [TimingConfig().gap.draw(rng) for _ in range(20_000)]
    assert sum(gap < 0 for gap in drawn) / len(drawn) == pytest.approx(0.4, abs=0.02)
    assert 0.18 < sum(gap > 0.5 for gap in drawn) / len(drawn) < 0.3
    assert sum(drawn) / len(drawn) == pytest.approx(0.208, abs=0.03)
