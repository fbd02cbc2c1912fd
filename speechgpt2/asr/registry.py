"""The recognisers by name. A new one is a loader function and an entry in `ENGINES`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from speechgpt2 import hub
from speechgpt2.asr.funasr import FunASR
from speechgpt2.asr.own_model import OwnModel
from speechgpt2.asr.pocketsphinx import PocketSphinx
from speechgpt2.asr.recogniser import Recogniser
from speechgpt2.asr.whisper import Whisper
from speechgpt2.errors import UserError

OWN_WEIGHTS = "lm.safetensors"


@dataclass(frozen=True)
class AsrEngine:
    """How the recognisers of one kind are found and loaded.

    Attributes:
        accepts: Whether a model's name or folder, given without an engine, means this kind.
        load: Takes the model's name or folder, the number of threads, and whether times of words are wanted.
    """

    accepts: Callable[[str], bool]
    load: Callable[[str, int, bool], Recogniser]


def _is_own(model: str) -> bool:
    return model in hub.built_in() or (Path(model) / OWN_WEIGHTS).is_file()


def _load_own(model: str, threads: int, word_times: bool) -> Recogniser:
    from speechgpt2.chat import SpeechGPT

    return OwnModel(SpeechGPT.from_pretrained(model), Path(model).name)


# The first engine that accepts a name loads it; Whisper takes every other one.
ENGINES: dict[str, AsrEngine] = {
    "pocketsphinx": AsrEngine(lambda model: model == "pocketsphinx", lambda model, threads, words: PocketSphinx()),
    "speechgpt2": AsrEngine(_is_own, _load_own),
    "sensevoice": AsrEngine(lambda model: "sensevoice" in model.lower(), lambda model, threads, words: FunASR(model)),
    "funasr": AsrEngine(lambda model: "paraformer" in model.lower(), lambda model, threads, words: FunASR(model)),
    "whisper": AsrEngine(lambda model: True, Whisper),
}


def load(model: str | Path, engine: str | None = None, threads: int = 1, word_times: bool = False) -> Recogniser:
    """Load a recogniser.

    Args:
        model: "pocketsphinx"; a built-in model of this project or the folder of one; a Whisper model as a folder, a
            Hugging Face id or a size such as "base".
        engine: A key of `ENGINES`; by default the model's name and files decide.
        threads: CPU threads, where the engine lets them be set.
        word_times: Whether the times of words are wanted.

    Raises:
        UserError: There is no such engine, its package is not installed, or the model is missing, damaged or of
            another kind.
    """
    name = str(model)
    if engine is None:
        engine = next(key for key, candidate in ENGINES.items() if candidate.accepts(name))
    if engine not in ENGINES:
        raise UserError(f"no ASR engine '{engine}'; there are {', '.join(ENGINES)}")
    return ENGINES[engine].load(name, threads, word_times)
