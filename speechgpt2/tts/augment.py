"""What happens to a voice on its way to a microphone: another speaker's throat and melody, a pause before and after, a
room, a colour, noise.

Synthetic voices are few and clean; people are many and are not. Each step is drawn at random, so that no question
sounds the same twice; times of words and phones stay exact.
"""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import soxr

from speechgpt2.dsp.world_pitch import world
from speechgpt2.tts.utterance import Utterance
from speechgpt2.types import SAMPLE_RATE

STRETCH = (0.86, 1.16)  # of the whole spectrum: pitch, formants and tempo together, as with tape speed
REVOICED = {"flite": 0.85, "espeak": 0.15}  # how often, by engine: flite's speakers are few, and sound like people
FORMANTS = (0.8, 1.28)  # of a vocal tract 25 % longer to one a fifth shorter
MEAN_PITCH = (75.0, 300.0)  # Hz, from a low man's to a child's
LIVELINESS = (0.4, 1.6)  # of the pitch's excursions, 1 as it was said
TEMPO = (0.85, 1.2)  # of the duration
BREATH = (0.0, 0.5)  # of the voiced part that becomes noise
PAUSE_SECONDS = 0.6  # at most, before the first word and after the last: a live turn is cut where silence is certain
WORLD_MS = 10.0  # between two of its spectra
ROOM_SECONDS = (0.08, 0.45)  # until an echo has fallen by 60 dB
NOISE_DB = (12.0, 40.0)  # of the signal above the noise


def disturbed(utterance: Utterance, rng: random.Random, share: float = 0.6) -> Utterance:
    """The utterance as somebody else in some other place would have said it. Each step is drawn with `share`."""
    noise = np.random.default_rng(rng.getrandbits(64))
    if rng.random() < REVOICED.get(utterance.voice.engine, 0.0):
        pitch = np.exp(rng.uniform(*np.log(MEAN_PITCH)))
        utterance = revoiced(
            utterance,
            rng.uniform(*FORMANTS),
            pitch,
            rng.uniform(*LIVELINESS),
            rng.uniform(*TEMPO),
            rng.uniform(*BREATH),
        )
    elif rng.random() < share:
        utterance = stretched(utterance, rng.uniform(*STRETCH))
    if rng.random() < share:
        utterance = delayed(utterance, rng.uniform(0, PAUSE_SECONDS), rng.uniform(0, PAUSE_SECONDS))
    pcm = _picked_up(utterance.pcm, rng, noise, share / 2, share)
    peak = float(np.abs(pcm).max())
    return replace(utterance, pcm=(pcm * min(1.0, 0.95 / max(peak, 1e-6))).astype(np.float32))


def elsewhere(pcm: np.ndarray, random: np.random.Generator, share: float = 0.3) -> np.ndarray:
    """`pcm [N]` as picked up in some room by some microphone, of the same length. Each step is drawn with `share`."""
    return _picked_up(pcm, random, random, share, share) if pcm.any() else pcm


def stretched(utterance: Utterance, factor: float) -> Utterance:
    """Played `factor` times slower: a longer vocal tract, a lower pitch, a slower tempo."""
    pcm = soxr.resample(utterance.pcm, SAMPLE_RATE, SAMPLE_RATE * factor, quality="HQ")
    return _retimed(replace(utterance, pcm=pcm), factor, 0.0)


def revoiced(
    utterance: Utterance, formants: float, pitch: float, liveliness: float, tempo: float, breath: float
) -> Utterance:
    """By another speaker: formants `formants` times as high, `pitch` Hz on average, excursions of the melody scaled by
    `liveliness`, `tempo` times as long, `breath` (0..1) of the voice turned to noise.

    Taken apart and put together by WORLD (Morise et al. 2016), about 13 times faster than real time.
    Errors: `MissingDependency` where pyworld is missing.
    """
    tools = world()
    pcm = utterance.pcm.astype(np.float64)
    coarse, times = tools.dio(pcm, SAMPLE_RATE, frame_period=WORLD_MS)
    f0 = tools.stonemask(pcm, coarse, times, SAMPLE_RATE)
    envelope = tools.cheaptrick(pcm, f0, times, SAMPLE_RATE)
    noise = tools.d4c(pcm, f0, times, SAMPLE_RATE)
    bins = np.arange(envelope.shape[1])
    low = np.minimum(bins / formants, bins[-1])
    below = np.minimum(low.astype(int), bins[-2])
    share = low - below
    level = np.log(envelope)
    envelope = np.exp((1 - share) * level[:, below] + share * level[:, below + 1])
    voiced = f0 > 0
    if voiced.any():
        height = np.log(f0[voiced])
        f0[voiced] = np.clip(pitch * np.exp(liveliness * (height - height.mean())), 50, 500)
    noise += breath * (1 - noise)
    made = tools.synthesize(f0, np.ascontiguousarray(envelope), noise, SAMPLE_RATE, WORLD_MS * tempo)
    return _retimed(replace(utterance, pcm=made), tempo, 0.0)


