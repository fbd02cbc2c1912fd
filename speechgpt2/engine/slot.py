"""A session inside the engine, on the engine's thread.

A slot executes its session's commands in order, tells the scheduler what it needs next (`status`), and receives the
results of the batched work: `audio_encoded`, `patches_generated`, `audio_decoded`. It owns the session's history, the
styles of its replies, its recorder, the user's audio that waits for the codec, and the generation in progress. Nothing
here uses the device.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np
import torch

from speechgpt2.dsp.delivery import source_samples
from speechgpt2.duplex.protocol import ReplyOptions, SessionSettings
from speechgpt2.engine.codec_worker import AudioChunk
from speechgpt2.engine.commands import (
    AddTurn,
    AppendAudio,
    Command,
    Configure,
    DeleteTurn,
    DiscardTurn,
    EndTurn,
    Respond,
    Rollback,
    StartTurn,
    Truncate,
    created_number,
    finalizes_history,
    must_wait,
)
from speechgpt2.engine.config import EngineConfig
from speechgpt2.engine.event_queue import SessionEventQueue
from speechgpt2.engine.generation import Generation, start_generation
from speechgpt2.engine.history import History
from speechgpt2.engine.input_audio import InputAudioBuffer
from speechgpt2.engine.model_runner import GeneratedPatch
from speechgpt2.engine.recording import SessionRecorder, restore_session
from speechgpt2.engine.reply_styles import ReplyStyles
from speechgpt2.engine.scheduler import SlotStatus
from speechgpt2.engine.step_inputs import SampleParams
from speechgpt2.lm.prompt import Prompt
from speechgpt2.sessions.entries import EntryWriter, SavedSession
from speechgpt2.types import SAMPLE_RATE


class Slot:
    """One session's side of the engine.

    Args:
        slot_number: The slot's number, which is its row in the batch.
        prompt: The model's prompt layout.
        config: The engine's configuration.
        settings: The session's settings.
        codec_delay: Samples by which decoded audio is later than its codes.
        event_queue: The session's event queue.
        saved: The saved session that is resumed here.
        writer: Where the session is saved.
    """

    def __init__(
        self,
        slot_number: int,
        prompt: Prompt,
        config: EngineConfig,
        settings: SessionSettings,
        codec_delay: int,
        event_queue: SessionEventQueue,
        saved: SavedSession | None = None,
        writer: EntryWriter | None = None,
    ):
        self.slot_number, self.prompt, self.config, self.settings = slot_number, prompt, config, settings
        self.codec_delay, self.event_queue, self.styles = codec_delay, event_queue, ReplyStyles()
        assert config.prefill_chunk_size is not None  # EngineConfig.for_device
        self.history = History(prompt, config.context, config.prefill_chunk_size, settings)
        if saved is not None:
            restore_session(saved, settings, self.history, self.styles)
        self.recorder = SessionRecorder(self.history, self.styles, writer, saved)
        self.input: InputAudioBuffer | None = None
        self.generation: Generation | None = None
        self._waiting_commands: deque[Command] = deque()

    # commands

    def handle(self, command: Command) -> None:
        """Execute a command, after those that still wait; `Truncate` overtakes them. `commands` describes each."""
        match command:
            case Truncate(reply, played):
                self._cancel_waiting(reply)
                self._truncate(reply, played)
                return
            case Rollback(reply):
                self._cancel_waiting(reply)
        self._waiting_commands.append(command)
        self._run_waiting()

    def _run_waiting(self) -> None:
        while self._waiting_commands:
            encoding_end = self.input is not None and self.input.encoding_end
            if must_wait(self._waiting_commands[0], encoding_end, replying=self.generation is not None):
                break
            self._execute(self._waiting_commands.popleft())

    def _cancel_waiting(self, number: int | None) -> None:
        """Drop the waiting command that would create the turn or reply `number`."""
        if number is not None:
            kept = (command for command in self._waiting_commands if created_number(command) != number)
            self._waiting_commands = deque(kept)

    def _execute(self, command: Command) -> None:
        if finalizes_history(command, self.history.ends_with_reply):
            self.recorder.save(self.settings, self._unfinished)
        match command:
            case StartTurn(turn):
                self.history.start_user_speech(turn)
                self.input = InputAudioBuffer(self.prompt.config.patch_samples)
                self.history.update_system_prompt(self.settings)
            case AppendAudio(pcm, time):
                self._open_input.append(pcm, time)
            case EndTurn():
                self._open_input.ended = True
            case Rollback(reply):
                self._rollback(reply)
            case DiscardTurn():
                self.input = None
                self.history.delete_last()
            case AddTurn(turn, content):
                self.input = None
                request = self.history.request
                self.history.add_turn(turn, content, self.settings)
                if content.role == "assistant" and request is not None:  # history that the client brings along
                    self.styles.follow(request, turn, self.settings, ReplyOptions())
            case Respond(reply, options):
                before = self.styles.state(self.settings)
                self.generation = start_generation(
                    reply, options, self.settings, self.history, self.event_queue, self.styles
                )
                self.recorder.reply_started(reply, options, self.settings, before)
                self._finish_if_done()
            case DeleteTurn(turn):
                self._delete(turn)
            case Configure(settings):
                if settings.style != self.settings.style:
                    self.styles.clear()
                self.settings = settings
                self.history.update_system_prompt(settings)

    @property
    def _unfinished(self) -> int | None:
        """The number of the reply or turn in progress."""
        if self.generation is not None:
            return self.generation.number
        speaking = self.input is not None and not self.input.encoded
        return self.history.last.number if speaking and self.history.last is not None else None

    @property
    def _open_input(self) -> InputAudioBuffer:
        if self.input is None:
            raise RuntimeError("no user turn is in progress")  # `Session` checks this before it sends a command
        return self.input

    def _rollback(self, reply: int | None) -> None:
        """Reopen the user's turn, and remove the speculative `reply` to it."""
        buffer = self._open_input
        self.generation = None
        self.recorder.record_rollback()
        if reply is not None:
            self.history.delete(reply)
        self.styles.roll_back(reply)
        self.history.reopen_user_speech(buffer.tail)
        buffer.reopen()

    def _delete(self, turn: int) -> None:
        """Remove a turn, unless it is in progress."""
        if self.generation is not None and self.generation.number == turn:
            return
        if self.input is not None and (last := self.history.last) is not None and last.number == turn:
            if not self.input.ended:
                return
            self.input = None
        self.history.delete(turn)
        self.recorder.record_deletion(turn)

    def _truncate(self, reply: int, played: int) -> None:
        """Interrupt the reply in progress, or shorten a complete one: barge-in cuts memory here."""
        span = self.history.context.find(reply)
        if span is None or span.role != "assistant":
            return
        source_played = source_samples(played, span.rate)
        patches = max(0, source_played - self.codec_delay) // self.prompt.config.patch_samples
        in_progress = self.generation is not None and self.generation.number == reply
        if not in_progress and patches >= self.history.speech_length(span):
            return
        self.recorder.reply_cut(span)
        if self.generation is not None and in_progress:
            self.generation.truncate(patches)
            self.generation = None
            self._run_waiting()
        else:
            self.history.truncate_reply(span, patches)

    # work for the next step

    @property
    def input_backlog(self) -> int:
        """Samples of the user's audio that wait to be encoded."""
        buffer = self.input  # read once, because other threads use this property
        return 0 if buffer is None else len(buffer.patches) * self.prompt.config.patch_samples

    def status(self, now: float) -> SlotStatus:
        """Return what the scheduler needs to know."""
        buffer, generation = self.input, self.generation
        return SlotStatus(
            self.slot_number,
            audio_ready=buffer is not None and buffer.ready,
            audio_waited=0.0 if buffer is None else buffer.waited(now),
            pending_patches=self.history.context.pending_patches,
            generating=generation is not None and generation.stop.reason is None,
            buffered_seconds=self._buffered(now) + (generation.decoding_seconds if generation else 0.0),
            writing=generation is not None and generation.writing,
            latency_critical=self._latency_critical,
        )

    @property
    def _latency_critical(self) -> bool:
        """Whether the codec works on the end of the user's turn or on a reply's first audio."""
        if self.input is not None and self.input.final_in_flight:
            return True
        return self.generation is not None and self.generation.decoding > 0 and not self.generation.audio_started

    def _buffered(self, now: float) -> float:
        """Seconds of audio that the client has not played yet."""
        unread = self.event_queue.unread_samples / SAMPLE_RATE
        if self.generation is None or not self.settings.paced:
            return unread
        return max(unread, self.generation.playback_left(now))

    def next_audio_chunk(self) -> AudioChunk | None:
        """Return the user's audio to encode now; None if the turn ended with nothing left to encode."""
        chunk = self._open_input.next_chunk()
        if len(chunk.pcm):
            return chunk
        self.audio_encoded(np.zeros((0, self.prompt.config.codebooks), np.int64), chunk)
        return None

    def sample_params(self) -> SampleParams | None:
        """Return how to sample the reply's next patch; None unless all patches before it are prefilled."""
        generation, context = self.generation, self.history.context
        if generation is None or generation.stop.reason or context.pending_patches:
            return None
        default, first, writing = self.prompt.config.sampling, generation.stop.patches == 0, not context.speech_depth
        return SampleParams.from_settings(self.settings, default, first, writing, generation.allowed())

    # results

    def audio_encoded(self, codes: np.ndarray, chunk: AudioChunk) -> None:
        """Add the codes `[T, K]` of a chunk, unless the turn was rolled back or discarded meanwhile."""
        buffer = self.input
        if buffer is None or buffer.in_flight is not chunk:
            return
        buffer.in_flight = None
        added = self.history.extend_user_speech(torch.from_numpy(codes), chunk.final)
        if chunk.final:
            buffer.tail = added
            self._run_waiting()

    def patches_generated(self, patches: Sequence[GeneratedPatch]) -> None:
        """Add patches that the model has generated and read.

        Patches after the end of the reply are ignored. If the reply's constraint refuses a patch, so are that patch and
        all after it, and the row rewinds.
        """
        generation = self.generation
        assert generation is not None
        for patch in patches:
            if generation.stop.reason is None and not generation.accept(patch):
                self.history.context.reread_last()
                break
        self._finish_if_done()

    def audio_decoded(self, reply: int, pcm: np.ndarray, now: float) -> None:
        """Send the audio `pcm [N]` of a patch of speech, unless its reply was interrupted meanwhile."""
        generation = self.generation
        if generation is not None and generation.number == reply:
            generation.audio_decoded(pcm, self._buffered(now), now)
            self._finish_if_done()

    def _finish_if_done(self) -> None:
        """Run waiting commands once the reply is complete."""
        if self.generation is not None and self.generation.done:
            self.recorder.reply_ended(self.generation.number, self.generation.stop.reason or "stop")
            self.generation = None
            self._run_waiting()
            self.history.context.drop_old_turns()
