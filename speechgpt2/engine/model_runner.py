"""The batched work of the language model in a step: patches in, patches out. `codec_worker` decodes their audio.

A slot is a row of every state (batch_rows.py). A session's results are equal to the last bit whatever other sessions
do. Therefore attention reads the cells of a cache in whole blocks of sixteen: a longer context in the batch then adds
blocks of masked cells, which add zero, and does not change the order of the sum over the others. On CUDA, a step
computes all rows, and reads their cells up to one of a few lengths: for each length it is captured as a CUDA graph.

All inputs of a step are one table (step_inputs.py). It includes the positions: a row rewinds when it gets a smaller
one. Sampled patches are written into the table, the rows read them from there, and one transfer brings the table back
to the host. The codec decodes the audio while the model goes on, so a patch comes before its audio.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from speechgpt2.codec.model import Codec
from speechgpt2.engine.batch_rows import CPU_BATCH, BatchRows
from speechgpt2.engine.codec_worker import AudioChunk, CodecFuture, CodecProcess, CodecThread, CodecWorker
from speechgpt2.engine.config import EngineConfig
from speechgpt2.engine.prefill import Prefiller
from speechgpt2.engine.row_states import RowStates
from speechgpt2.engine.step_inputs import LOG_PROB, SampleParams, StepInputs, bits_to_float, float_bits, write_table
from speechgpt2.lm.backbone import StackState
from speechgpt2.lm.model import UNFORCED, SampledPatches, SpeechLM
from speechgpt2.lm.state import LMState
from speechgpt2.nn.linear import pack
from speechgpt2.streaming import where_active
from speechgpt2.types import Patches

LM_CPU_BATCH = 8  # rows of a batch on a CPU; a step of eight is as fast as one of four


class CodecResult(NamedTuple):
    """One slot's part of a result of the codec: codes `[T, K]`, or audio `[N]`."""

    future: CodecFuture
    key: int

    def done(self) -> bool:
        """Whether the codec has finished."""
        return self.future.done()

    def result(self) -> np.ndarray:
        """Wait for the codec and return this slot's part."""
        return self.future.result()[self.key]


class GeneratedPatch(NamedTuple):
    """A patch that the model has sampled and read: its text token, `codes [G, K]`, and its audio if it is speech.

    `log_prob` is that of the token (0 unless `PromptConfig.min_confidence` is set).
    """

    token: int
    log_prob: float
    codes: np.ndarray
    audio: CodecResult | None


