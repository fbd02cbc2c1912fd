"""Emissions of a CTC model in ONNX, such as wav2vec 2.0 fine-tuned on letters or characters. None is included.

    optimum-cli export onnx --model facebook/wav2vec2-base-960h FOLDER

It reads model.onnx, vocab.json, config.json and preprocessor_config.json of the folder. Needs onnxruntime.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np

from speechgpt2.audio import resample
from speechgpt2.errors import UserError
from speechgpt2.hub import sha256_of
from speechgpt2.tts.alignment.emissions import Emissions, TokenSpan
from speechgpt2.tts.alignment.viterbi import Unalignable
from speechgpt2.types import SAMPLE_RATE

RATE = 16_000  # Hz of the models' input
SHORTEST = 0.05  # seconds of input that a model needs
WORD_SEPARATOR = "|"  # the token between two words, if a vocabulary has one
BLANKS = ("<pad>", "[PAD]", "<blank>", "<blk>")
WORD = re.compile(r"[\u4e00-\u9fff]|[^\s\u4e00-\u9fff]+")  # every Chinese character is a word


@dataclass(frozen=True)
class CtcModel:
    """An `EmissionModel` by an exported CTC model.

    Attributes:
        folder: the folder of the model.
    """

    folder: str

    @cached_property
    def id(self) -> str:
        """The name of the model, with a hash of its files."""
        files = [Path(self.folder) / name for name in ("model.onnx", "vocab.json")]
        for path in files:
            if not path.is_file():
                raise UserError(f"{self.folder}: has no {path.name}; export a CTC model into the folder")
        return f"ctc-{sha256_of(*files)[:16]}"

    def __call__(self, pcm: np.ndarray, text: str, lang: str) -> Emissions:
        """Score the tokens of the text in `pcm [N]`."""
        model = _loaded(self.folder)
        tokens, words = tokenize(text, model.vocabulary)
        return Emissions(model.log_probs(pcm), model.seconds, tokens, words, blank=model.blank)


def tokenize(text: str, vocabulary: dict[str, int]) -> tuple[list[int], tuple[TokenSpan, ...]]:
    """Split a text into tokens; punctuation has none.

    Returns:
        The tokens, and the words as spans of them.

    Raises:
        Unalignable: the vocabulary has no token for a letter.
    """
    upper = "a" not in vocabulary and "A" in vocabulary
    tokens: list[int] = []
    words: list[TokenSpan] = []
    for match in WORD.finditer(text):
        word = re.sub(r"^\W+|\W+$", "", match.group())
        letters = (word.upper() if upper else word.lower()).replace("’", "'")
        if not word:
            continue
        if WORD_SEPARATOR in vocabulary and tokens:
            tokens.append(vocabulary[WORD_SEPARATOR])
        unknown = [letter for letter in letters if letter.isalnum() and letter not in vocabulary]
        if unknown:
            raise Unalignable(f"the model has no token for {unknown[0]!r}")
        first = len(tokens)
        tokens += [vocabulary[letter] for letter in letters if letter in vocabulary]
        words.append(TokenSpan(word, first, len(tokens)))
    return tokens, tuple(words)


class _Model:
    """The loaded model, with its vocabulary, its blank, and the seconds of a step."""

    def __init__(self, folder: Path):
        try:
            import onnxruntime
        except ModuleNotFoundError:
            raise UserError("the ctc aligner needs onnxruntime: pip install onnxruntime") from None
        self.vocabulary: dict[str, int] = _json(folder / "vocab.json")
        config = _json(folder / "config.json")
        blank = next((self.vocabulary[name] for name in BLANKS if name in self.vocabulary), config.get("pad_token_id"))
        if blank is None or "conv_stride" not in config:
            raise UserError(f"{folder}: vocab.json has no blank, or config.json has no conv_stride")
        self.blank = int(blank)
        self.seconds = math.prod(config["conv_stride"]) / RATE
        self._normalize = _json(folder / "preprocessor_config.json").get("do_normalize", True)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        try:
            self._session = onnxruntime.InferenceSession(str(folder / "model.onnx"), options)
        except Exception as error:  # the exceptions of onnxruntime differ between versions
            raise UserError(f"{folder / 'model.onnx'}: cannot be loaded ({str(error).splitlines()[0]})") from None

    def log_probs(self, pcm: np.ndarray) -> np.ndarray:
        """Return log-probabilities `[T, V]` of `pcm [N]` at 24 kHz.

        Raises `Unalignable` for audio below `SHORTEST` seconds.
        """
        samples = resample(pcm, SAMPLE_RATE, RATE).astype(np.float32)
        if len(samples) < SHORTEST * RATE:
            raise Unalignable(f"the audio is shorter than {SHORTEST} s")
        if self._normalize:
            samples = (samples - samples.mean()) / np.sqrt(samples.var() + 1e-7)
        name = self._session.get_inputs()[0].name
        logits = self._session.run(None, {name: samples[None]})[0][0].astype(np.float64)
        top = logits.max(axis=1, keepdims=True)
        return logits - top - np.log(np.exp(logits - top).sum(axis=1, keepdims=True))


@cache
def _loaded(folder: str) -> _Model:
    return _Model(Path(folder))


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); export a CTC model into its folder") from None
