"""The aligner's search, against every path there is."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from speechgpt2.tts.alignment.viterbi import Unalignable, best_path


def collapsed(path, blank):
    """What a CTC path spells: runs merged, then blanks dropped."""
    return [token for token, _ in itertools.groupby(path) if token != blank]


def best_by_brute_force(log_probs, tokens, blank):
    steps, vocabulary = log_probs.shape
    paths = (p for p in itertools.product(range(vocabulary), repeat=steps) if collapsed(p, blank) == list(tokens))
    return max(paths, key=lambda p: log_probs[np.arange(steps), list(p)].sum())


def runs(path, blank):
    found, start = [], 0
    for token, group in itertools.groupby(path):
        length = len(list(group))
        if token != blank:
            found.append((start, start + length))
        start += length
    return found


@pytest.mark.parametrize("tokens", [(1,), (1, 2), (1, 1), (2, 1, 2), (1, 1, 2), (2, 2, 2)])
@pytest.mark.parametrize("blank", [0, 3])
def test_path_is_optimal(tokens, blank):
    tokens = [token if blank == 0 else token - 1 for token in tokens]
    rng = np.random.default_rng(len(tokens) + blank)
    for _ in range(3):
        log_probs = np.log(rng.dirichlet(np.ones(4), size=5))
        expected = best_by_brute_force(log_probs, tokens, blank)
        found = best_path(log_probs, tokens, blank)
        assert [(s.first, s.last) for s in found] == runs(expected, blank)
        for stretch, token in zip(found, tokens):
            assert stretch.score == pytest.approx(log_probs[stretch.first : stretch.last, token].mean())


@pytest.mark.parametrize("contiguous", [(1,), (1, 2), (2,)])
def test_joined_tokens_have_no_blank_between(contiguous):
    rng = np.random.default_rng(len(contiguous))
    tokens = (1, 2, 3)
    for _ in range(5):
        log_probs = np.log(rng.dirichlet((3, 1, 1, 1), size=6))
        paths = (p for p in itertools.product(range(4), repeat=6) if collapsed(p, 0) == list(tokens))
        allowed = [p for p in paths if all(joins(p, tokens[n - 1], tokens[n]) for n in contiguous)]
        expected = max(allowed, key=lambda p: log_probs[np.arange(6), list(p)].sum())
        found = best_path(log_probs, tokens, 0, contiguous)
        assert [(s.first, s.last) for s in found] == runs(expected, 0)


def joins(path, one, other):
    return path.index(other) == len(path) - path[::-1].index(one)


def test_as_many_steps_as_tokens_are_enough_and_fewer_are_not():
    log_probs = np.log(np.full((3, 4), 0.25))
    assert [(s.first, s.last) for s in best_path(log_probs, [1, 2, 3])] == [(0, 1), (1, 2), (2, 3)]
    with pytest.raises(Unalignable, match="4 tokens do not fit into 3 steps"):
        best_path(log_probs, [1, 2, 3, 1])
    with pytest.raises(Unalignable, match="3 tokens do not fit into 3 steps"):
        best_path(log_probs, [1, 1, 2])  # equal tokens need a blank between them


def test_impossible_emissions_are_unalignable():
    log_probs = np.log(np.full((5, 3), 1 / 3))
    log_probs[:, 2] = -np.inf
    with pytest.raises(Unalignable, match="do not fit"):
        best_path(log_probs, [1, 2])
    for token in (0, 3, -1):
        with pytest.raises(Unalignable, match="emissions lack"):
            best_path(log_probs, [1, token])
    assert best_path(log_probs, []) == []


def test_long_text_is_found_where_it_was_planted():
    rng = np.random.default_rng(7)
    tokens = rng.integers(1, 30, 300)
    lengths, gaps = rng.integers(2, 6, 300), rng.integers(1, 4, 300)
    starts = np.cumsum(lengths + gaps) - lengths
    log_probs = np.log(rng.dirichlet(np.full(30, 0.3), size=int(starts[-1] + lengths[-1] + 9)) * 0.5)
    said = np.zeros(len(log_probs), int)
    for token, start, length in zip(tokens, starts, lengths):
        said[start : start + length] = token
    log_probs[np.arange(len(said)), said] = np.log(0.6)
    found = best_path(log_probs, tokens.tolist())
    assert np.mean([s.first == a and s.last == a + n for s, a, n in zip(found, starts, lengths)]) > 0.97
