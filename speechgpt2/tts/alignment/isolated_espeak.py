"""espeak with reproducible results: every text is synthesised by a new process.

espeak's library carries state from one utterance to the next, so results depend on earlier utterances. A helper
process, which never uses the library itself, forks for every request.

    python -m speechgpt2.tts.alignment.isolated_espeak      # the helper

The helper reads a line of JSON, and writes a line of JSON and the samples.
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


def synthesize(text: str, voice: Voice) -> Rendering:
    """Synthesise a text; equal arguments give equal bits.

    Raises:
        UserError: espeak cannot read the text in this language.
        MissingDependency: espeak-ng is not installed.
    """
    if _process().has_ended:  # it was killed
        _process.cache_clear()
    return _process().ask({"text": text, "voice": asdict(voice)})


class _SynthesisProcess:
    """The helper process, on the side of the caller. It ends with the caller."""

    def __init__(self) -> None:
        environment = os.environ | dict.fromkeys(THREADS, "1")  # a process with threads must not fork
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
        )
        self._lock = threading.Lock()

    @property
    def has_ended(self) -> bool:
        return self._process.poll() is not None

    def ask(self, request: dict[str, Any]) -> Rendering:
        requests, responses = self._process.stdin, self._process.stdout
        assert requests is not None and responses is not None
        with self._lock:
            requests.write(json.dumps(request).encode() + b"\n")
            requests.flush()
            answer = json.loads(responses.readline() or '{"error": "the espeak process has died", "missing": false}')
            pcm = responses.read(4 * answer.get("samples", 0))
        if "error" in answer:
            raise (MissingDependency if answer["missing"] else UserError)(answer["error"])
        words, phones = (Word(*row) for row in answer["words"]), (Phone(*row) for row in answer["phones"])
        return Rendering(np.frombuffer(pcm, np.float32), answer["rate"], tuple(words), tuple(phones))


@cache
def _process() -> _SynthesisProcess:
    return _SynthesisProcess()


def _serve(requests: BinaryIO, answers: int) -> None:
    """Answer every line of `requests`, each in a forked process, on the file descriptor `answers`."""
    from speechgpt2.tts.espeak import MANDARIN
    from speechgpt2.tts.pinyin import syllables

    with suppress(ImportError):
        import espeakng_loader  # noqa: F401  # it finds the library; imported here, every child has it
    for line in requests:
        request = json.loads(line)
        if request["voice"]["accent"] == MANDARIN:
            with suppress(MissingDependency):
                syllables("好")  # loads the dictionaries once, which takes seconds
        child = os.fork()
        if child:
            _, status = os.waitpid(child, 0)
            if status:
                _write(answers, {"error": f"espeak crashed on the text (status {status})", "missing": False})
            continue
        _write(answers, *_answer(request))
        os._exit(0)


def _answer(request: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
    from speechgpt2.tts import espeak

    try:
        rendering = espeak.render(request["text"], Voice(**request["voice"]))
    except ValueError as error:  # a UserError is one
        return {"error": str(error), "missing": isinstance(error, MissingDependency)}, b""
    head = {
        "samples": len(rendering.pcm), "rate": rendering.sample_rate, "words": rendering.words,
        "phones": rendering.phones,
    }  # fmt: skip
    return head, rendering.pcm.astype(np.float32).tobytes()


def _write(descriptor: int, head: dict[str, Any], body: bytes = b"") -> None:
    with os.fdopen(os.dup(descriptor), "wb") as file:
        file.write(json.dumps(head).encode() + b"\n" + body)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the caller handles Ctrl-C; its end closes the pipe
    _serve(sys.stdin.buffer, sys.stdout.fileno())
