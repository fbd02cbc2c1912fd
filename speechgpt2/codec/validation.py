"""Held-out values of the codec: held-out speech is encoded and decoded, and compared with the original."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from speechgpt2.codec.losses import MultiScaleMel
from speechgpt2.codec.model import Codec
from speechgpt2.training import distributed


class HeldOutSpeech(NamedTuple):
    """Held-out speech: `pcm [N]` (float32) of whole frames, and its text, "" if unknown."""

    pcm: Tensor
    text: str = ""
    lang: str = ""


# What is said of original and decoded audio, both `[N]` at 24 kHz: values by name, nan where nothing can be said.
Judge = Callable[[NDArray[np.float32], NDArray[np.float32], HeldOutSpeech], dict[str, float]]


@torch.no_grad()
def held_out_values(
    codec: Codec, speech: Sequence[HeldOutSpeech], mel: MultiScaleMel, judge: Judge | None = None
) -> dict[str, float]:
    """Return the mean values of a codec on held-out speech, of which each process takes a part.

    Args:
        codec: The codec, in evaluation mode.
        speech: The speech.
        mel: The distance of spectra.
        judge: What else is measured.

    Returns:
        `loss`, the distance of mel spectra; `perplexity_0` …, how many codes each codebook uses in effect; and the
        judge's values.
    """
    found = []
    for clip in speech[distributed.rank() :: distributed.world_size()]:
        codes, ours, target = reconstruct(codec, clip.pcm)
        values = {"loss": float(mel(ours[None], target[None]))}
        if judge is not None:
            values |= judge(target.cpu().numpy(), ours.cpu().numpy(), clip)
        found.append((values, codes.cpu().numpy()))
    found = distributed.gather_objects(found)
    used = np.concatenate([codes for _, codes in found])
    return {**_means([values for values, _ in found]), **_perplexities(used)}


def reconstruct(codec: Codec, pcm: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the codes `[T, K]` of `pcm [N]`, the decoded audio, and the part of the original that it is to equal."""
    pcm = pcm.to(next(codec.parameters()).device)
    codes = codec.encode(pcm[None])
    delay = codec.config.delay
    return codes[0], codec.decode(codes)[0, delay : len(pcm)], pcm[: len(pcm) - delay]


def _means(found: Sequence[dict[str, float]]) -> dict[str, float]:
    """Return the mean of each value over the clips that have it."""
    names = dict.fromkeys(name for values in found for name in values)
    known = {name: [v[name] for v in found if not np.isnan(v.get(name, np.nan))] for name in names}
    return {name: float(np.mean(values)) for name, values in known.items() if values}


def _perplexities(codes: NDArray[np.integer]) -> dict[str, float]:
    """Return for `codes [T, K]` of each codebook the exponential of its entropy."""
    result = {}
    for k, column in enumerate(codes.T):
        shares = np.bincount(column) / len(column)
        shares = shares[shares > 0]
        result[f"perplexity_{k}"] = float(np.exp(-(shares * np.log(shares)).sum()))
    return result