class ModelRunner:
    """Runs the language model for all slots, with the codec beside it. For one thread.

    Args:
        codec: The codec. It runs in a thread or process of its own.
        lm: The language model. It is packed for inference.
        config: The engine's configuration.
    """

    def __init__(self, codec: Codec, lm: SpeechLM, config: EngineConfig):
        pack(lm, config.slots)
        self.lm, self.device = lm, lm.device
        self.rows = BatchRows(config.slots, lm.device, CPU_BATCH if config.slots <= CPU_BATCH else LM_CPU_BATCH)
        self.no_speech_codes = np.full((lm.config.patch_frames, lm.config.codebooks), lm.config.no_speech)
        worker = CodecProcess if config.codec_process else CodecThread
        self.codec: CodecWorker = worker(codec, self.rows.count, lm.config.patch_samples)
        self.states = RowStates(lm, self.rows, config.context)
        self.prefiller = Prefiller(lm, self.states)
        self.new_replies: set[int] = set()  # slots whose decoder state is reset before the next patch of speech
        idle, batch, every_row = self._table({}, {}), self.states.batches[0], torch.arange(self.rows.count)
        allowed = self._allowed({}, self.rows.static_shapes)
        self.sample_rows = self.rows.graphed(
            self._sample_rows, *((idle, every_row, allowed, speaks) for speaks in (False, True))
        )
        idle_of_each_length = [(idle, batch, kv_length) for kv_length in self.states.kv_lengths]
        self.read_rows = self.rows.graphed(self._read_rows, *idle_of_each_length)
        self.draft_rows = self._draft_rows
        if lm.draft_head is not None:
            self.draft_rows = self.rows.graphed(self._draft_rows, *idle_of_each_length)

    def encode(self, chunks: Mapping[int, AudioChunk]) -> dict[int, CodecResult]:
        """Submit each slot's chunk of audio to the codec."""
        future = self.codec.encode(dict(chunks))
        return {slot: CodecResult(future, slot) for slot in chunks}

    @torch.inference_mode()
    def step(
        self, prefill: Mapping[int, Patches], sample: Mapping[int, SampleParams]
    ) -> Iterator[dict[int, list[GeneratedPatch]]]:
        """Make a step of one patch in each slot, or of several patches in a slot whose text a draft head writes.

        Args:
            prefill: Patches `[1, 1]` to read, by slot.
            sample: How other slots sample their patches.

        Yields:
            Generated patches by slot, for some of the slots at a time.
        """
        self.new_replies.update(n for n in sample if sample[n].first)
        drafts = self.lm.draft_head is not None
        writing = {n: params for n, params in sample.items() if params.writing and drafts and params.allowed is None}
        single = {n: params for n, params in sample.items() if n not in writing}
        if prefill or single:
            yield self._step_one(prefill, single)
        # On a CPU, one slot at a time: few slots write at the same time, and a drafted token costs as much as a row.
        whole = self.states.batches if self.rows.static_shapes and writing else []
        for batch in whole or [slice(slot, slot + 1) for slot in writing]:
            yield self._step_draft(batch, {n: writing[n] for n in range(batch.start, batch.stop) if n in writing})

    def close(self) -> None:
        """Stop the codec."""
        self.codec.close()

    def wipe(self, slot: int) -> None:
        """Erase the states of a slot, those of the codec included."""
        self.states.wipe(slot)
        self.new_replies.discard(slot)
        if self.codec.alive:
            self.codec.wipe(slot).result()

    def _step_one(
        self, prefill: Mapping[int, Patches], sample: Mapping[int, SampleParams]
    ) -> dict[int, list[GeneratedPatch]]:
        """Make a step of one patch in each slot."""
        table = self._table(prefill, sample)
        inputs, audio = StepInputs.from_table(table, self.lm.config), dict[int, CodecResult]()
        constrained = any(params.allowed is not None for params in sample.values())
        speaks = any(not params.writing for params in sample.values())
        allowed = self._allowed(sample, self.rows.static_shapes or constrained)
        for rows in self.rows.batches(sorted(sample, key=lambda slot: sample[slot].writing)):
            bits = None if allowed is None else self.rows.select(allowed, rows)
            sampled = self.sample_rows(self.rows.select(table, rows), rows, bits, speaks)
            self.rows.overwrite(SampledPatches(inputs.patches, inputs.log_probs), rows, sampled)
            codes = sampled.patches.codes[:, 0]
            speaking = self.rows.select(inputs.samples, rows) & (codes[:, 0, 0] != self.lm.config.no_speech)
            if speaks and (self.rows.static_shapes or bool(speaking.any())):
                future = self.codec.decode(rows, codes, speaking, sorted(self.new_replies))
                audio |= {slot: CodecResult(future, row) for row, slot in enumerate(rows.tolist())}
                self.new_replies.clear()
        busy = [*prefill, *sample]
        for batch in self.states.batches:
            if self.rows.static_shapes or not set(busy).isdisjoint(range(batch.start, batch.stop)):
                self.read_rows(table[batch], batch, self.states.kv_length(batch, 1))
        self.states.positions[busy] += 1
        return self._generated(sample, table, audio) if sample else {}

    def _step_draft(self, batch: slice, sample: Mapping[int, SampleParams]) -> dict[int, list[GeneratedPatch]]:
        """Make a step of several text tokens: the draft head proposes them, the model verifies and reads them."""
        kv_length, generated = self.states.kv_length(batch, 1 + self.lm.config.draft_tokens), {}
        drafted = self.draft_rows(self._table({}, sample)[batch], batch, kv_length).cpu().numpy()
        for slot in sample:
            row = drafted[slot - batch.start]
            count, (tokens, bits) = int(row[0]), row[1:].reshape(2, -1)
            written = zip(tokens[:count].tolist(), bits_to_float(bits[:count]), strict=True)
            generated[slot] = [GeneratedPatch(*token, self.no_speech_codes, None) for token in written]
            self.states.positions[slot] += count
        return generated

    def _generated(
        self, sample: Mapping[int, SampleParams], table: Tensor, audio: Mapping[int, CodecResult]
    ) -> dict[int, list[GeneratedPatch]]:
        """Bring tokens and codes to the host in one transfer."""
        sampled, generated = table[:, LOG_PROB:].cpu().numpy(), {}
        log_probs = bits_to_float(sampled[:, 0])
        for slot in sample:
            token, codes = int(sampled[slot, 1]), sampled[slot, 2:].reshape(self.no_speech_codes.shape)
            speaks = codes[0, 0] != self.lm.config.no_speech
            generated[slot] = [GeneratedPatch(token, log_probs[slot], codes, audio[slot] if speaks else None)]
        return generated

    def _table(self, prefill: Mapping[int, Patches], sample: Mapping[int, SampleParams]) -> Tensor:
        return self.rows.to_device(write_table(self.states.positions, prefill, sample, self.lm.config))

    def _allowed(self, sample: Mapping[int, SampleParams], needed: bool) -> Tensor | None:
        """The text tokens that each slot may sample, as bits `[R, W]` int32; None if that is not `needed`."""
        if not needed:
            return None
        bits = np.full((self.rows.count, -(-self.lm.config.backbone.vocab // 32)), -1, np.int32)
        for slot, params in sample.items():
            if params.allowed is not None:
                bits[slot] = params.allowed
        return self.rows.to_device(bits)

    # captured on CUDA: functions of a table's rows

    def _sample_rows(self, table: Tensor, rows: Tensor, allowed: Tensor | None, speaks: bool) -> SampledPatches:
        """Return the patches `[R, 1]` of `rows`, sampled or given; sampled text is among the `allowed` tokens.

        If no row `speaks`, no codes are sampled.
        """
        inputs = StepInputs.from_table(table, self.lm.config)
        depths = self.rows.select(torch.cat([state.speech_depths for state in self.states.of_batches]), rows)
        state = LMState(StackState(inputs.position, ()), depths)  # sampling needs no keys
        # Rows that do not sample get a token outside speech, for which no codes are sampled.
        force = torch.where(inputs.samples, UNFORCED, self.lm.prompt.special_ids.speech_end)
        hidden = self.rows.select(self.states.hidden, rows)
        patches, log_probs = self.lm.sample(hidden, state, inputs.sampling, force, allowed, speaks)
        sampled = SampledPatches(patches, float_bits(log_probs))
        return where_active(inputs.samples, sampled, SampledPatches(inputs.patches, inputs.log_probs))

    def _read_rows(self, table: Tensor, slots: slice, kv_length: int) -> None:
        """Read the patch of each row of `slots`, given or sampled."""
        inputs = StepInputs.from_table(table, self.lm.config)
        state, active = self.states.state(slots, inputs.position), inputs.prefills | inputs.samples
        after, _ = self.lm.prefill(inputs.patches, state, active.long(), kv_length)
        self.states.hidden[slots] = where_active(active, after, self.states.hidden[slots])

    def _draft_rows(self, table: Tensor, slots: slice, kv_length: int) -> Tensor:
        """Draft and read text; return each row's count of tokens, A tokens, and A log-probabilities, `[R, 1 + 2A]`."""
        inputs, hidden = StepInputs.from_table(table, self.lm.config), self.states.hidden[slots]
        verified = self.lm.draft_and_verify(
            hidden, self.states.state(slots, inputs.position), inputs.samples, kv_length
        )
        self.states.hidden[slots] = verified.last_hidden(hidden)
        return torch.cat([verified.counts[:, None], verified.patches.text, float_bits(verified.log_probs)], dim=1)
