"""Kokoro-82M (hexgrad, Apache-2.0): natural voices in English and Mandarin.

A voice's name is one of the model's 54 (`VOICES`) or a mixture, as ``af_heart:60+am_adam:40``: the voices' style
vectors, averaged with these weights. `Voice.rate` sets the speed, 175 being the model's own. The model's durations give
the times of symbols to 25 ms, and from them those of phones and words. Equal arguments give equal samples on one
machine. The network (`speechgpt2.styletts`) runs on a GPU if there is one, in bfloat16 where the hardware has it.

The files are ``kokoro-v1.0.int8.onnx`` and ``voices-v1.0.bin`` of the kokoro-onnx project, both of Kokoro-82M v1.0,
checked by SHA-256. They are looked for in the folder that the environment variable ``SG2_KOKORO`` names, else in the
cache (``~/.cache/speechgpt2/kokoro``), where they are downloaded once.
"""

# ruff: noqa: SIM905 (a list of names reads better as text)

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from speechgpt2 import download
from speechgpt2.errors import UserError
from speechgpt2.tts import kokoro_text
from speechgpt2.tts.kokoro_text import PAD, SYMBOLS, Token
from speechgpt2.tts.utterance import Phone, Rendering, Voice, Word
from speechgpt2.types import SAMPLE_RATE

FOLDER_VARIABLE = "SG2_KOKORO"
SOURCE = "https://github.com/thewh1teagle/kokoro-onnx/releases/download/model-files-v1.0"
MODEL = download.RemoteFile(
    f"{SOURCE}/kokoro-v1.0.int8.onnx",
    sha256="6e742170d309016e5891a994e1ce1559c702a2ccd0075e67ef7157974f6406cb",
    size=92_361_271,
)
STYLES = download.RemoteFile(
    f"{SOURCE}/voices-v1.0.bin",
    sha256="bca610b8308e8d99f32e6fe4197e7ec01679264efed0cac9140fe9c29f1fbf7d",
    size=28_214_398,
)
LICENCE = "Kokoro-82M v1.0, Apache-2.0, https://huggingface.co/hexgrad/Kokoro-82M"

# By language and sex: American, British, Spanish, French, Hindi, Italian, Japanese, Portuguese, Mandarin.
VOICES = tuple(
    "af_alloy af_aoede af_bella af_heart af_jessica af_kore af_nicole af_nova af_river af_sarah af_sky am_adam am_echo "
    "am_eric am_fenrir am_liam am_michael am_onyx am_puck am_santa bf_alice bf_emma bf_isabella bf_lily bm_daniel "
    "bm_fable bm_george bm_lewis ef_dora em_alex em_santa ff_siwis hf_alpha hf_beta hm_omega hm_psi if_sara im_nicola "
    "jf_alpha jf_gongitsune jf_nezumi jf_tebukuro jm_kumo pf_dora pm_alex pm_santa zf_xiaobei zf_xiaoni zf_xiaoxiao "
    "zf_xiaoyi zm_yunjian zm_yunxi zm_yunxia zm_yunyang".split()
)
NOMINAL_RATE = 175  # `Voice.rate` at the model's own speed
SPEEDS = (0.5, 2.0)  # least and greatest speed of the model

FRAME = 600  # samples: the unit of the model's durations
MAX_SYMBOLS = 500  # in one call; the model reads 510
_HANZI = re.compile(r"[\u4e00-\u9fff]+")
_MIXTURE = re.compile(r"(\w+)(?::(\d+))?")


def render(text: str, voice: Voice) -> Rendering:
    """Speak English or Mandarin text.

    Raises:
        MissingDependency: A package of the extra `kokoro` is not installed.
        UserError: There is no such voice, or the model's files are missing, damaged or of another version.
        ValueError: The voice cannot read the text.
    """
    tokens = _tokens(text, voice)
    if not any(token.units for token in tokens):
        raise ValueError(f"{voice.speaker} finds no words in {text!r}")
    engine = _engine()
    style = engine.style(voice.name)
    speed = float(np.clip(voice.rate / NOMINAL_RATE, *SPEEDS))
    pieces, words, phones, offset = [], list[Word](), list[Phone](), 0.0
    for group in _split(tokens):
        pcm, edges = engine.run(_symbols(group), style, speed)
        group_words, group_phones = _times(group, edges + offset)
        pieces.append(pcm)
        words += group_words
        phones += group_phones
        offset += len(pcm) / SAMPLE_RATE
    return Rendering(np.concatenate(pieces), SAMPLE_RATE, tuple(words), tuple(phones))


def mixture(weights: dict[str, int]) -> str:
    """Return the name of the voice that mixes some of `VOICES` with these weights."""
    return "+".join(f"{name}:{weight}" for name, weight in weights.items())


def parse_mixture(name: str) -> dict[str, int]:
    """Return the voices in a name, with their weights.

    Raises:
        UserError: There is no such voice.
    """
    matches = [_MIXTURE.fullmatch(part) for part in name.split("+")]
    weights = {match[1]: int(match[2] or 1) for match in matches if match}
    if len(weights) < len(matches) or set(weights) - set(VOICES) or not sum(weights.values()):
        raise UserError(
            f"kokoro has no voice {name!r}; there are {', '.join(VOICES)}, and mixtures: af_heart:60+am_adam:40"
        )
    return weights


