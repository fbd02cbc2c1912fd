"""An expert behind an OpenAI-compatible address: asked as a tool, its answers made fit to be spoken."""

import http.server
import json
import threading
import time

import pytest

from speechgpt2.assistant.expert import API_KEY, Expert, plain_speech
from speechgpt2.errors import UserError
from speechgpt2.types import ToolCall
from tests import needs

needs.module("jsonschema", "assistant")

from speechgpt2.assistant.toolbox import Toolbox


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers as the question demands, and keeps the request."""

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append((self.path, self.headers.get("Authorization"), body))
        question = body["messages"][-1]["content"]
        if question == "slow":
            time.sleep(1.5)
        answers = {"broken": b"<html>", "empty": self.reply(""), "huge": self.reply("x" * 2_000_000), "other": b"{}"}
        status = {"refused": 401, "moved": 302}.get(question, 200)
        self.send_response(status)
        if status == 302:
            self.send_header("Location", "/elsewhere")
        self.end_headers()
        self.wfile.write(answers.get(question, self.reply("**Paris** is the [capital](http://x.test/y).\n- Yes.")))

    def reply(self, text):
        return json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]}).encode()

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.requests = []
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def expert(server, **options):
    return Expert(f"http://127.0.0.1:{server.server_port}/v1/", "big", **options)


def ask(expert, question):
    """The result of a call by a model."""
    return Toolbox([expert.tool()]).run([ToolCall("ask_expert", json.dumps({"question": question}))])[0]


def test_question_reaches_the_expert_and_the_answer_can_be_spoken(server, monkeypatch):
    monkeypatch.setenv(API_KEY, "secret")
    result = ask(expert(server), "What is the capital of France?")
    assert (result.text, result.ok) == ("Paris is the capital. Yes.", True)
    [(path, key, body)] = server.requests
    assert (path, key, body["model"]) == ("/v1/chat/completions", "Bearer secret", "big")
    assert [message["role"] for message in body["messages"]] == ["system", "user"]


def test_no_key_is_sent_where_there_is_none(server, monkeypatch):
    monkeypatch.delenv(API_KEY, raising=False)
    ask(expert(server), "hello")
    assert server.requests[0][1] is None


@pytest.mark.parametrize(
    "question, message",
    [
        ("refused", "HTTP status 401"),
        ("moved", "HTTP status 302"),
        ("broken", "did not reply with JSON"),
        ("other", "no answer in the form of the OpenAI API"),
        ("empty", "an empty answer"),
        ("huge", "reply of the expert is too long"),
        ("slow", "no answer within 0.3 seconds"),
    ],
)
def test_failure_is_a_sentence(server, question, message):
    result = ask(expert(server, timeout=0.3 if question == "slow" else 30.0), question)
    assert not result.ok and message in result.text


def test_unreachable_expert_is_a_sentence():
    assert "cannot be reached" in ask(Expert("http://127.0.0.1:9/v1", "big"), "hello").text


@pytest.mark.parametrize("address", ["", "localhost:8000", "file:///etc/passwd", "http://"])
def test_address_that_is_none_is_refused(address):
    with pytest.raises(UserError, match="must begin with http"):
        Expert(address, "big")


@pytest.mark.parametrize(
    "text, spoken",
    [
        ("# Title\n1. one\n2. two", "Title one two"),
        ("<think>hm\nhm</think>Yes.", "Yes."),
        ("```python\nprint(1)\n```", "print(1)"),
        ("a_b * c and *this*, __that__", "a_b c and this, that"),
        ("See https://x.test/a?b=c now", "See now"),
        ("巴黎是**法国**的首都。", "巴黎是法国的首都。"),
    ],
)
def test_marks_are_not_spoken(text, spoken):
    assert plain_speech(text) == spoken
