"""The batched work of a step: sound to codes, patches into the model, patches out of it, codes to sound.

A slot is a row of every state. On a CPU rows are computed in fours: those that have something to do come together, and
what a four lacks is filled up with idle rows, which stay as they were. So a session's results are the same to the last
bit whoever else is talking; a product of another number of rows, or attention over another number of cells, would add
up in another order. For the same reason the cells of a cache are looked at in sixteens. On CUDA a step is computed for
all rows and looks at all cells, so that its shapes never change. (That is what CUDA graphs need; capturing them is left
to be done.)

A row's position comes from the host with every call: a row rewinds by being called with a smaller one, and nothing on
the device has to know. What a step gives comes back in one transfer.

A four's codes become sound on a thread of their own, while the model takes them in and the next four is drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
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
from speechgpt2.nn.linear import pack
from speechgpt2.streaming import Cache, keep_idle, overwrite_rows, select_rows, tree_map
from speechgpt2.types import FRAME_SIZE, Patches

CELLS = 16  # of a cache that are looked at together
ROWS = 4  # that a CPU computes together: of no multiple of four, products treat the last rows differently

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


class Runner:
    """Codec and language model over all slots. All calls from one thread; `voice` has another one for the decoder."""

    def __init__(self, codec: Codec, lm: SpeechLM, config: EngineConfig):
        pack(lm)
        pack(codec.decoder)  # not the encoder: a recording's codes are the same everywhere
        self.codec, self.lm, self.device = codec, lm, lm.device
        self.on_device = self.device.type == "cuda"  # which is not waited for, and whose shapes never change
        self.slots = -(-config.slots // ROWS) * ROWS
        self.rows = self.slots if self.on_device else ROWS  # that are computed together
        self.samples = lm.config.patch_frames * FRAME_SIZE  # of a patch
        weight = lm.text_embedding.weight
        self.hidden = torch.zeros(self.slots, weight.shape[1], dtype=weight.dtype, device=self.device)
        self.ears, self.voices = codec.init_encoder_state(self.slots), codec.init_decoder_state(self.slots)
        self.capacity = -(-(config.context + 1) // CELLS) * CELLS - 1
        self.groups = [slice(first, first + self.rows) for first in range(0, self.slots, self.rows)]
        self.memories = [lm.init_state(self.rows, self.capacity) for _ in self.groups]
        self.positions = np.zeros(self.slots, np.int64)  # patches that each row has taken in
        self.voice = ThreadPoolExecutor(1, thread_name_prefix="voice")

    def set_position(self, slot: int, position: int) -> None:
        """A slot's row holds so many patches; what lies past them is void."""
        self.positions[slot] = position

    @torch.inference_mode()
    def encode(self, sounds: Mapping[int, Sound]) -> dict[int, Tensor]:
        """The codes `[T, K]` of each slot's sound. A final one leaves the row as it was, in case more follows."""
        pcm, lengths = np.zeros((self.slots, self.samples), np.float32), np.zeros(self.slots, np.int64)
        for slot, sound in sounds.items():
            pcm[slot, : len(sound.pcm)], lengths[slot] = sound.pcm, len(sound.pcm)
        self._reset(self.ears, self.codec.init_encoder_state, [n for n in sounds if sounds[n].fresh])
        all_pcm, all_lengths = self._put(pcm), self._put(lengths)
        going_on, result = self._mask(n for n in sounds if not sounds[n].final), {}
        for rows in self._together(sounds):
            before = select_rows(self.ears, rows)
            codes, after = self.codec.encode(all_pcm[rows], before, lengths=all_lengths[rows], final=True)
            overwrite_rows(self.ears, rows, keep_idle(going_on[rows], after, before))
            for slot, heard in zip(rows.tolist(), codes.cpu()):
                if slot in sounds:
                    result[slot] = heard[: self.codec.frames(len(sounds[slot].pcm))]
        return result

    @torch.inference_mode()
    def read(self, slot: int, patches: Patches) -> None:
        """Take in a piece `[1, P]`."""
        one = slice(slot, slot + 1)
        state = self._memory(one)
        self.positions[slot] += patches.text.shape[1]
        self.hidden[one], _ = self.lm.prefill(patches, state, filled=int(self.positions[slot]))

    @torch.inference_mode()
    def step(self, reads: Mapping[int, Patches], draws: Mapping[int, Draw]) -> dict[int, Drawn]:
        """One patch for each slot: those in `reads` take in theirs, `[1, 1]`, those in `draws` write their own."""
        patches = self._given(reads)
        if not draws:
            self._take_in(reads, patches)
            return {}
        self._reset(self.voices, self.codec.init_decoder_state, [n for n in draws if draws[n].fresh])
        drawing, spoken = self._mask(draws), list[tuple[Tensor, Future[Tensor]]]()
        try:
            for rows in self._draw(draws, drawing, patches):
                codes = patches.codes[rows, 0]
                speaking = drawing[rows] & (codes[:, 0, 0] != self.lm.config.no_speech)
                if self.on_device or bool(speaking.any()):
                    spoken.append((rows, self.voice.submit(self._speak, rows, codes, speaking)))
            self._take_in([*reads, *draws], patches)
        finally:
            wait([sound for _, sound in spoken])
        return self._tell(draws, patches, [(rows, sound.result()) for rows, sound in spoken])

    def close(self) -> None:
        """No step follows: the decoder's thread ends."""
        self.voice.shutdown()

    def wipe(self, slot: int) -> None:
        """Nothing of a session stays behind."""
        with torch.inference_mode():
            tree_map(lambda leaf: leaf[slot].zero_(), (self.ears, self.voices, self.hidden))
            tree_map(lambda leaf: leaf[slot % self.rows].zero_(), self.memories[slot // self.rows])
        self.set_position(slot, 0)

    def _draw(self, draws: Mapping[int, Draw], drawing: Tensor, patches: Patches) -> Iterator[Tensor]:
        """Write the patches of those who draw into `patches`, `[slots, 1]`; yields the rows that are written."""
        sampling, positions = self._sampling(draws), self._put(self.positions)
        silent = torch.where(drawing, FREE, self.lm.prompt.ids.speech_end)  # who does not draw does not speak
        balances = torch.cat([memory.balances for memory in self.memories])
        whole = LMState(StackState(positions, ()), balances)  # drawing looks at no keys
        speaks = [0] * self.slots if self.on_device else whole.balance.tolist()
        for rows in self._together(sorted(draws, key=lambda slot: not speaks[slot])):
            state, settings = select_rows(whole, rows), select_rows(sampling, rows)
            written = self.lm.draw(self.hidden[rows], state, settings, silent[rows])
            for all_rows, new in zip(patches, written, strict=True):
                all_rows[rows] = keep_idle(drawing[rows], new, all_rows[rows])
            yield rows

    def _take_in(self, slots: Iterable[int], patches: Patches) -> None:
        """Those of `slots` take in their patches."""
        active = self._mask(slots)
        for group in self.groups:
            if self.on_device or bool(active[group].any()):
                reached = self.capacity if self.on_device else int(self.positions[group].max())
                filled = -(-(reached + 1) // CELLS) * CELLS
                new = Patches(patches.text[group], patches.codes[group])
                after, _ = self.lm.prefill(new, self._memory(group), active[group].long(), filled)
                self.hidden[group] = keep_idle(active[group], after, self.hidden[group])

    @torch.inference_mode()
    def _speak(self, rows: Tensor, codes: Tensor, speaking: Tensor) -> Tensor:
        """The sound `[R, N]` of the rows `rows [R]` with `codes [R, G, K]`; who is not `speaking` stays as it was."""
        before = select_rows(self.voices, rows)
        pcm, after = self.codec.decode(codes.clamp(max=self.lm.config.no_speech - 1), before)
        overwrite_rows(self.voices, rows, keep_idle(speaking, after, before))
        return pcm

    def _tell(
        self, draws: Mapping[int, Draw], patches: Patches, spoken: list[tuple[Tensor, Tensor]]
    ) -> dict[int, Drawn]:
        """Bring it all to the host at once; float32 holds tokens and codes exactly. `spoken`: rows and their sound."""
        c = self.lm.config
        size, told = c.patch_frames * c.codebooks, {}
        pcm = torch.zeros(self.slots, self.samples if spoken else 0, device=self.device)
        for rows, made in spoken:
            pcm[rows] = made
        lines = torch.cat([patches.text.float(), patches.codes.flatten(1).float(), pcm], dim=1).cpu()
        for slot in draws:
            line = lines[slot].numpy()
            codes = line[1 : 1 + size].astype(np.int64).reshape(c.patch_frames, c.codebooks)
            sound = line[1 + size :].copy() if codes[0, 0] != c.no_speech else None
            told[slot] = Drawn(int(line[0]), codes, sound)
        return told

    def _given(self, reads: Mapping[int, Patches]) -> Patches:
        """What the rows read, `[slots, 1]`; void where they read nothing."""
        c = self.lm.config
        text = np.zeros((self.slots, 1), np.int64)
        codes = np.full((self.slots, 1, c.patch_frames, c.codebooks), c.no_speech)
        for slot, patches in reads.items():
            text[slot], codes[slot] = patches.text[0].numpy(), patches.codes[0].numpy()
        return Patches(self._put(text), self._put(codes))

    def _sampling(self, draws: Mapping[int, Draw]) -> Sampling:
        columns = zip(*(draws.get(slot, IDLE)[:4] for slot in range(self.slots)), strict=True)
        kinds = (np.float32, np.int64, np.float32, np.int64)
        return Sampling(*(self._put(np.array(column, kind)) for column, kind in zip(columns, kinds, strict=True)))

    # rows

    def _memory(self, slots: slice) -> LMState:
        """The model's state of slots of one group, at the positions of now; their caches are written in place."""
        group, first = divmod(slots.start, self.rows)
        state, rows = self.memories[group], slice(first, first + slots.stop - slots.start)
        layers = tuple(Cache(cache.keys[rows], cache.values[rows]) for cache in state.stack.layers)
        return LMState(StackState(self._put(self.positions[slots]), layers), state.balances[rows])

    def _together(self, slots: Iterable[int]) -> Iterator[Tensor]:
        """Groups of rows to compute for those of `slots`, in their order, as many in each as are computed together."""
        busy = list(slots)
        idle = sorted(set(range(self.slots)) - set(busy))
        for first in range(0, len(busy), self.rows):
            group = busy[first : first + self.rows]
            yield torch.tensor(group + idle[: self.rows - len(group)], device=self.device)

    def _reset(self, state: S, init_state: Callable[[int], S], slots: list[int]) -> None:
        """Make the rows of `slots` as if nothing had been heard."""
        if slots:
            overwrite_rows(state, torch.tensor(slots, device=self.device), init_state(len(slots)))

    def _mask(self, slots: Iterable[int]) -> Tensor:
        mask = np.zeros(self.slots, bool)
        mask[list(slots)] = True
        return self._put(mask)

    def _put(self, values: np.ndarray) -> Tensor:
        """A copy on the device."""
        return torch.tensor(values).to(self.device, non_blocking=True)
