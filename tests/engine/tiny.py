"""An engine small enough for tests: random weights, a clock of its own, and models that talk."""

from __future__ import annotations

from collections import defaultdict
from functools import cache

import numpy as np
import torch

from speechgpt2.codec.model import Codec
from speechgpt2.duplex.protocol import ReplyOptions, SessionSettings
from speechgpt2.engine.config import EngineConfig
from speechgpt2.engine.engine import Engine
from speechgpt2.lm.model import UNFORCED, SpeechLM
from speechgpt2.types import SAMPLE_RATE
from tests.codec import tiny as codecs
from tests.engine.results import events
from tests.lm.tiny import tiny_config, tiny_tokenizer

PATCH = 2880  # samples
SHORT = SessionSettings(max_patches=25, seed=5)


class Clock:
    """Stands still unless told."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now

    def pass_by(self, seconds):
        self.now += seconds + 1e-6 * (seconds > 0)  # rounding must not make time stand still


class BabblingLM(SpeechLM):
    """Writes little but speech: of all tokens only a few are likely, and those that begin speech more than others."""

    def text_logits(self, hidden):
        ids, logits = self.prompt.special_ids, super().text_logits(hidden)
        likely = torch.full_like(logits, -torch.inf)
        words = self.prompt.encode(" hello weather 25")
        for token, boost in [(ids.speech_start, 2.0), (ids.filler, 3.0), (ids.speech_end, 0.0), (ids.eos, -1.0)]:
            likely[..., token] = boost
        likely[..., words] = 1.0
        return logits.clamp(-3, 3) + likely


class ScriptedLM(SpeechLM):
    """Says what `script` says, a list of (token, codes `[G, K]` or None); what it makes of that is its own.

    It is as certain of each token as `log_prob` says.
    """

    script: list
    log_prob = 0.0

    def sample(self, hidden, state, sampling, forced_text=None, allowed=None, speaks=True):
        written = super().sample(hidden, state, sampling, forced_text)  # a script follows no grammar
        for row in torch.nonzero(forced_text == UNFORCED).flatten().tolist():
            token, codes = self.script.pop(0)
            written.patches.text[row], written.log_probs[row] = token, self.log_prob
            written.patches.codes[row] = self.config.no_speech if codes is None else codes
        return written


def tiny_codec() -> Codec:
    return codecs.tiny_codec(normalized_latent=True)  # or all sound has one code


def tiny_lm(kind: type[SpeechLM] = BabblingLM, **options) -> SpeechLM:
    torch.manual_seed(1)
    lm = kind(tiny_config(**options), tiny_tokenizer()).eval()
    with torch.no_grad():
        for name, parameter in lm.named_parameters():
            if "norm" not in name:
                parameter.normal_(std=0.3)
    return lm


@cache
def models() -> tuple[Codec, SpeechLM]:
    return tiny_codec(), tiny_lm()


def tiny_engine(lm: SpeechLM | None = None, **config) -> Engine:
    codec, babbling = models()
    return Engine(codec, lm or babbling, EngineConfig(**{"slots": 4, "context": 256, **config}), Clock())


def noise(seconds: float, seed: int = 0) -> np.ndarray:
    """Something that sounds different everywhere."""
    generator = np.random.default_rng(seed)
    loudness = generator.uniform(0, 0.5, int(seconds * 50) + 1).repeat(SAMPLE_RATE // 50)[: int(seconds * SAMPLE_RATE)]
    return (generator.standard_normal(len(loudness)) * loudness).astype(np.float32)


def run(engine: Engine, until=None, most: int = 5000) -> None:
    """Step until there is nothing to do (time passes as the engine asks for), or `until()`."""
    for _ in range(most):
        wait = engine.step()
        if until is not None and until():
            return
        if wait is None:
            return
        engine.clock.pass_by(wait)
    raise AssertionError("the engine does not come to rest")


def talk(engine: Engine, sessions, most: int = 20_000) -> dict:
    """Step, with readers who read at once, until all replies are over: the events of each session."""
    found = defaultdict(list)
    for _ in range(most):
        wait = engine.step()
        for session in sessions:
            found[session] += events(session)
        if not any(session.replying for session in sessions):
            return found
        engine.clock.pass_by(wait or 0.0)
    raise AssertionError("a reply does not end")


def say(session, pcm: np.ndarray, chunk: int = 700) -> None:
    """A spoken turn in chunks."""
    session.start_turn()
    for start in range(0, len(pcm), chunk):
        session.append_audio(pcm[start : start + chunk])
    session.end_turn()


def answer(engine: Engine, session, pcm: np.ndarray, options: ReplyOptions | None = None, chunk: int = 700) -> list:
    """The events of the reply to a spoken turn."""
    say(session, pcm, chunk)
    session.respond(options)
    return talk(engine, [session])[session]
