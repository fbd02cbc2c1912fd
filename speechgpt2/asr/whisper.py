"""Whisper (Radford et al. 2022, arXiv:2212.04356) by faster-whisper, on a CPU.

Decoding is a beam search of width 5 at temperature 0, without the fallback to higher temperatures and without the
previous segment's text as a prompt, so that a recording always gives the same text.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from speechgpt2 import hub
from speechgpt2.asr.recogniser import TimedWord, Transcription, check_language, to_features_rate
from speechgpt2.errors import UserError
from speechgpt2.extras import require

SIZES = ("tiny", "tiny.en", "base", "base.en", "small", "small.en", "medium", "medium.en", "large-v2", "large-v3")
BEAM = 5
WEIGHTS, TOKENIZER, CONFIG = "model.bin", "tokenizer.json", "config.json"


class Whisper:
    """A Whisper model in CTranslate2's format.

    Args:
        model: A folder with model.bin, config.json and tokenizer.json; a Hugging Face id; or a size such as "base",
            which means the repository Systran/faster-whisper-base. Hugging Face is asked only for ids and sizes.
        threads: CPU threads.
        word_times: Also find the time of each word. It costs a second pass of the decoder.

    Raises:
        UserError: faster-whisper is not installed, or `model` is not a usable Whisper model.
    """

    independent = True

    def __init__(self, model: str | Path, threads: int = 1, word_times: bool = False) -> None:
        library = require("faster_whisper", "asr")
        folder = find_folder(model)
        self.name = Path(model).name
        self.word_times = word_times
        try:
            self._model: Any = library.WhisperModel(
                str(folder), device="cpu", compute_type="float32", cpu_threads=threads, local_files_only=True
            )
        except (RuntimeError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"{model}: cannot be loaded as a Whisper model, its files may be cut ({reason})") from None
        self.languages = frozenset(self._model.supported_languages)

    def transcribe(self, pcm: NDArray[np.floating], language: str) -> Transcription:
        """Transcribe `pcm` [N] at 24 kHz; see `Recogniser.transcribe`."""
        code = check_language(self, language)
        if not len(pcm):
            return Transcription("", code)
        segments, info = self._model.transcribe(
            to_features_rate(pcm),
            language=code or None,
            beam_size=BEAM,
            temperature=0.0,
            condition_on_previous_text=False,
            word_timestamps=self.word_times,
        )
        found = list(segments)
        words = tuple(
            TimedWord(word.word.strip(), round(float(word.start), 3), round(float(word.end), 3))
            for segment in found
            for word in segment.words or ()
        )
        return Transcription("".join(segment.text for segment in found).strip(), info.language, words)


def find_folder(model: str | Path) -> Path:
    """The folder of a Whisper model, checked before CTranslate2 reads it.

    Raises:
        UserError: There is no such folder, or it does not hold a Whisper model in CTranslate2's format.
    """
    path = Path(model)
    if path.is_dir():
        _check(path)
        return path
    if path.exists():
        raise UserError(f"{model}: a file, but an ASR model is a folder")
    name = f"Systran/faster-whisper-{model}" if str(model) in SIZES else str(model)
    if not hub.HUB_ID.fullmatch(name) or (path.parent.is_dir() and str(model) not in SIZES):
        raise UserError(
            f"{model}: no such ASR model; give a folder, a Hugging Face id, or one of {', '.join(SIZES)}, pocketsphinx"
        )
    folder = hub.resolve(name, WEIGHTS).parent
    _check(folder)
    return folder


def _check(folder: Path) -> None:
    if not (folder / WEIGHTS).is_file():
        convertible = (folder / CONFIG).is_file() and any(
            (folder / name).is_file() for name in ("model.safetensors", "pytorch_model.bin")
        )
        advice = (
            f"convert it: ct2-transformers-converter --model {folder} --output_dir FOLDER --copy_files {TOKENIZER}"
            if convertible
            else "give the folder of a faster-whisper model"
        )
        raise UserError(f"{folder}: not an ASR model, it holds no {WEIGHTS}; {advice}")
    try:
        content = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{folder}: not a Whisper model, it holds no {CONFIG}") from None
    except (UnicodeDecodeError, json.JSONDecodeError):
        raise UserError(f"{folder / CONFIG}: not JSON, the file is damaged") from None
    if not isinstance(content, dict) or "suppress_ids" not in content:
        raise UserError(f"{folder}: a CTranslate2 model of another kind, not Whisper")
    # Without this file faster-whisper would download one.
    if not (folder / TOKENIZER).is_file():
        raise UserError(f"{folder}: holds no {TOKENIZER}; copy it from the original model")
