"""Augmentation of synthetic speech: another speaker's vocal tract and melody, pauses, rooms, equalisation, noise.

There are few synthetic voices, and their recordings are clean, while real recordings have many speakers and noise. Each
step is drawn at random. The times of words and phones stay exact.
"""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import soxr

from speechgpt2.dsp.world_pitch import world
from speechgpt2.tts.utterance import Utterance
from speechgpt2.types import SAMPLE_RATE

STRETCH = (0.86, 1.16)  # factor of pitch, formants and tempo together, as with the speed of a tape
CHANGED_VOICE = {"flite": 0.85, "espeak": 0.15, "kokoro": 0.2}  # probability by engine: flite has few speakers
FORMANTS = (0.8, 1.28)  # factor: a vocal tract 25 % longer to one a fifth shorter
MEAN_PITCH = (75.0, 300.0)  # Hz: from a low male voice to a child's
LIVELINESS = (0.4, 1.6)  # factor of the excursions of pitch
TEMPO = (0.85, 1.2)  # factor of the duration
BREATH = (0.0, 0.5)  # share of the voiced part that becomes noise
PAUSE_SECONDS = 0.6  # longest pause before the first word, and after the last
WORLD_MS = 10.0  # milliseconds between two spectra of WORLD
ROOM_SECONDS = (0.08, 0.45)  # reverberation time (RT60)
NOISE_DB = (12.0, 40.0)  # signal-to-noise ratio


def augment_utterance(utterance: Utterance, rng: random.Random, share: float = 0.6) -> Utterance:
    """Return the utterance by another speaker, in another room.

    Args:
        utterance: the utterance.
        rng: draws the steps and their parameters.
        share: probability of each step, except for a new voice (`CHANGED_VOICE`) and a room (half of it).
    """
    noise = np.random.default_rng(rng.getrandbits(64))
    if rng.random() < CHANGED_VOICE.get(utterance.voice.engine, 0.0):
        pitch = np.exp(rng.uniform(*np.log(MEAN_PITCH)))
        utterance = change_voice(
            utterance,
            rng.uniform(*FORMANTS),
            pitch,
            rng.uniform(*LIVELINESS),
            rng.uniform(*TEMPO),
            rng.uniform(*BREATH),
        )
    elif rng.random() < share:
        utterance = stretch(utterance, rng.uniform(*STRETCH))
    if rng.random() < share:
        utterance = pad_silence(utterance, rng.uniform(0, PAUSE_SECONDS), rng.uniform(0, PAUSE_SECONDS))
    pcm = _through_microphone(utterance.pcm, rng, noise, share / 2, share)
    peak = float(np.abs(pcm).max())
    return replace(utterance, pcm=(pcm * min(1.0, 0.95 / max(peak, 1e-6))).astype(np.float32))


def augment_microphone(pcm: np.ndarray, random: np.random.Generator, share: float = 0.3) -> np.ndarray:
    """Return `pcm [N]` as a microphone in a room would record it, with the same length.

    Each step has the probability `share`.
    """
    return _through_microphone(pcm, random, random, share, share) if pcm.any() else pcm


def stretch(utterance: Utterance, factor: float) -> Utterance:
    """Play the utterance `factor` times slower: a longer vocal tract, a lower pitch, a slower tempo."""
    pcm = soxr.resample(utterance.pcm, SAMPLE_RATE, SAMPLE_RATE * factor, quality="HQ")
    return _retime(replace(utterance, pcm=pcm), factor, 0.0)


def change_voice(
    utterance: Utterance, formants: float, pitch: float, liveliness: float, tempo: float, breath: float
) -> Utterance:
    """Change the speaker, by WORLD's analysis and synthesis (Morise et al. 2016), about 13 times faster than real time.

    Args:
        utterance: the utterance.
        formants: factor of the formants' frequencies.
        pitch: mean pitch in Hz.
        liveliness: factor of the excursions of pitch.
        tempo: factor of the duration.
        breath: share (0…1) of the voiced part that becomes noise.

    Raises:
        MissingDependency: pyworld is not installed.
    """
    tools = world()
    pcm = utterance.pcm.astype(np.float64)
    coarse, times = tools.dio(pcm, SAMPLE_RATE, frame_period=WORLD_MS)
    f0 = tools.stonemask(pcm, coarse, times, SAMPLE_RATE)
    envelope = tools.cheaptrick(pcm, f0, times, SAMPLE_RATE)
    noise = tools.d4c(pcm, f0, times, SAMPLE_RATE)
    bins = np.arange(envelope.shape[1])
    source = np.minimum(bins / formants, bins[-1])
    below = np.minimum(source.astype(int), bins[-2])
    share = source - below
    level = np.log(envelope)
    envelope = np.exp((1 - share) * level[:, below] + share * level[:, below + 1])
    voiced = f0 > 0
    if voiced.any():
        height = np.log(f0[voiced])
        f0[voiced] = np.clip(pitch * np.exp(liveliness * (height - height.mean())), 50, 500)
    noise += breath * (1 - noise)
    changed = tools.synthesize(f0, np.ascontiguousarray(envelope), noise, SAMPLE_RATE, WORLD_MS * tempo)
    return _retime(replace(utterance, pcm=changed), tempo, 0.0)


