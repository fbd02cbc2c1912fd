"""Speech synthesis engines: each module has one ``render(text, voice) -> Rendering``.

espeak      English and Mandarin, about a hundred speakers, times from its callback
flite       English, times from its utterance structure
festival    English, statistical voices; slow
recordings  a folder of recorded words, spliced
model       a language model of this project reads aloud, in its own or a given voice
server      a CosyVoice-like server over HTTP

The last two do not tell when they say what: there the forced aligner does (aligned.py).
"""

from __future__ import annotations

from collections.abc import Callable

from speechgpt2.tts import espeak, festival, flite, model, recordings, server
from speechgpt2.tts.utterance import Rendering, Voice

ENGINES: dict[str, Callable[[str, Voice], Rendering]] = {
    "espeak": espeak.render,
    "flite": flite.render,
    "festival": festival.render,
    "recordings": recordings.render,
    "model": model.render,
    "server": server.render,
}

EXACT = frozenset({"espeak", "flite", "festival"})  # those that know when they say each word
DRIVEN = frozenset({"espeak", "flite"})  # those whose rate and pitch can be set
