"""The batched work of a step: sound to codes, patches into the model, patches out of it, codes to sound.

Slots are rows of batches of a fixed size. Whoever is idle in a batch is computed along and left as it was, which costs
little, since a step's time is that of reading the weights; and it makes a session's results the same to the last bit
whoever else is talking: a product of another number of rows, or attention over another number of cells, adds up in
another order. For the same reason the cells of a cache are looked at in sixteens. On CUDA a step looks at all of them,
so that its shapes never change. (That is what CUDA graphs need; capturing them is left to be done.)

A row's position comes from the host with every call: a row rewinds by being called with a smaller one, and nothing on
the device has to know. What a batch gives comes back in one transfer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from speechgpt2.codec.model import Codec
from speechgpt2.engine.config import EngineConfig
from speechgpt2.lm.backbone import StackState
from speechgpt2.lm.model import FREE, LMState, SpeechLM
from speechgpt2.lm.sampling import Sampling
from speechgpt2.streaming import Cache, keep_idle, tree_map
from speechgpt2.types import FRAME_SIZE, Patches

CELLS = 16  # of a cache that are looked at together
ROWS = 4  # a batch has as many or a multiple: of other numbers, products treat the last rows differently
MOST_ROWS = 8  # of a batch on a CPU, where an idle row still costs a little

S = TypeVar("S")


class Sound(NamedTuple):
    """A patch of the user's sound, `pcm [N]` of at most a patch; `fresh`: the first, `final`: the last of a turn."""

    pcm: np.ndarray
    fresh: bool
    final: bool


class Draw(NamedTuple):
    """How a slot's next patch is drawn; `fresh`: the first of a reply."""

    temperature: float
    top_k: int
    top_p: float
    seed: int
    fresh: bool


IDLE = Draw(0.0, 1, 1.0, 0, False)


@dataclass(frozen=True)
class Drawn:
    """A patch that the model has written and taken in: its token, `codes [G, K]`, and `pcm [N]` if it is speech."""

    token: int
    codes: np.ndarray
    pcm: np.ndarray | None