def delayed(utterance: Utterance, before: float, after: float) -> Utterance:
    """With so many seconds of silence on either side."""
    pcm = np.pad(utterance.pcm, (round(before * SAMPLE_RATE), round(after * SAMPLE_RATE)))
    return _retimed(replace(utterance, pcm=pcm), 1.0, before)


def in_room(pcm: np.ndarray, seconds: float, wet: float, random: np.random.Generator) -> np.ndarray:
    """With the echo of a room: noise that falls by 60 dB in `seconds`, as loud as `wet` of the voice; same length."""
    n = int(seconds * SAMPLE_RATE)
    echo = random.standard_normal(n) * 10 ** (-3 * np.arange(n) / n)
    size = _quick(len(pcm) + n)
    tail = np.fft.irfft(np.fft.rfft(pcm, size) * np.fft.rfft(echo / np.sqrt(np.square(echo).sum()), size))
    return pcm + wet * tail[: len(pcm)]


def coloured(pcm: np.ndarray, tilt: float, low: float, high: float) -> np.ndarray:
    """`tilt` dB per octave around 1 kHz, and a band from `low` to `high` Hz with gentle edges."""
    size = _quick(len(pcm))
    f = np.maximum(np.fft.rfftfreq(size, 1 / SAMPLE_RATE), 20.0)
    gain = 10 ** (np.clip(tilt * np.log2(f / 1000), -18, 18) / 20)
    gain /= np.sqrt((1 + (low / f) ** 4) * (1 + (f / high) ** 6))
    return np.fft.irfft(np.fft.rfft(pcm, size) * gain, size)[: len(pcm)]


def with_noise(pcm: np.ndarray, snr: float, slope: float, random: np.random.Generator) -> np.ndarray:
    """Noise `snr` dB below the signal; its spectrum falls with f^−slope (0 white, 1 like traffic)."""
    size = _quick(len(pcm))
    f = np.maximum(np.fft.rfftfreq(size, 1 / SAMPLE_RATE), 50.0)
    noise = np.fft.irfft(np.fft.rfft(random.standard_normal(size)) * f**-slope, size)[: len(pcm)]
    level = np.sqrt(np.square(pcm).mean() / max(np.square(noise).mean(), 1e-20)) * 10 ** (-snr / 20)
    return pcm + level * noise


def _picked_up(
    pcm: np.ndarray, rng: random.Random | np.random.Generator, noise: np.random.Generator, room: float, rest: float
) -> np.ndarray:
    """By a microphone: through a room with a chance of `room`, coloured and with noise each with one of `rest`."""
    if rng.random() < room:
        pcm = in_room(pcm, rng.uniform(*ROOM_SECONDS), rng.uniform(0.1, 0.6), noise)
    if rng.random() < rest:
        pcm = coloured(pcm, rng.uniform(-4, 4), rng.uniform(60, 250), rng.uniform(3500, 11_000))
    if rng.random() < rest:
        pcm = with_noise(pcm, rng.uniform(*NOISE_DB), rng.uniform(0, 1), noise)
    return pcm


def _retimed(utterance: Utterance, factor: float, offset: float) -> Utterance:
    """Words and phones at `time · factor + offset`."""

    def moved(part):
        return part._replace(start=part.start * factor + offset, end=part.end * factor + offset)

    return replace(utterance, words=tuple(map(moved, utterance.words)), phones=tuple(map(moved, utterance.phones)))


def _quick(n: int) -> int:
    """The next power of two: transforms of odd lengths take ten times as long."""
    return 1 << (n - 1).bit_length()
