"""The batched work of a step: patches into the model, patches out of it; the codec's part is asked for in `sounds`.

A slot is a row of every state (rows.py). A session's results are the same to the last bit whoever else is talking; so
the cells of a cache are looked at in sixteens, for attention over another number of cells would add up in another
order. On CUDA a step computes all rows and looks at all cells, so that its shapes never change, and is recorded.

A step is told everything in one table (orders.py), positions too: a row rewinds by being told a smaller one, and
nothing on the device has to know. What rows draw is written into the table, from which they take it in, and which so
comes back in one transfer. Its sound is still to come then, since the codec makes it while the model goes on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from speechgpt2.codec.model import Codec
from speechgpt2.engine.config import EngineConfig
from speechgpt2.engine.orders import TEXT, Draw, Orders, write_table
from speechgpt2.engine.rows import FEW, Rows
from speechgpt2.engine.sounds import Answer, Process, Sound, Sounds, Thread
from speechgpt2.lm.backbone import StackState
from speechgpt2.lm.model import UNFORCED, LMState, SpeechLM
from speechgpt2.nn.linear import pack
from speechgpt2.streaming import Cache, tree_map, where_active
from speechgpt2.types import FRAME_SIZE, Patches

CELLS = 16  # of a cache that are looked at together
MANY = 8  # rows of the model that a CPU computes together: as quick as four, since most of the time goes elsewhere


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
        nothing, everyone, filled = self._table({}, {}), self.groups[0], self.capacity + 1
        self.draw = self.rows.record(self._draw, nothing, torch.arange(self.rows.count))
        self.take_in = self.rows.record(self._take_in, nothing, everyone, filled)
        self.write = self.rows.record(self._write, nothing, everyone, filled) if lm.draft_head else self._write

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
        state = self._memory(one, self.rows.put(self.positions[one]))
        self.positions[slot] += patches.text.shape[1]
        self.hidden[one], _ = self.lm.prefill(patches, state, kv_length=int(self.positions[slot]))

    @torch.inference_mode()
    def step(self, reads: Mapping[int, Patches], draws: Mapping[int, Draw]) -> Iterator[dict[int, list[Drawn]]]:
        """One patch for each slot: those in `reads` take in theirs, `[1, 1]`, those in `draws` write their own; and
        where text is written by a model that looks ahead, it may be several. Yields what is drawn as it comes.
        """
        self.fresh.update(n for n in draws if draws[n].fresh)
        looking = self.lm.draft_head is not None
        writing = {n: draw for n, draw in draws.items() if draw.writing and looking}
        others = {n: draw for n, draw in draws.items() if n not in writing}
        if reads or others:
            yield self._one_patch(reads, others)
        for together in [writing] if self.rows.fixed and writing else [{n: draw} for n, draw in writing.items()]:
            yield self._several_patches(together)

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

    def _one_patch(self, reads: Mapping[int, Patches], draws: Mapping[int, Draw]) -> dict[int, list[Drawn]]:
        table = self._table(reads, draws)
        orders, voices = Orders.of(table, self.lm.config), dict[int, Part]()
        for rows in self.rows.groups(sorted(draws, key=lambda slot: draws[slot].writing)):
            drawn = self.draw(self.rows.select(table, rows), rows)
            self.rows.overwrite(orders.given, rows, drawn)
            codes = drawn.codes[:, 0]
            speaking = self.rows.select(orders.draws, rows) & (codes[:, 0, 0] != self.lm.config.no_speech)
            if self.rows.fixed or bool(speaking.any()):
                answer = self.sounds.ask("decode", rows, codes, speaking, sorted(self.fresh))
                voices |= {slot: Part(answer, row) for row, slot in enumerate(rows.tolist())}
                self.fresh.clear()
        busy = [*reads, *draws]
        for part in self.groups:
            if self.rows.fixed or not set(busy).isdisjoint(range(part.start, part.stop)):
                self.take_in(table[part], part, self._filled(part, 1))
        self.positions[busy] += 1
        return self._tell(draws, table, voices) if draws else {}

    def _several_patches(self, draws: Mapping[int, Draw]) -> dict[int, list[Drawn]]:
        """Text, as much as can be foretold; the model takes it in. One slot's at a time on a CPU: few write at once,
        and a guess costs as much as a row.
        """
        table, told = self._table({}, draws), dict[int, list[Drawn]]()
        for part in self.groups if self.rows.fixed else [slice(slot, slot + 1) for slot in draws]:
            lines = self.write(table[part], part, self._filled(part, 1 + self.lm.config.draft_tokens)).tolist()
            for slot in draws:
                count, *tokens = lines[slot - part.start]
                told[slot] = [Drawn(token, self.silent, None) for token in tokens[:count]]
                self.positions[slot] += count
        return told

    def _tell(self, draws: Mapping[int, Draw], table: Tensor, voices: Mapping[int, Part]) -> dict[int, list[Drawn]]:
        """Bring tokens and codes to the host at once."""
        lines, told = table[:, TEXT:].cpu().numpy(), {}
        for slot in draws:
            token, codes = int(lines[slot, 0]), lines[slot, 1:].reshape(self.silent.shape)
            speaks = codes[0, 0] != self.lm.config.no_speech
            told[slot] = [Drawn(token, codes, voices[slot] if speaks else None)]
        return told

    def _table(self, reads: Mapping[int, Patches], draws: Mapping[int, Draw]) -> Tensor:
        return self.rows.put(write_table(self.positions, reads, draws, self.lm.config))

    def _filled(self, slots: slice, more: int) -> int:
        """How many cells of the slots' caches are looked at, when each row has taken in up to `more` patches."""
        if self.rows.fixed:
            return self.capacity + 1
        return min(-(-(int(self.positions[slots].max()) + more) // CELLS) * CELLS, self.capacity + 1)

    # what is computed of a table's rows

    def _draw(self, table: Tensor, rows: Tensor) -> Patches:
        """The patches `[R, 1]` of `rows`: drawn by those who draw."""
        orders = Orders.of(table, self.lm.config)
        balances = self.rows.select(torch.cat([memory.speech_depths for memory in self.memories]), rows)
        state = LMState(StackState(orders.position, ()), balances)  # drawing looks at no keys
        silent = torch.where(
            orders.draws, UNFORCED, self.lm.prompt.special_ids.speech_end
        )  # who does not draw does not speak
        written = self.lm.sample(self.rows.select(self.hidden, rows), state, orders.sampling, silent)
        return where_active(orders.draws, written, orders.given)

    def _take_in(self, table: Tensor, part: slice, filled: int) -> None:
        """The slots `part` take in their patches, those that read or have drawn."""
        orders = Orders.of(table, self.lm.config)
        memory, active = self._memory(part, orders.position), orders.reads | orders.draws
        after, _ = self.lm.prefill(orders.given, memory, active.long(), filled)
        self.hidden[part] = where_active(active, after, self.hidden[part])

    def _write(self, table: Tensor, part: slice, filled: int) -> Tensor:
        """How many tokens each of the slots `part` has written and taken in, and the tokens, `[R, 1 + A]`."""
        orders, hidden = Orders.of(table, self.lm.config), self.hidden[part]
        written = self.lm.draft_and_verify(hidden, self._memory(part, orders.position), orders.draws, filled)
        self.hidden[part] = written.last(hidden)
        return torch.cat([written.counts[:, None], written.patches.text], dim=1)

    def _memory(self, slots: slice, positions: Tensor) -> LMState:
        """The model's state of slots of one group, at `positions`; their caches are written in place."""
        group, first = divmod(slots.start, self.rows.together)
        state, rows = self.memories[group], slice(first, first + slots.stop - slots.start)
        layers = tuple(Cache(cache.keys[rows], cache.values[rows]) for cache in state.stack.layers)
        return LMState(StackState(positions, layers), state.speech_depths[rows])
