"""The batched work of a step: patches into the model, patches out of it; the codec's part is asked for in `sounds`.

A slot is a row of every state (rows.py). A session's results are the same to the last bit whoever else is talking; so
the cells of a cache are looked at in sixteens, for attention over another number of cells would add up in another
order. On CUDA a step looks at all cells, so that its shapes never change.

A row's position comes from the host with every call: a row rewinds by being called with a smaller one, and nothing on
the device has to know. What a step writes comes back in one transfer; its sound is still to come then, since the codec
makes it while the model goes on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from speechgpt2.codec.model import Codec
from speechgpt2.engine.config import EngineConfig
from speechgpt2.engine.rows import FEW, Rows
from speechgpt2.engine.sounds import Answer, Process, Sound, Sounds, Thread
from speechgpt2.lm.backbone import StackState
from speechgpt2.lm.model import FREE, LMState, SpeechLM
from speechgpt2.lm.sampling import Sampling
from speechgpt2.nn.linear import pack
from speechgpt2.streaming import Cache, keep_idle, select_rows, tree_map
from speechgpt2.types import FRAME_SIZE, Patches

CELLS = 16  # of a cache that are looked at together
MANY = 8  # rows of the model that a CPU computes together: as quick as four, since most of the time goes elsewhere


class Draw(NamedTuple):
    """How a slot's next patch is drawn; `fresh`: the first of a reply; `writing`: it is not within speech."""

    temperature: float
    top_k: int
    top_p: float
    seed: int
    fresh: bool
    writing: bool


IDLE = Draw(0.0, 1, 1.0, 0, fresh=False, writing=False)


class Part(NamedTuple):
    """One slot's part of what the codec was asked for: codes `[T, K]`, or `pcm [N]`."""

    answer: Answer
    key: int

    def done(self) -> bool:
        return self.answer.done()

    def result(self) -> np.ndarray:
        return self.answer.result()[self.key]


class Drawn(NamedTuple):
    """A patch that the model has written and taken in: its token, `codes [G, K]`, and its sound, if it is speech."""

    token: int
    codes: np.ndarray
    sound: Part | None


