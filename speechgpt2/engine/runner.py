"""The batched work: encode speech, feed the model, draw and take in patches, decode speech.

Slots are rows of batches of a fixed size, `rows` each: whoever is idle in a batch is computed and left as it was
(`keep_idle`, lengths of 0). That costs little, since a step's time is that of reading the weights, and it makes a
session's results the same to the last bit whoever else is talking: a matrix product with another number of rows, or an
attention over another number of cells, adds up in another order. For the same reason the cells that are looked at are
counted in sixteens, and long stretches are fed row by row.

Where a session stands is known on the host and handed in with every call, so rewinding costs nothing here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from speechgpt2.codec.model import Codec
from speechgpt2.dialogue.protocol import SessionSettings
from speechgpt2.lm.backbone import StackState
from speechgpt2.lm.model import LMState, SpeechLM
from speechgpt2.lm.sampling import Sampling
from speechgpt2.streaming import Cache, keep_idle, write_rows
from speechgpt2.types import Patches

CELLS = 16  # of the cache, looked at together


class Job(NamedTuple):
    """One patch of one session: `position` before it, and the patch [1, 1] if it is given; None: it is to be drawn."""

    position: int
    given: Patches | None


class Drawn(NamedTuple):
    """A patch that was drawn: its token and codes `[G, K]`, on the CPU."""

    token: int
    codes: Tensor


class Batch:
    """The state of `rows` slots, `first` being the first of them."""

    def __init__(self, codec: Codec, lm: SpeechLM, rows: int, capacity: int):
        self.lm = lm.init_state(rows, capacity)
        self.hidden = torch.zeros(
            rows, lm.config.backbone.width, dtype=lm.text_embedding.weight.dtype, device=lm.device
        )
        self.sampling = Sampling.greedy(rows, device=lm.device)
        self.encoder = codec.init_encoder_state(rows)
        self.decoder = codec.init_decoder_state(rows)
        self.positions = [0] * rows


class Runner:
    """Codec and language model over all slots."""

    def __init__(self, codec: Codec, lm: SpeechLM, slots: int, rows: int, capacity: int):
        self.codec, self.lm, self.rows, self.capacity = codec, lm, rows, capacity
        self.batches = [Batch(codec, lm, rows, capacity) for _ in range(-(-slots // rows))]

    def _place(self, slot: int) -> tuple[Batch, int]:
        return self.batches[slot // self.rows], slot % self.rows

    # one slot

    @torch.inference_mode()
    def clear(self, slot: int) -> None:
        """Forget everything about a slot: nothing of a session outlives it."""
        batch, row = self._place(slot)
        for cache in batch.lm.stack.layers:
            cache.keys[row] = 0
            cache.values[row] = 0
        batch.lm.balances[row] = 0
        batch.hidden[row] = 0
        batch.positions[row] = 0
        self.tune(slot, SessionSettings(temperature=0.0))
        self.begin_hearing(slot)
        self.begin_speaking(slot)

    def tune(self, slot: int, settings: SessionSettings) -> None:
        """How a session's patches are drawn from now on."""
        batch, row = self._place(slot)
        s = settings
        own = Sampling.of(1, s.temperature, s.top_k, s.top_p, s.seed, device=self.lm.device)
        batch.sampling = write_rows(batch.sampling, self._row(row), own)

    def begin_hearing(self, slot: int) -> None:
        """The encoder hears something new."""
        batch, row = self._place(slot)
        batch.encoder = write_rows(batch.encoder, self._row(row), self.codec.init_encoder_state(1))

    def begin_speaking(self, slot: int) -> None:
        """The decoder says something new."""
        batch, row = self._place(slot)
        batch.decoder = write_rows(batch.decoder, self._row(row), self.codec.init_decoder_state(1))

    @torch.inference_mode()
    def feed(self, slot: int, position: int, patches: Patches) -> None:
        """Take in `patches` [1, P] at `position`."""
        batch, row = self._place(slot)
        one = slice(row, row + 1)
        layers = tuple(Cache(cache.keys[one], cache.values[one]) for cache in batch.lm.stack.layers)  # views
        at = torch.tensor([position], device=self.lm.device)
        steps = patches.text.shape[1]
        state = LMState(StackState(at, layers), batch.lm.balances[one])
        hidden, _ = self.lm.prefill(patches, state, filled=position + steps)
        batch.hidden[one] = hidden
        batch.positions[row] = position + steps

    # many slots

    @torch.inference_mode()
    def encode(self, chunks: Mapping[int, np.ndarray]) -> dict[int, Tensor]:
        """Samples `[960 · T]` of each slot -> its codes `[T, K]`, on the CPU."""
        codes: dict[int, Tensor] = {}
        for size in sorted({len(chunk) for chunk in chunks.values()}):
            for batch, slots in self._batches([slot for slot, chunk in chunks.items() if len(chunk) == size]):
                pcm = np.zeros((self.rows, size), np.float32)
                for slot in slots:
                    pcm[slot % self.rows] = chunks[slot]
                made, after = self.codec.encode(torch.from_numpy(pcm).to(self.lm.device), batch.encoder)
                batch.encoder = keep_idle(self._mask(slots), after, batch.encoder)
                made = made.cpu()
                codes |= {slot: made[slot % self.rows] for slot in slots}
        return codes

    @torch.inference_mode()
    def step(self, jobs: Mapping[int, Job]) -> dict[int, Drawn]:
        """Take in one patch of each slot; those that were drawn."""
        drawn: dict[int, Drawn] = {}
        for batch, slots in self._batches(jobs):
            drawn |= self._step(batch, {slot: jobs[slot] for slot in slots})
        return drawn

    @torch.inference_mode()
    def decode(self, codes: Mapping[int, Tensor]) -> dict[int, np.ndarray]:
        """Codes `[G, K]` of each slot -> its samples `[960 · G]`."""
        pcm: dict[int, np.ndarray] = {}
        for batch, slots in self._batches(codes):
            whole = torch.zeros(self.rows, *codes[slots[0]].shape, dtype=torch.int64)
            for slot in slots:
                whole[slot % self.rows] = codes[slot]
            made, after = self.codec.decode(whole.to(self.lm.device), batch.decoder)
            batch.decoder = keep_idle(self._mask(slots), after, batch.decoder)
            made = made.cpu()
            pcm |= {slot: made[slot % self.rows].numpy() for slot in slots}
        return pcm

    def _step(self, batch: Batch, jobs: Mapping[int, Job]) -> dict[int, Drawn]:
        for slot, job in jobs.items():
            batch.positions[slot % self.rows] = job.position
        device, lm = self.lm.device, self.lm
        at = torch.tensor(batch.positions, device=device)
        state = LMState(StackState(at, batch.lm.stack.layers), batch.lm.balances)
        patches = self._blank()
        drawing = [slot for slot, job in jobs.items() if job.given is None]
        if drawing:
            patches = lm.draw(batch.hidden, state, batch.sampling)
        for slot, job in jobs.items():
            if job.given is not None:
                patches.text[slot % self.rows] = job.given.text[0].to(device)
                patches.codes[slot % self.rows] = job.given.codes[0].to(device)
        filled = -(-(max(batch.positions) + 1) // CELLS) * CELLS
        active = self._mask(list(jobs))
        hidden, _ = lm.prefill(patches, state, active.long(), filled=min(filled, self.capacity + 1))
        batch.hidden = torch.where(active[:, None], hidden, batch.hidden)
        for slot, job in jobs.items():
            batch.positions[slot % self.rows] = job.position + 1
        if not drawing:
            return {}
        shape = patches.codes.shape[2:]
        told = torch.cat([patches.text, patches.codes.flatten(1)], dim=1).cpu()  # one transfer
        return {s: Drawn(int(told[s % self.rows, 0]), told[s % self.rows, 1:].view(shape)) for s in drawing}

    def _blank(self) -> Patches:
        c, device = self.lm.config, self.lm.device
        text = torch.zeros(self.rows, 1, dtype=torch.int64, device=device)
        return Patches(text, torch.zeros(self.rows, 1, c.patch_frames, c.codebooks, dtype=torch.int64, device=device))

    def _batches(self, slots: Sequence[int] | Mapping[int, object]) -> list[tuple[Batch, list[int]]]:
        """The batches that hold any of `slots`, each with those it holds."""
        groups: dict[int, list[int]] = {}
        for slot in slots:
            groups.setdefault(slot // self.rows, []).append(slot)
        return [(self.batches[group], members) for group, members in sorted(groups.items())]

    def _mask(self, slots: Sequence[int]) -> Tensor:
        mask = torch.zeros(self.rows, dtype=torch.bool)
        mask[[slot % self.rows for slot in slots]] = True
        return mask.to(self.lm.device)

    def _row(self, row: int) -> Tensor:
        return torch.tensor([row], device=self.lm.device)
