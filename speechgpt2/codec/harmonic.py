"""The light waveform head: pulses and noise through predicted filters.

Source: Liu et al., Neural Homomorphic Vocoder, 2020 (https://doi.org/10.21437/Interspeech.2020-3188).

Every 10 ms step predicts pitch, voicing and two filters. A filter is given as log gains on the mel scale and made
minimum-phase through its cepstrum. A block of excitation is filtered in the frequency domain and overlap-added:

    pulses  ─ × H(harmonic gains) ─┐
                                   + ─ overlap-add ─ pcm       240 samples out per step, no look-ahead
    noise   ─ × H(noise gains) ────┘

Over a block the filters fade from those of the previous step to its own. Filters that switch at once cause a buzz at
the step rate. Noise is read from a fixed table at the row's own position, so that streaming equals offline.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechgpt2.codec.config import HarmonicConfig
from speechgpt2.codec.mel import hz_to_mel
from speechgpt2.nn.precision import widest_float
from speechgpt2.types import SAMPLE_RATE

START_LEVEL = -5.0  # log gain of both filters before training
SILENT, LOUDEST = -16.0, 12.0  # bounds of a log gain
SMALL_ANGLE = {torch.float64: 1e-9, torch.float32: 1e-6}  # angles of a pulse's kernel below which its limit is used
NOISE_TABLE = 1 << 16  # samples before the noise repeats: 2.7 s


class HarmonicState(NamedTuple):
    """State of a stream.

    `phase [B]` is in cycles (float64, where the device has it). `f0 [B]` and `gains [B, bands]` (of both filters) are
    those of the previous step. `noise [B]` is the next index into the noise table. `tail [B, fft − hop]` is what past
    blocks add to the samples that follow.
    """

    phase: Tensor
    f0: Tensor
    gains: Tensor
    noise: Tensor
    tail: Tensor


class Controls(NamedTuple):
    """Predictions of every step: `log_f0 [B, T]`, `voicing [B, T]` (logit), log `gains [B, T, bands]` of both."""

    log_f0: Tensor
    voicing: Tensor
    gains: Tensor


class HarmonicHead(nn.Module):
    """`[B, T, C]` -> `pcm [B, hop · T]`."""

    table: Tensor
    harmonic_curve: Tensor
    noise_curve: Tensor
    rising: Tensor

    def __init__(self, c_in: int, hop: int, config: HarmonicConfig):
        super().__init__()
        self.config, self.hop = config, hop
        self.pitch = nn.Sequential(nn.Linear(c_in, c_in), nn.GELU(), nn.Linear(c_in, 2))
        self.bands = (config.harmonic_bands, config.noise_bands)
        self.gains = nn.Linear(c_in, sum(self.bands))
        # Otherwise the first training steps only find the usual level of speech.
        nn.init.constant_(self.gains.bias, START_LEVEL)
        for name, bands in zip(("harmonic_curve", "noise_curve"), self.bands):
            self.register_buffer(name, mel_interpolation(bands, config.fft), persistent=False)
        self.register_buffer("rising", (torch.arange(hop) + 0.5) / hop, persistent=False)
        generator = torch.Generator().manual_seed(0)
        self.register_buffer("table", torch.randn(NOISE_TABLE, generator=generator), persistent=False)

    def init_state(self, batch: int) -> HarmonicState:
        """Return the state of `batch` rows before any input."""
        zeros = self.gains.weight.new_zeros
        return HarmonicState(
            zeros(batch, dtype=widest_float(self.gains.weight.device)),
            zeros(batch, dtype=torch.float32),
            zeros(batch, sum(self.bands), dtype=torch.float32) + SILENT,
            zeros(batch, dtype=torch.int64),
            zeros(batch, self.config.fft - self.hop, dtype=torch.float32),
        )

    def forward(self, x: Tensor, state: HarmonicState | None = None) -> tuple[Tensor, HarmonicState]:
        """Process one chunk `[B, T, C]`."""
        controls = self.control(x)
        return self.synthesize(controls, self.f0(controls), state or self.init_state(x.shape[0]))

    def control(self, x: Tensor) -> Controls:
        """Predict the controls of every step from `x [B, T, C]`."""
        pitch = self.pitch(x).float()
        low, high = self.config.f0_min, self.config.f0_max
        span = torch.log(torch.tensor(high / low))
        log_f0 = torch.log(torch.tensor(low)) + span * torch.sigmoid(pitch[..., 0])
        return Controls(log_f0, pitch[..., 1], self.gains(x).float())

    def f0(self, controls: Controls) -> Tensor:
        """Return the pitch in Hz, `[B, T]`, 0 where unvoiced."""
        return torch.where(controls.voicing > 0, controls.log_f0.exp(), 0.0)

    def synthesize(self, controls: Controls, f0: Tensor, state: HarmonicState) -> tuple[Tensor, HarmonicState]:
        """Synthesize audio.

        Args:
            controls: They give the filters.
            f0: The pitch of the pulses in Hz, `[B, T]`, 0 where unvoiced.
            state: The state before the chunk.

        Returns:
            `pcm [B, hop · T]` and the next state.
        """
        steps = f0.shape[1]
        with torch.no_grad():
            pulses, phase = pulse_train(f0, state.f0, state.phase, self.hop)
            noise, position = self._noise(state.noise, steps)
        fft = self.config.fft
        gains = torch.cat([state.gains[:, None], controls.gains], dim=1)  # the previous step first
        harmonic, breath = gains.split(self.bands, dim=-1)
        spectrum = self._filtered(pulses, harmonic @ self.harmonic_curve.float())
        spectrum = spectrum + self._filtered(noise, breath @ self.noise_curve.float())
        pcm = overlap_add(torch.fft.irfft(spectrum, fft), self.hop)  # [B, hop · (T − 1) + fft]
        pcm = torch.cat([pcm[:, : fft - self.hop] + state.tail, pcm[:, fft - self.hop :]], dim=1)
        cut = steps * self.hop
        return pcm[:, :cut], HarmonicState(phase, f0[:, -1].float(), gains[:, -1], position, pcm[:, cut:])

    def _filtered(self, excitation: Tensor, log_gain: Tensor) -> Tensor:
        """Filter blocks and return their spectra `[B, T, fft / 2 + 1]`.

        Args:
            excitation: The blocks, `[B, T, hop]`.
            log_gain: T + 1 filters, `[B, T + 1, fft / 2 + 1]`. Block t fades from filter t to filter t + 1.
        """
        response = minimum_phase(log_gain)
        rising = torch.fft.rfft(excitation * self.rising.float(), self.config.fft)
        spectrum = torch.fft.rfft(excitation, self.config.fft)
        return rising * response[:, 1:] + (spectrum - rising) * response[:, :-1]

    def _noise(self, position: Tensor, steps: int) -> tuple[Tensor, Tensor]:
        index = position[:, None] + torch.arange(steps * self.hop, device=position.device)
        blocks = self.table.float()[index % NOISE_TABLE].view(len(position), steps, self.hop)
        return blocks, (position + steps * self.hop) % NOISE_TABLE


def mel_interpolation(bands: int, fft: int) -> Tensor:
    """Return the matrix `[bands, fft / 2 + 1]` that interpolates linearly between points evenly spaced in mel."""
    frequency = np.linspace(0, SAMPLE_RATE / 2, fft // 2 + 1)
    position = hz_to_mel(frequency) / hz_to_mel(SAMPLE_RATE / 2) * (bands - 1)
    hats = 1 - np.abs(position[None] - np.arange(bands)[:, None])
    return torch.from_numpy(np.maximum(hats, 0).astype(np.float32))


def minimum_phase(log_gain: Tensor) -> Tensor:
    """Return the minimum-phase response (complex) with the given log gains, both `[..., fft / 2 + 1]`.

    Its cepstrum is that of the gains with negative quefrencies folded onto the positive ones (Oppenheim & Schafer,
    Discrete-Time Signal Processing).
    """
    log_gain = log_gain.clamp(min=SILENT, max=LOUDEST)
    cepstrum = torch.fft.irfft(log_gain)
    half = cepstrum.shape[-1] // 2
    folded = torch.cat([cepstrum[..., :1], 2 * cepstrum[..., 1:half], cepstrum[..., half : half + 1]], dim=-1)
    return torch.polar(log_gain.exp(), torch.fft.rfft(folded, 2 * half).imag)


def pulse_train(f0: Tensor, before: Tensor, phase: Tensor, hop: int) -> tuple[Tensor, Tensor]:
    """Generate band-limited pulses of unit power.

    Pitch changes linearly over a step. A voiced segment begins at its own pitch and with a pulse, so that rounding
    does not accumulate over a stream. The sum of all harmonics below the Nyquist frequency has a closed form
    (Dirichlet's kernel).

    Args:
        f0: Pitch at the end of every step in Hz, `[B, T]`, 0 where unvoiced.
        before: Pitch of the previous step, `[B]`.
        phase: Phase in cycles, `[B]`, in the precision to compute in.
        hop: Samples in a step.

    Returns:
        Pulses `[B, T, hop]` and the next phase.
    """
    wide = phase.dtype
    f0, before = f0.to(wide), before.to(wide)
    previous = torch.cat([before[:, None], f0[:, :-1]], dim=1)
    start = torch.where(previous > 0, previous, f0)
    gain = (f0 - start) / hop  # Hz per sample
    total = (start * hop + gain * hop * hop / 2) / SAMPLE_RATE  # cycles in each step
    since = phase[:, None] + total.cumsum(1) - total
    onset = (f0 > 0) & (previous <= 0)
    offset = since - _latest(since, onset)
    n = torch.arange(1, hop + 1, device=f0.device, dtype=wide)
    cycles = offset[..., None] + (start[..., None] * n + gain[..., None] * n * n / 2) / SAMPLE_RATE
    harmonics = torch.floor(SAMPLE_RATE / 2 / torch.maximum(start, f0).clamp(min=1.0))[..., None]
    half = (torch.remainder(cycles + 0.5, 1.0) - 0.5) * torch.pi  # near 0 at a pulse, where precision matters
    is_small = half.abs() < SMALL_ANGLE[wide]
    odd = 2 * harmonics + 1
    kernel = torch.where(is_small, odd, (odd * half).sin() / torch.where(is_small, 1.0, half.sin()))
    pulses = (kernel - 1) / 2 * (2 / harmonics).sqrt()
    pulses = torch.where((f0 > 0)[..., None], pulses, 0.0)
    return pulses.float(), torch.remainder(offset[:, -1] + total[:, -1], 1.0)


def _latest(values: Tensor, marks: Tensor) -> Tensor:
    """Return, for every step, the value of `values [B, T]` at the latest marked step up to it, 0 before the first."""
    steps = torch.arange(1, values.shape[1] + 1, device=values.device)
    latest = torch.where(marks, steps, 0).cummax(dim=1).values
    return F.pad(values, (1, 0)).gather(1, latest)


def overlap_add(frames: Tensor, hop: int) -> Tensor:
    """Overlap-add `frames [B, T, L]` at distances of `hop`: `[B, hop · (T − 1) + L]`."""
    _, steps, length = frames.shape
    size = hop * (steps - 1) + length
    return F.fold(frames.transpose(1, 2), (1, size), (1, length), stride=(1, hop))[:, 0, 0]
