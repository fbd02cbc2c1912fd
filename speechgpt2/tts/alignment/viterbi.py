"""The best path of a known text through emissions.

The topology is that of CTC (Graves et al. 2006): a token may last several steps, and a blank may stand before, between
and after tokens. Between two equal tokens it must stand. The probabilities may come from any model.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np

MAX_CELLS = 1 << 29  # of one search, a byte each: ten minutes of fast speech at 50 steps per second


class Unalignable(ValueError):
    """A text does not fit its emissions: it is too long, or has a token that they lack."""


class AlignedToken(NamedTuple):
    """A token is spoken in the steps `first` … `last` − 1; `score` is its mean log-probability there."""

    first: int
    last: int
    score: float


def best_path(
    log_probs: np.ndarray, tokens: Sequence[int], blank: int = 0, contiguous: Collection[int] = ()
) -> list[AlignedToken]:
    """Find the steps of every token.

    Args:
        log_probs: `[T, V]`, natural logarithms; −inf is allowed.
        tokens: `[L]`, each in 0…V−1, none of them `blank`.
        blank: the token that stands for no token.
        contiguous: indices of tokens before which no blank may stand.

    Returns:
        An entry for every token, in order.

    Raises:
        Unalignable: no path fits.
    """
    steps, vocabulary = log_probs.shape
    if any(not 0 <= token < vocabulary or token == blank for token in tokens):
        raise Unalignable("the text has a token that the emissions lack")
    if not len(tokens):
        return []
    if steps * (2 * len(tokens) + 1) > MAX_CELLS:
        raise Unalignable(f"{len(tokens)} tokens and {steps} steps are too many at once; split the recording")
    states = np.full(2 * len(tokens) + 1, blank)
    states[1::2] = tokens
    scores = np.zeros(len(states))
    scores[[2 * index for index in contiguous]] = -np.inf
    path = _search(log_probs, states, scores)
    path_scores = log_probs[np.arange(steps), states[path]]
    token = path // 2
    spoken = np.flatnonzero(path % 2)
    firsts = spoken[np.searchsorted(token[spoken], np.arange(len(tokens)), "left")]
    lasts = spoken[np.searchsorted(token[spoken], np.arange(len(tokens)), "right") - 1] + 1
    return [AlignedToken(a, b, float(path_scores[a:b].mean())) for a, b in zip(firsts.tolist(), lasts.tolist())]


def _search(log_probs: np.ndarray, states: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Return the state of every step `[T]`, from one of the first two of `states [S]` to one of the last two.

    `scores [S]` is added for every step in a state.
    """
    steps, count = len(log_probs), len(states)
    skips = np.zeros(count, bool)  # from a token to the next one, without the blank between
    skips[3::2] = states[3::2] != states[1:-2:2]
    # Two cells precede the first state, so that the predecessors of all states are shifted views.
    total = np.full(count + 2, -np.inf)
    total[2:4] = log_probs[0, states[:2]] + scores[:2]
    previous = np.zeros((steps, count), np.int8)
    for step in range(1, steps):
        # The best scores without a move, after a move to the next state, and after a skip of one state.
        stay, move, skip = total[2:], total[1:-1], np.where(skips, total[:-2], -np.inf)
        best = np.maximum(stay, move)
        previous[step] = np.where(skip > best, 2, move > stay)
        total[2:] = np.maximum(best, skip) + log_probs[step, states] + scores
    path = np.empty(steps, np.intp)
    path[-1] = count - 1 if total[-1] >= total[-2] else count - 2
    if not np.isfinite(total[2 + path[-1]]):
        raise Unalignable(f"{count // 2} tokens do not fit into {steps} steps of these emissions")
    for step in range(steps - 1, 0, -1):
        path[step - 1] = path[step] - previous[step, path[step]]
    return path
