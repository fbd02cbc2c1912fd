"""The light waveform head: pulses and noise through predicted filters (neural homomorphic vocoder, Liu et al., 2020).

Every 10 ms step predicts a pitch, whether there is one, and two filters as causal cepstra, hence of minimum phase. A
block of excitation is filtered in the frequency domain and added into the blocks after it:

    pulses  ─ × H(harmonic cepstrum) ─┐
                                      + ─ overlap-add ─ pcm       240 samples out per step, no look-ahead
    noise   ─ × H(noise cepstrum) ────┘

A source with an explicit pitch cannot buzz at the step rate, and it costs next to nothing. The noise is a fixed table
read at the row's own position, so that streaming equals offline.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechgpt2.codec.config import HarmonicConfig
from speechgpt2.types import SAMPLE_RATE

START_LEVEL = -5 / 3  # of the liftered gain: filters at −43 dB before training
NOISE_TABLE = 1 << 16  # samples before the noise repeats: 2.7 s


class HarmonicState(NamedTuple):
    """`phase [B]` in cycles (float64), `f0 [B]` of the step before, `noise [B]` the next index into the table, and
    `tail [B, fft − hop]`, what is already known of the samples to come."""

    phase: Tensor
    f0: Tensor
    noise: Tensor
    tail: Tensor


class Controls(NamedTuple):
    """What a step predicts: `log_f0 [B, T]`, `voicing [B, T]` (logit), cepstra `[B, T, order]`."""

    log_f0: Tensor
    voicing: Tensor
    harmonic: Tensor
    noise: Tensor


class HarmonicHead(nn.Module):
    """`[B, T, C] -> pcm [B, hop · T]`."""

    table: Tensor

    def __init__(self, c_in: int, hop: int, config: HarmonicConfig):
        super().__init__()
        self.config, self.hop = config, hop
        self.pitch = nn.Sequential(nn.Linear(c_in, c_in), nn.GELU(), nn.Linear(c_in, 2))
        self.cepstra = nn.Linear(c_in, config.harmonic_order + config.noise_order)
        with torch.no_grad():  # start as flat filters at speech's usual level, or the first steps go into finding it
            self.cepstra.weight.mul_(0.3)
            self.cepstra.bias.zero_()
            self.cepstra.bias[[0, config.harmonic_order]] = START_LEVEL
        generator = torch.Generator().manual_seed(0)
        self.register_buffer("table", torch.randn(NOISE_TABLE, generator=generator), persistent=False)

    def init_state(self, batch: int) -> HarmonicState:
        zeros = self.cepstra.weight.new_zeros
        return HarmonicState(
            zeros(batch, dtype=torch.float64),
            zeros(batch, dtype=torch.float32),
            zeros(batch, dtype=torch.int64),
            zeros(batch, self.config.fft - self.hop, dtype=torch.float32),
        )

    def forward(self, x: Tensor, state: HarmonicState | None = None) -> tuple[Tensor, HarmonicState]:
        controls = self.control(x)
        return self.synthesize(controls, self.f0(controls), state or self.init_state(x.shape[0]))

    def control(self, x: Tensor) -> Controls:
        """Predict the controls of every step. `[B, T, C]` in."""
        pitch = self.pitch(x).float()
        low, high = self.config.f0_min, self.config.f0_max
        span = torch.log(torch.tensor(high / low))
        log_f0 = torch.log(torch.tensor(low)) + span * torch.sigmoid(pitch[..., 0])
        # Cepstra of speech fall off with quefrency; so do ours, or the filters would start out as noise.
        cepstra = self.cepstra(x).float()
        harmonic, noise = cepstra.split([self.config.harmonic_order, self.config.noise_order], dim=-1)
        return Controls(log_f0, pitch[..., 1], _liftered(harmonic), _liftered(noise))

    def f0(self, controls: Controls) -> Tensor:
        """Pitch in Hz, 0 where unvoiced, `[B, T]`."""
        return torch.where(controls.voicing > 0, controls.log_f0.exp(), 0.0)

    def synthesize(self, controls: Controls, f0: Tensor, state: HarmonicState) -> tuple[Tensor, HarmonicState]:
        """`f0 [B, T]` in Hz (0: unvoiced) drives the pulses; the filters come from `controls`."""
        steps = f0.shape[1]
        with torch.no_grad():
            pulses, phase = pulse_train(f0, state.f0, state.phase, self.hop)
            noise, position = self._noise(state.noise, steps)
        fft = self.config.fft
        spectrum = torch.fft.rfft(pulses, fft) * self._response(controls.harmonic)
        spectrum = spectrum + torch.fft.rfft(noise, fft) * self._response(controls.noise)
        pcm = overlap_add(torch.fft.irfft(spectrum, fft), self.hop)  # [B, hop · (T − 1) + fft]
        pcm = torch.cat([pcm[:, : fft - self.hop] + state.tail, pcm[:, fft - self.hop :]], dim=1)
        cut = steps * self.hop
        return pcm[:, :cut], HarmonicState(phase, f0[:, -1].float(), position, pcm[:, cut:])

    def _response(self, cepstrum: Tensor) -> Tensor:
        """Minimum-phase frequency response of a causal cepstrum, `[B, T, order] -> [B, T, fft / 2 + 1]` complex."""
        log_response = torch.fft.rfft(cepstrum, self.config.fft)
        return torch.polar(log_response.real.clamp(max=12).exp(), log_response.imag)

    def _noise(self, position: Tensor, steps: int) -> tuple[Tensor, Tensor]:
        index = position[:, None] + torch.arange(steps * self.hop, device=position.device)
        blocks = self.table[index % NOISE_TABLE].view(len(position), steps, self.hop)
        return blocks, (position + steps * self.hop) % NOISE_TABLE


def _liftered(cepstrum: Tensor) -> Tensor:
    quefrency = torch.arange(cepstrum.shape[-1], device=cepstrum.device)
    return 3 * cepstrum / (1 + quefrency) ** 0.75


def pulse_train(f0: Tensor, before: Tensor, phase: Tensor, hop: int) -> tuple[Tensor, Tensor]:
    """Band-limited pulses of unit power. `f0 [B, T]` Hz, `before [B]` the step before, `phase [B]` cycles (float64).

    Returns `[B, T, hop]` and the next phase. Pitch glides linearly over a step. A voiced stretch begins at its own
    pitch and with a pulse, so that rounding does not add up over a stream. The sum of all harmonics below half the rate
    has a closed form (Dirichlet's kernel), so no harmonic is summed.
    """
    f0, before = f0.double(), before.double()
    previous = torch.cat([before[:, None], f0[:, :-1]], dim=1)
    start = torch.where(previous > 0, previous, f0)
    gain = (f0 - start) / hop  # Hz per sample
    total = (start * hop + gain * hop * hop / 2) / SAMPLE_RATE  # cycles in each step
    since = phase[:, None] + total.cumsum(1) - total
    onset = (f0 > 0) & (previous <= 0)
    offset = since - _latest(since, onset)
    n = torch.arange(1, hop + 1, device=f0.device, dtype=torch.float64)
    cycles = offset[..., None] + (start[..., None] * n + gain[..., None] * n * n / 2) / SAMPLE_RATE
    harmonics = torch.floor(SAMPLE_RATE / 2 / torch.maximum(start, f0).clamp(min=1.0))[..., None]
    half = (torch.remainder(cycles + 0.5, 1.0) - 0.5) * torch.pi  # around 0 at a pulse, where precision counts
    near = half.abs() < 1e-9
    odd = 2 * harmonics + 1
    kernel = torch.where(near, odd, (odd * half).sin() / torch.where(near, 1.0, half.sin()))
    pulses = (kernel - 1) / 2 * (2 / harmonics).sqrt()
    pulses = torch.where((f0 > 0)[..., None], pulses, 0.0)
    return pulses.float(), torch.remainder(offset[:, -1] + total[:, -1], 1.0)


def _latest(values: Tensor, marks: Tensor) -> Tensor:
    """For every step of `values [B, T]` the value at the last step up to it that is marked, 0 before the first."""
    steps = torch.arange(1, values.shape[1] + 1, device=values.device)
    last = torch.where(marks, steps, 0).cummax(dim=1).values
    return F.pad(values, (1, 0)).gather(1, last)


def overlap_add(frames: Tensor, hop: int) -> Tensor:
    """`frames [B, T, L]`, each `hop` after the one before, added up: `[B, hop · (T − 1) + L]`."""
    _, steps, length = frames.shape
    size = hop * (steps - 1) + length
    return F.fold(frames.transpose(1, 2), (1, size), (1, length), stride=(1, hop))[:, 0, 0]