class Batch:
    """The states of some slots, a row each; `positions`: patches that each row has taken in."""

    def __init__(self, codec: Codec, lm: SpeechLM, rows: int, context: int):
        self.ears, self.voices = codec.init_encoder_state(rows), codec.init_decoder_state(rows)
        self.memory = lm.init_state(rows, -(-(context + 1) // CELLS) * CELLS - 1)
        weight = lm.text_embedding.weight
        self.hidden = torch.zeros(rows, weight.shape[1], dtype=weight.dtype, device=weight.device)
        self.positions = np.zeros(rows, np.int64)

    def memory_of(self, rows: slice) -> LMState:
        """The model's state of some rows, at the positions of now; their caches are written in place."""
        layers = tuple(Cache(cache.keys[rows], cache.values[rows]) for cache in self.memory.stack.layers)
        position = torch.from_numpy(self.positions[rows].copy()).to(self.hidden.device, non_blocking=True)
        return LMState(StackState(position, layers), self.memory.balances[rows])


class Runner:
    """Codec and language model over all slots. All calls from one thread."""

    def __init__(self, codec: Codec, lm: SpeechLM, config: EngineConfig):
        self.codec, self.lm, self.device = codec, lm, lm.device
        on_device = lm.device.type == "cuda"
        slots = -(-config.slots // ROWS) * ROWS
        self.rows = config.rows or (slots if on_device else min(slots, MOST_ROWS))
        self.samples = lm.config.patch_frames * FRAME_SIZE  # of a patch
        count = -(-config.slots // self.rows)
        self.batches = [Batch(codec, lm, self.rows, config.context) for _ in range(count)]
        self._whole = self.batches[0].memory.stack.capacity + 1 if on_device else None

    def set_position(self, slot: int, position: int) -> None:
        """A slot's row holds so many patches; what lies past them is void."""
        self.batches[slot // self.rows].positions[slot % self.rows] = position

    @torch.inference_mode()
    def encode(self, sounds: Mapping[int, Sound]) -> dict[int, Tensor]:
        """The codes `[T, K]` of each slot's sound. A final one leaves the row as it was, in case more follows."""
        result = {}
        for batch, slots in self._batches(sounds):
            pcm, lengths = np.zeros((self.rows, self.samples), np.float32), np.zeros(self.rows, np.int64)
            for slot in slots:
                sound, row = sounds[slot].pcm, slot % self.rows
                pcm[row, : len(sound)], lengths[row] = sound, len(sound)
            fresh = [slot for slot in slots if sounds[slot].fresh]
            before = self._reset(batch.ears, self.codec.init_encoder_state, fresh)
            codes, after = self.codec.encode(self._put(pcm), before, lengths=self._put(lengths), final=True)
            going_on = self._mask(slot for slot in slots if not sounds[slot].final)
            batch.ears, codes = keep_idle(going_on, after, before), codes.cpu()
            for slot in slots:
                result[slot] = codes[slot % self.rows, : self.codec.frames(len(sounds[slot].pcm))]
        return result

    @torch.inference_mode()
    def read(self, slot: int, patches: Patches) -> None:
        """Take in a piece `[1, P]`."""
        batch, row = self.batches[slot // self.rows], slot % self.rows
        one = slice(row, row + 1)
        state = batch.memory_of(one)
        batch.positions[row] += patches.text.shape[1]
        batch.hidden[one], _ = self.lm.prefill(patches, state, filled=int(batch.positions[row]))

    @torch.inference_mode()
    def step(self, reads: Mapping[int, Patches], draws: Mapping[int, Draw]) -> dict[int, Drawn]:
        """One patch for each slot: those in `reads` take in theirs, `[1, 1]`, those in `draws` write their own."""
        drawn: dict[int, Drawn] = {}
        for batch, slots in self._batches([*reads, *draws]):
            writers = {slot: draws[slot] for slot in slots if slot in draws}
            drawn |= self._step(batch, {slot: reads[slot] for slot in slots if slot in reads}, writers)
        return drawn

    def wipe(self, slot: int) -> None:
        """Nothing of a session stays behind."""
        batch, index = self.batches[slot // self.rows], torch.tensor([slot % self.rows], device=self.device)
        with torch.inference_mode():
            for state in (batch.ears, batch.voices, batch.memory, (batch.hidden,)):
                tree_map(lambda leaf: leaf.index_fill_(0, index, 0), state)
        self.set_position(slot, 0)

    def _step(self, batch: Batch, reads: Mapping[int, Patches], draws: Mapping[int, Draw]) -> dict[int, Drawn]:
        """The same for one batch."""
        drawing, active = self._mask(draws), self._mask([*reads, *draws])
        state, patches = batch.memory_of(slice(None)), self._given(reads)
        if draws:
            silent = torch.where(drawing, FREE, self.lm.prompt.ids.speech_end)  # who does not draw does not speak
            written = self.lm.draw(batch.hidden, state, self._sampling(draws), silent)
            patches = Patches(*(keep_idle(drawing, w, p) for w, p in zip(written, patches, strict=True)))
        filled = self._whole or -(-int(batch.positions.max() + 1) // CELLS) * CELLS
        after, _ = self.lm.prefill(patches, state, active.long(), filled)
        batch.hidden = keep_idle(active, after, batch.hidden)
        return self._tell(draws, patches, self._speak(batch, draws, drawing, patches)) if draws else {}

    def _speak(self, batch: Batch, draws: Mapping[int, Draw], drawing: Tensor, patches: Patches) -> Tensor:
        """The sound of all rows, `[rows, N]`; N is 0 if none speaks. Who does not speak stays as it was."""
        fresh = [slot for slot, draw in draws.items() if draw.fresh]
        batch.voices = self._reset(batch.voices, self.codec.init_decoder_state, fresh)
        codes, no_speech = patches.codes[:, 0], self.lm.config.no_speech
        speaking = drawing & (codes[:, 0, 0] != no_speech)
        if not (speaking.is_cuda or bool(speaking.any())):  # a device is not waited for
            return torch.zeros(self.rows, 0)
        pcm, after = self.codec.decode(codes.clamp(max=no_speech - 1), batch.voices)
        batch.voices = keep_idle(speaking, after, batch.voices)
        return pcm

    def _tell(self, draws: Mapping[int, Draw], patches: Patches, pcm: Tensor) -> dict[int, Drawn]:
        """Bring it all to the host at once; float32 holds tokens and codes exactly."""
        c = self.lm.config
        size, told = c.patch_frames * c.codebooks, {}
        lines = torch.cat([patches.text.float(), patches.codes.flatten(1).float(), pcm], dim=1).cpu()
        for slot in draws:
            line = lines[slot % self.rows].numpy()
            codes = line[1 : 1 + size].astype(np.int64).reshape(c.patch_frames, c.codebooks)
            sound = line[1 + size :].copy() if codes[0, 0] != c.no_speech else None
            told[slot] = Drawn(int(line[0]), codes, sound)
        return told

    def _given(self, reads: Mapping[int, Patches]) -> Patches:
        """What the rows read, `[rows, 1]`; void where they read nothing."""
        c = self.lm.config
        text = np.zeros((self.rows, 1), np.int64)
        codes = np.full((self.rows, 1, c.patch_frames, c.codebooks), c.no_speech)
        for slot, patches in reads.items():
            row = slot % self.rows
            text[row], codes[row] = patches.text[0].numpy(), patches.codes[0].numpy()
        return Patches(self._put(text), self._put(codes))

    def _sampling(self, draws: Mapping[int, Draw]) -> Sampling:
        settings = {slot % self.rows: draw for slot, draw in draws.items()}
        columns = zip(*(settings.get(row, IDLE)[:4] for row in range(self.rows)), strict=True)
        kinds = (np.float32, np.int64, np.float32, np.int64)
        return Sampling(*(self._put(np.array(column, kind)) for column, kind in zip(columns, kinds, strict=True)))

    # rows

    def _batches(self, slots: Iterable[int]) -> list[tuple[Batch, list[int]]]:
        """The batches that hold any of the slots, with those they hold."""
        groups: dict[int, list[int]] = {}
        for slot in sorted(slots):
            groups.setdefault(slot // self.rows, []).append(slot)
        return [(self.batches[group], members) for group, members in groups.items()]

    def _reset(self, state: S, init_state: Callable[[int], S], slots: list[int]) -> S:
        """`state` of a batch with the rows of `slots` as if nothing had been heard."""
        return keep_idle(self._mask(slots), init_state(self.rows), state) if slots else state

    def _mask(self, slots: Iterable[int]) -> Tensor:
        mask = np.zeros(self.rows, bool)
        mask[[slot % self.rows for slot in slots]] = True
        return self._put(mask)

    def _put(self, values: np.ndarray) -> Tensor:
        return torch.from_numpy(values).to(self.device, non_blocking=True)
