"""The registry of synthesis engines.

An engine is a module with one function ``render(text, voice) -> Rendering``, and an entry in `ENGINES`:

    kokoro      English and Mandarin, 54 natural voices and mixtures of them
    espeak      English and Mandarin, about a hundred speakers
    flite       English
    festival    English, statistical voices; slow
    recordings  a folder of recorded words, joined
    model       a language model of this project, in its own voice or in that of a clip
    server      a server with CosyVoice's HTTP interface

To add one: write the module, raise `MissingDependency` where a library or program is not installed, and add a line
below. An engine without times of words returns none; `voices.speak` then finds them by forced alignment.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from speechgpt2.tts import cosyvoice_server, espeak, festival, flite, kokoro, own_model, word_bank
from speechgpt2.tts.utterance import Rendering, Voice


@dataclass(frozen=True)
class SynthesisEngine:
    """A synthesis engine.

    Attributes:
        render: speaks a text by a voice.
        exact_times: whether it returns exact times of words, which count as ground truth.
        adjustable: whether the rate of a voice has an effect; for most engines the pitch has one, too.
    """

    render: Callable[[str, Voice], Rendering]
    exact_times: bool = False
    adjustable: bool = False


ENGINES: dict[str, SynthesisEngine] = {
    "kokoro": SynthesisEngine(kokoro.render, exact_times=True, adjustable=True),
    "espeak": SynthesisEngine(espeak.render, exact_times=True, adjustable=True),
    "flite": SynthesisEngine(flite.render, exact_times=True, adjustable=True),
    "festival": SynthesisEngine(festival.render, exact_times=True),
    "recordings": SynthesisEngine(word_bank.render),
    "model": SynthesisEngine(own_model.render),
    "server": SynthesisEngine(cosyvoice_server.render),
}
