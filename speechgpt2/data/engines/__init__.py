"""Speech synthesis engines: each module has one ``render(text, voice) -> Rendering``.

Festival is left out: its only good voice is flite's ``slt`` again, 40 times slower.
"""

from __future__ import annotations

from collections.abc import Callable

from speechgpt2.data.engines import espeak, flite
from speechgpt2.data.utterance import Rendering, Voice

ENGINES: dict[str, Callable[[str, Voice], Rendering]] = {
    "espeak": espeak.render,
    "flite": flite.render,
}

EXACT = frozenset({"espeak", "flite"})  # those that know when they say each word