class Runner:
    """The language model over all slots, and the codec beside it. All calls from one thread."""

    def __init__(self, codec: Codec, lm: SpeechLM, config: EngineConfig):
        pack(lm, config.slots)
        self.lm, self.device = lm, lm.device
        self.rows = Rows(config.slots, lm.device, FEW if config.slots <= FEW else MANY)
        self.samples = lm.config.patch_frames * FRAME_SIZE  # of a patch
        self.silent = np.full((lm.config.patch_frames, lm.config.codebooks), lm.config.no_speech)  # codes of text
        self.sounds: Sounds = (Process if config.codec_process else Thread)(codec, self.rows.count, self.samples)
        self.hidden = torch.zeros(self.rows.count, lm.config.backbone.width, dtype=lm.dtype, device=self.device)
        self.capacity = -(-(config.context + 1) // CELLS) * CELLS - 1
        starts = range(0, self.rows.count, self.rows.together)
        self.groups = [slice(first, first + self.rows.together) for first in starts]
        self.memories = [lm.init_state(self.rows.together, self.capacity) for _ in self.groups]
        self.positions = np.zeros(self.rows.count, np.int64)  # patches that each row has taken in
        self.fresh: set[int] = set()  # slots whose voice begins anew

    def set_position(self, slot: int, position: int) -> None:
        """A slot's row holds so many patches; what lies past them is void."""
        self.positions[slot] = position

    def encode(self, sounds: Mapping[int, Sound]) -> dict[int, Part]:
        """The codes of each slot's sound, to come."""
        answer = self.sounds.ask("encode", dict(sounds))
        return {slot: Part(answer, slot) for slot in sounds}

    @torch.inference_mode()
    def read(self, slot: int, patches: Patches) -> None:
        """Take in a piece `[1, P]`."""
        one = slice(slot, slot + 1)
        state = self._memory(one)
        self.positions[slot] += patches.text.shape[1]
        self.hidden[one], _ = self.lm.prefill(patches, state, filled=int(self.positions[slot]))

    @torch.inference_mode()
    def step(self, reads: Mapping[int, Patches], draws: Mapping[int, Draw]) -> Iterator[dict[int, list[Drawn]]]:
        """One patch for each slot: those in `reads` take in theirs, `[1, 1]`, those in `draws` write their own; and
        where text is written by a model that looks ahead, it may be several. Yields what is drawn as it comes.
        """
        self.fresh.update(n for n in draws if draws[n].fresh)
        looking = self.lm.lookahead is not None
        writers = [n for n in draws if draws[n].writing and looking]
        others = {n: draw for n, draw in draws.items() if n not in writers}
        if reads or others:
            yield self._one_patch(reads, others)
        for together in [writers] if self.rows.fixed and writers else [[slot] for slot in writers]:
            yield self._write(together)

    def _one_patch(self, reads: Mapping[int, Patches], draws: Mapping[int, Draw]) -> dict[int, list[Drawn]]:
        patches = self._given(reads)
        if not draws:
            self._take_in(list(reads), patches)
            return {}
        drawing, voices = self.rows.mask(draws), dict[int, Part]()
        for rows in self._draw(draws, drawing, patches):
            codes = patches.codes[rows, 0]
            speaking = drawing[rows] & (codes[:, 0, 0] != self.lm.config.no_speech)
            if self.rows.fixed or bool(speaking.any()):
                answer = self.sounds.ask("decode", rows, codes, speaking, sorted(self.fresh))
                voices |= {slot: Part(answer, row) for row, slot in enumerate(rows.tolist())}
                self.fresh.clear()
        self._take_in([*reads, *draws], patches)
        return self._tell(draws, patches, voices)

    def _write(self, slots: Sequence[int]) -> dict[int, list[Drawn]]:
        """Text, as much as can be foretold; the model takes it in. One slot's at a time on a CPU: few write at once,
        and a guess costs as much as a row.
        """
        active, told = self.rows.mask(slots), dict[int, list[Drawn]]()
        for part in self.groups if self.rows.fixed else [slice(slot, slot + 1) for slot in slots]:
            filled = self._filled(part, 1 + self.lm.config.lookahead)
            written = self.lm.write(self.hidden[part], self._memory(part), active[part], filled)
            self.hidden[part] = written.last(self.hidden[part])
            lines = torch.cat([written.counts[:, None], written.patches.text], dim=1).tolist()
            for slot in set(slots).intersection(range(part.start, part.stop)):
                count, *tokens = lines[slot - part.start]
                told[slot] = [Drawn(token, self.silent, None) for token in tokens[:count]]
                self.positions[slot] += count
        return told

    def close(self) -> None:
        """No step follows."""
        self.sounds.close()

    def wipe(self, slot: int) -> None:
        """Nothing of a session stays behind."""
        with torch.inference_mode():
            self.hidden[slot].zero_()
            group, row = divmod(slot, self.rows.together)
            tree_map(lambda leaf: leaf[row].zero_(), self.memories[group])
        self.set_position(slot, 0)
        self.fresh.discard(slot)
        if self.sounds.alive:
            self.sounds.ask("wipe", slot).result()

    def _draw(self, draws: Mapping[int, Draw], drawing: Tensor, patches: Patches) -> Iterator[Tensor]:
        """Write the patches of those who draw into `patches`, `[slots, 1]`; yields the rows that are written."""
        sampling, positions = self._sampling(draws), self.rows.put(self.positions)
        silent = torch.where(drawing, FREE, self.lm.prompt.ids.speech_end)  # who does not draw does not speak
        balances = torch.cat([memory.balances for memory in self.memories])
        whole = LMState(StackState(positions, ()), balances)  # drawing looks at no keys
        speaks = [0] * self.rows.count if self.rows.fixed else whole.balance.tolist()
        for rows in self.rows.groups(sorted(draws, key=lambda slot: not speaks[slot])):
            state, settings = select_rows(whole, rows), select_rows(sampling, rows)
            written = self.lm.draw(self.hidden[rows], state, settings, silent[rows])
            for all_rows, new in zip(patches, written, strict=True):
                all_rows[rows] = keep_idle(drawing[rows], new, all_rows[rows])
            yield rows

    def _take_in(self, slots: Sequence[int], patches: Patches) -> None:
        """Those of `slots` take in their patches."""
        active = self.rows.mask(slots)
        for group in self.groups:
            if self.rows.fixed or bool(active[group].any()):
                new, filled = Patches(patches.text[group], patches.codes[group]), self._filled(group, 1)
                after, _ = self.lm.prefill(new, self._memory(group), active[group].long(), filled)
                self.hidden[group] = keep_idle(active[group], after, self.hidden[group])
        self.positions[slots] += 1

    def _filled(self, slots: slice, more: int) -> int:
        """How many cells of the slots' caches are looked at, when each row has taken in up to `more` patches."""
        if self.rows.fixed:
            return self.capacity + 1
        return min(-(-(int(self.positions[slots].max()) + more) // CELLS) * CELLS, self.capacity + 1)

    def _tell(self, draws: Mapping[int, Draw], patches: Patches, voices: Mapping[int, Part]) -> dict[int, list[Drawn]]:
        """Bring tokens and codes to the host at once."""
        lines, told = torch.cat([patches.text, patches.codes.flatten(1)], dim=1).cpu().numpy(), {}
        for slot in draws:
            token, codes = int(lines[slot, 0]), lines[slot, 1:].reshape(patches.codes.shape[2:])
            speaks = codes[0, 0] != self.lm.config.no_speech
            told[slot] = [Drawn(token, codes, voices[slot] if speaks else None)]
        return told

    def _given(self, reads: Mapping[int, Patches]) -> Patches:
        """What the rows read, `[slots, 1]`; void where they read nothing."""
        c = self.lm.config
        text = np.zeros((self.rows.count, 1), np.int64)
        codes = np.full((self.rows.count, 1, c.patch_frames, c.codebooks), c.no_speech)
        for slot, patches in reads.items():
            text[slot], codes[slot] = patches.text[0].numpy(), patches.codes[0].numpy()
        return Patches(self.rows.put(text), self.rows.put(codes))

    def _sampling(self, draws: Mapping[int, Draw]) -> Sampling:
        columns = zip(*(draws.get(slot, IDLE)[:4] for slot in range(self.rows.count)), strict=True)
        kinds = (np.float32, np.int64, np.float32, np.int64)
        return Sampling(*(self.rows.put(np.array(column, kind)) for column, kind in zip(columns, kinds, strict=True)))

    # rows

    def _memory(self, slots: slice) -> LMState:
        """The model's state of slots of one group, at the positions of now; their caches are written in place."""
        group, first = divmod(slots.start, self.rows.together)
        state, rows = self.memories[group], slice(first, first + slots.stop - slots.start)
        layers = tuple(Cache(cache.keys[rows], cache.values[rows]) for cache in state.stack.layers)
        return LMState(StackState(self.rows.put(self.positions[slots]), layers), state.balances[rows])
