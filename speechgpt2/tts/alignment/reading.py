"""A text read by espeak, the same to the last bit whatever was read before.

espeak's library carries state from one utterance into the next. So one helper process waits with the library not yet
loaded, and forks for every request: each text is the first that its process ever says.

    python -m speechgpt2.tts.alignment.reading      # the helper: a line of JSON in, a line of JSON and samples out
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from dataclasses import asdict
from functools import cache
from typing import Any, BinaryIO

import numpy as np

from speechgpt2.errors import MissingDependency, UserError
from speechgpt2.processes import THREADS
from speechgpt2.tts.utterance import Phone, Rendering, Voice, Word


def read(text: str, voice: Voice) -> Rendering:
    """Errors: `UserError` if the text cannot be read in this language; `MissingDependency` without espeak."""
    if _helper().ended:  # somebody killed it
        _helper.cache_clear()
    return _helper().ask({"text": text, "voice": asdict(voice)})


class _Helper:
    """The process, as seen from the one that asks. It ends when this one does."""

    def __init__(self) -> None:
        alone = os.environ | dict.fromkeys(THREADS, "1")  # a process with threads forks badly
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=alone
        )
        self._lock = threading.Lock()

    @property
    def ended(self) -> bool:
        return self._process.poll() is not None

    def ask(self, request: dict[str, Any]) -> Rendering:
        said, heard = self._process.stdin, self._process.stdout
        assert said is not None and heard is not None
        with self._lock:
            said.write(json.dumps(request).encode() + b"\n")
            said.flush()
            answer = json.loads(heard.readline() or '{"error": "the reading process has died", "missing": false}')
            pcm = heard.read(4 * answer.get("samples", 0))
        if "error" in answer:
            raise (MissingDependency if answer["missing"] else UserError)(answer["error"])
        words, phones = (Word(*row) for row in answer["words"]), (Phone(*row) for row in answer["phones"])
        return Rendering(np.frombuffer(pcm, np.float32), answer["rate"], tuple(words), tuple(phones))


@cache
def _helper() -> _Helper:
    return _Helper()


def _serve(requests: BinaryIO, answers: int) -> None:
    """Answer every line of `requests` in a process of its own, which writes to the descriptor `answers`."""
    from speechgpt2.tts.espeak import MANDARIN
    from speechgpt2.tts.pinyin import syllables

    with suppress(ImportError):
        import espeakng_loader  # noqa: F401  # only finds the library; read here, it is there in every child
    for line in requests:
        request = json.loads(line)
        if request["voice"]["accent"] == MANDARIN:
            with suppress(MissingDependency):
                syllables("好")  # reads the dictionaries, which takes seconds, once
        child = os.fork()
        if child:
            _, status = os.waitpid(child, 0)
            if status:
                _write(answers, {"error": f"espeak died of the text (status {status})", "missing": False})
            continue
        _write(answers, *_answer(request))
        os._exit(0)


def _answer(request: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
    from speechgpt2.tts import espeak

    try:
        made = espeak.render(request["text"], Voice(**request["voice"]))
    except ValueError as error:  # a UserError is one
        return {"error": str(error), "missing": isinstance(error, MissingDependency)}, b""
    head = {"samples": len(made.pcm), "rate": made.sample_rate, "words": made.words, "phones": made.phones}
    return head, made.pcm.astype(np.float32).tobytes()


def _write(descriptor: int, head: dict[str, Any], body: bytes = b"") -> None:
    with os.fdopen(os.dup(descriptor), "wb") as file:
        file.write(json.dumps(head).encode() + b"\n" + body)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the one who asks, whose end closes the pipe
    _serve(sys.stdin.buffer, sys.stdout.fileno())