def pad_silence(utterance: Utterance, before: float, after: float) -> Utterance:
    """Add `before` and `after` seconds of silence."""
    pcm = np.pad(utterance.pcm, (round(before * SAMPLE_RATE), round(after * SAMPLE_RATE)))
    return _retime(replace(utterance, pcm=pcm), 1.0, before)


def add_reverb(pcm: np.ndarray, seconds: float, wet: float, random: np.random.Generator) -> np.ndarray:
    """Add reverberation to `pcm [N]`, without changing its length.

    Args:
        pcm: samples at 24 kHz.
        seconds: time in which the reverberation falls by 60 dB.
        wet: level of the reverberation relative to the voice.
        random: draws the impulse response, which is decaying noise.
    """
    n = int(seconds * SAMPLE_RATE)
    echo = random.standard_normal(n) * 10 ** (-3 * np.arange(n) / n)
    size = _next_power_of_two(len(pcm) + n)
    tail = np.fft.irfft(np.fft.rfft(pcm, size) * np.fft.rfft(echo / np.sqrt(np.square(echo).sum()), size))
    return pcm + wet * tail[: len(pcm)]


def equalise(pcm: np.ndarray, tilt: float, low: float, high: float) -> np.ndarray:
    """Filter `pcm [N]`: `tilt` dB per octave around 1 kHz, and a band from `low` to `high` Hz with gentle edges."""
    size = _next_power_of_two(len(pcm))
    f = np.maximum(np.fft.rfftfreq(size, 1 / SAMPLE_RATE), 20.0)
    gain = 10 ** (np.clip(tilt * np.log2(f / 1000), -18, 18) / 20)
    gain /= np.sqrt((1 + (low / f) ** 4) * (1 + (f / high) ** 6))
    return np.fft.irfft(np.fft.rfft(pcm, size) * gain, size)[: len(pcm)]


def add_noise(pcm: np.ndarray, snr: float, slope: float, random: np.random.Generator) -> np.ndarray:
    """Add noise `snr` dB below `pcm [N]`. Its spectrum falls with f^−slope: 0 is white, 1 resembles traffic."""
    size = _next_power_of_two(len(pcm))
    f = np.maximum(np.fft.rfftfreq(size, 1 / SAMPLE_RATE), 50.0)
    noise = np.fft.irfft(np.fft.rfft(random.standard_normal(size)) * f**-slope, size)[: len(pcm)]
    level = np.sqrt(np.square(pcm).mean() / max(np.square(noise).mean(), 1e-20)) * 10 ** (-snr / 20)
    return pcm + level * noise


def _through_microphone(
    pcm: np.ndarray, rng: random.Random | np.random.Generator, noise: np.random.Generator, room: float, others: float
) -> np.ndarray:
    """Add a room with the probability `room`, and equalisation and noise with the probability `others` each."""
    if rng.random() < room:
        pcm = add_reverb(pcm, rng.uniform(*ROOM_SECONDS), rng.uniform(0.1, 0.6), noise)
    if rng.random() < others:
        pcm = equalise(pcm, rng.uniform(-4, 4), rng.uniform(60, 250), rng.uniform(3500, 11_000))
    if rng.random() < others:
        pcm = add_noise(pcm, rng.uniform(*NOISE_DB), rng.uniform(0, 1), noise)
    return pcm


def _retime(utterance: Utterance, factor: float, offset: float) -> Utterance:
    """Move the times of words and phones to `time · factor + offset`."""

    def retimed(span):
        return span._replace(start=span.start * factor + offset, end=span.end * factor + offset)

    return replace(utterance, words=tuple(map(retimed, utterance.words)), phones=tuple(map(retimed, utterance.phones)))


def _next_power_of_two(n: int) -> int:
    """Return the next power of two: FFTs of odd lengths take ten times as long."""
    return 1 << (n - 1).bit_length()