def find_files() -> tuple[Path, Path]:
    """Return the files of the model and of its styles, checked; downloaded if necessary.

    Raises:
        UserError: A file is missing, damaged or of another version, or cannot be downloaded.
    """
    named = os.environ.get(FOLDER_VARIABLE)
    if named:
        folder = Path(named)
        model = next((p for p in (folder / MODEL.name, folder / "model.int8.onnx") if p.exists()), folder / MODEL.name)
        styles = next((p for p in (folder / STYLES.name, folder / "voices.npz") if p.exists()), folder / STYLES.name)
        for path, file in ((model, MODEL), (styles, STYLES)):
            file.check(path, f"a file of Kokoro-82M v1.0; {FOLDER_VARIABLE} names its folder")
        return model, styles
    folder = download.cache_folder() / "kokoro"
    return MODEL.fetch(folder, LICENCE), STYLES.fetch(folder, LICENCE)


class KokoroModel:
    """The loaded network and the styles of its voices."""

    def __init__(self, network: Callable[[Any, Any, float], tuple[Any, Any]], styles: Path) -> None:
        """Take a network and load checked styles.

        Args:
            network: A `StyleTTS`, or another function of ids `[N]`, a style `[256]` and a speed. It returns tensors:
                samples, and the frames of each id.
            styles: The file of the voices' style vectors.
        """
        self._network = network
        self._styles = np.load(styles)

    @cache  # noqa: B019 (one engine lives as long as the process)
    def style(self, name: str) -> np.ndarray:
        """Return the style vectors [510, 256] of a voice or mixture, a row for each number of symbols."""
        weights = parse_mixture(name)
        mixed = sum(weight * self._styles[voice].astype(np.float64) for voice, weight in weights.items())
        return (mixed / sum(weights.values())).astype(np.float32).reshape(-1, 256)

    def run(self, symbols: str, style: np.ndarray, speed: float) -> tuple[np.ndarray, np.ndarray]:
        """Synthesise some symbols.

        Returns:
            Samples `[N]`, and the seconds at which each symbol starts and the last one ends, `[len(symbols) + 1]`.
        """
        import torch

        ids = torch.tensor([PAD, *(SYMBOLS[symbol] for symbol in symbols), PAD])
        samples, durations = self._network(ids, torch.from_numpy(style[len(symbols) - 1]), speed)
        ends = np.cumsum(durations.cpu().numpy()[:-1]) * FRAME / SAMPLE_RATE
        return samples.cpu().numpy(), ends


@cache
def _engine() -> KokoroModel:
    model, styles = find_files()
    return KokoroModel(_load(model), styles)


def _load(model: Path) -> Callable[[Any, Any, float], tuple[Any, Any]]:
    """Load the network of a checked file on the best device.

    Raises:
        MissingDependency: onnx is not installed.
    """
    import torch

    from speechgpt2.nn.precision import has_fast_bf16
    from speechgpt2.styletts import weights

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return weights.load(model).prepare(device, torch.bfloat16 if has_fast_bf16(device) else torch.float32)


def _tokens(text: str, voice: Voice) -> list[Token]:
    names = parse_mixture(voice.name)
    if voice.lang == "zh":
        return kokoro_text.mandarin(text)
    if voice.lang != "en":
        raise UserError(f"kokoro reads English (en) and Mandarin (zh), not {voice.lang!r}")
    if hanzi := _HANZI.search(text):
        raise ValueError(f"{voice.speaker} reads English and cannot read {hanzi[0]!r}")
    loudest = max(names, key=lambda name: names[name])
    return kokoro_text.english(text, british=loudest.startswith("b"))


def _split(tokens: list[Token]) -> Iterator[list[Token]]:
    """Split a long text into groups of at most `MAX_SYMBOLS` symbols, after punctuation if possible."""
    while len(_symbols(tokens)) > MAX_SYMBOLS:
        fitting = next(n for n in range(len(tokens), 0, -1) if len(_symbols(tokens[:n])) <= MAX_SYMBOLS or n == 1)
        if fitting == 1 and len(_symbols(tokens[:1])) > MAX_SYMBOLS:
            raise ValueError(f"kokoro cannot read a word of more than {MAX_SYMBOLS} phonemes")
        cut = next((n for n in range(fitting, 0, -1) if tokens[n - 1].after.strip()), fitting)
        yield tokens[:cut]
        tokens = tokens[cut:]
    yield tokens


def _symbols(tokens: list[Token]) -> str:
    return "".join("".join(unit.symbols for unit in token.units) + token.after for token in tokens).rstrip()


def _times(tokens: list[Token], edges: np.ndarray) -> tuple[list[Word], list[Phone]]:
    """Return words and phones from the times of symbols.

    A space without punctuation is not a silence: the phones before and after it share its time.
    """
    words, phones, at, shared = list[Word](), list[Phone](), 0, False
    for token in tokens:
        first = len(phones)
        for unit in token.units:
            start, end = float(edges[at]), float(edges[min(at + len(unit.symbols), len(edges) - 1)])
            if shared and phones:
                start = (phones[-1].end + start) / 2
                phones[-1] = phones[-1]._replace(end=start)
                if words and first == len(phones):
                    words[-1] = words[-1]._replace(end=start)
            phones.append(Phone(unit.label, start, end))
            at, shared = at + len(unit.symbols), False
        if len(phones) > first:
            words.append(Word(token.text, phones[first].start, phones[-1].end))
        at, shared = at + len(token.after), token.after == " "
    return words, phones
