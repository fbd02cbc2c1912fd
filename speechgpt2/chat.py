"""Codec and language model together: turns in, a reply out.

    model = SpeechGPT.from_pretrained("mini")
    reply = model.chat([Turn.user(speech=pcm)])            # reply.text, reply.pcm, reply.transcript
    for event in model.chat([Turn.user("Hello")], stream=True): ...

    conversation = model.conversation("s2s")               # keeps its state: only new turns are computed
    reply = conversation.ask(Turn.user(speech=pcm))
    reply = conversation.ask(Turn.user(speech=more))

    conversation = model.conversation("t2t", tools=[Tool("weather", "The weather in a city.", schema)])
    reply = conversation.ask(Turn.user("Is it sunny in Paris?"))   # reply.calls
    reply = conversation.ask(Turn("tool", (Text("sunny"),)))       # the tools' results, a text each

One conversation at a time, on the calling thread. `engine` serves many at once.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
import torch
from torch import Tensor

from speechgpt2 import long_form
from speechgpt2.chat_conversation import Conversation as Conversation
from speechgpt2.codec.model import Codec
from speechgpt2.conversation import (
    Fingerprints,
    check_same_codes,
    check_same_model,
    fingerprints,
    mode_of,
    speech_codes,
    text_of,
)
from speechgpt2.conversation import Reply as Reply
from speechgpt2.errors import SpeechWarning, UserError
from speechgpt2.lm.captured_steps import CAPACITY, CapturedSteps
from speechgpt2.lm.generation import Steps
from speechgpt2.lm.model import MAX_PATCHES, SpeechLM
from speechgpt2.lm.sampling import SamplingParams
from speechgpt2.lm.segments import AlignedSpeech
from speechgpt2.loading import CONTEXT, Sources, load
from speechgpt2.nn.linear import pack
from speechgpt2.nn.quantized import Kind, Quantization
from speechgpt2.saved_chat import ChatSettings
from speechgpt2.sessions.entries import SavedSession
from speechgpt2.sessions.session_file import read_session
from speechgpt2.style import NORMAL, Style
from speechgpt2.types import FRAME_SIZE, Event, Mode, Speech, TextDelta, Tool, Transcript, Turn


class SpeechGPT:
    """A codec and a language model of the same codes, on the same device.

    Raises:
        UserError: The two use different codes.
    """

    def __init__(self, codec: Codec, lm: SpeechLM):
        check_same_codes(codec, lm)
        self.codec, self.lm = codec, lm
        self._free_steps: list[CapturedSteps] = []

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = None,
        codec: str | Path | None = None,
        quantize: Kind | None = None,
        codec_config: str | Path | None = None,
        patch_heads: int | None = None,
        greetings: str | Path | None = None,
    ) -> SpeechGPT:
        """Load both models for inference (see `nn.linear.pack`).

        Args:
            name: A folder, built-in name or Hugging Face id.
            device: Device of the models.
            dtype: Precision of the language model; None means bfloat16 for the released layout, otherwise as stored.
            codec: The codec, if it is not in the model's folder, as with the released models.
            quantize: "int8" or "int4" for the matrices of the language model.
            codec_config: The YAML file of a released codec.
            patch_heads: See `SpeechLM.from_pretrained`.
            greetings: A file of greetings, in place of that in the model's folder.

        Raises:
            UserError: A model cannot be found or loaded, or does not fit.
        """
        quantization = None if quantize is None else Quantization(quantize)
        sources = Sources(name, codec, codec_config, dtype, quantization, patch_heads, greetings)
        return cls.load(sources, device)

    @classmethod
    def load(cls, sources: Sources, device: str | torch.device = "cpu") -> SpeechGPT:
        """Load what `sources` names, for inference. Raises `UserError` as `from_pretrained` does."""
        device = torch.device(device)
        codec, lm = load(sources, device, context=CAPACITY if device.type == "cuda" else CONTEXT)
        pack(lm)
        codec.optimize_for_inference()
        return cls(codec, lm)

    def steps(self, conversation: Conversation) -> Steps:
        """Return how the steps of a new conversation are computed: on CUDA by graphs, those of one that has gone."""
        if self.lm.device.type != "cuda":
            return Steps(self.lm)
        steps = self._free_steps.pop() if self._free_steps else CapturedSteps(self.lm)
        weakref.finalize(conversation, self._free_steps.append, steps)
        return steps

    @property
    def voices(self) -> tuple[str, ...]:
        """Names of the model's voices, each of which is a greeting; one without a name is known by its index."""
        return tuple(self.lm.prompt.greetings.speech)

    def conversation(
        self,
        mode: Mode,
        greeting: AlignedSpeech | Speech | None = None,
        sampling: SamplingParams | None = None,
        system: str | None = None,
        max_patches: int = MAX_PATCHES,
        tools: Sequence[Tool] = (),
        voice: str | None = None,
        style: Style = NORMAL,
        speed: float = 1.0,
    ) -> Conversation:
        """Begin a conversation.

        Args:
            mode: Modalities of the user and the model ("s2t": the user speaks, the model writes).
            greeting: Speech with which the model opens the conversation.
            sampling: Sampling parameters of the replies.
            system: Text that replaces the system line.
            max_patches: Limit of one reply.
            tools: Tools that the system prompt lists, if the model was trained to call tools.
            voice: One of `voices`, whose greeting opens the conversation; None means the model's default.
            style: How replies are spoken, until the user asks for another style (`style.parse_style`).
            speed: Factor on the style's speaking rate; 1.0 leaves it.

        Raises:
            UserError: There is no such voice.
        """
        if isinstance(greeting, Speech):
            greeting = self.lm.prompt.greeting(replace(greeting, codes=self.encode_speech(greeting).cpu().numpy()))
        greeting = greeting or self.lm.prompt.opening(voice, mode)
        system = self.lm.prompt.styled(system, mode, style)
        prompt = self.lm.prompt.system_prompt(mode, greeting, system, tools)
        return Conversation(self, prompt, sampling, max_patches, mode[2] == "s", tuple(tools), style, speed)

    def load_conversation(
        self, saved: str | Path | SavedSession, sampling: SamplingParams | None = None
    ) -> Conversation:
        """Resume a conversation that `Conversation.save` or `sg2 chat --sessions` wrote.

        Args:
            saved: Its file, or what the file says.
            sampling: Sampling parameters of the replies; None: as before.

        Raises:
            UserError: The file is damaged, or another model or program made it.
        """
        session = saved if isinstance(saved, SavedSession) else read_session(Path(saved))
        check_same_model(session.header, "chat", self.fingerprints)
        settings = ChatSettings.from_saved(session)
        sampling = sampling or settings.sampling(self.lm.device)
        nothing = self.lm.prompt.text_patches([])
        style_and_speed = settings.style, settings.speed
        limits = settings.max_patches, settings.speak
        conversation = Conversation(self, nothing, sampling, *limits, settings.tools, *style_and_speed)
        conversation.restore(session)
        return conversation

    @cached_property
    def fingerprints(self) -> Fingerprints:
        """What identifies the models in saved conversations."""
        return fingerprints(self.codec, self.lm)

    @overload
    def chat(
        self, turns: Sequence[Turn], mode: Mode | None = ..., *, stream: Literal[True], **options: Any
    ) -> Iterator[Event]: ...
    @overload
    def chat(
        self, turns: Sequence[Turn], mode: Mode | None = ..., *, stream: Literal[False] = ..., **options: Any
    ) -> Reply: ...

    def chat(self, turns: Sequence[Turn], mode: Mode | None = None, *, stream: bool = False, **options: Any) -> Any:
        """Answer the last turn.

        Args:
            turns: The conversation so far. A first turn of role "system" replaces the system line.
            mode: Modalities of the user and the model; None: speech if the last turn is speech, otherwise text.
            stream: Whether to return events as they happen.
            options: Those of `conversation`.

        Raises:
            UserError: The last turn is not the user's or a tool's, or a turn is invalid.
        """
        turns = list(turns)
        if turns and turns[0].role == "system":
            options["system"] = text_of(turns.pop(0))
        if not turns or turns[-1].role not in ("user", "tool"):
            raise UserError("there is nothing to answer: the last turn must be the user's")
        conversation = self.conversation(mode or mode_of(turns[-1]), **options)
        for turn in turns[:-1]:
            conversation.add(turn)
        return conversation.ask(turns[-1], stream=stream)

    def say(
        self,
        text: str,
        sampling: SamplingParams | None = None,
        max_patches: int = MAX_PATCHES,
        voice: str | None = None,
        style: Style = NORMAL,
        speed: float = 1.0,
    ) -> Reply:
        """Read a `text` of any length aloud. `reason` is "length" if the speech of a sentence was cut off.

        A `SpeechWarning` names a sentence whose speech is too short or too long for it.

        Raises:
            UserError: The text holds no letters or digits, the model was not trained to read aloud, or there is no such
                voice.
        """
        replies = list(self.read_aloud(text, sampling, max_patches, voice, style, speed))
        pcm, codes = np.concatenate([r.pcm for r in replies]), np.concatenate([r.codes for r in replies])
        cut = any(reply.reason == "length" for reply in replies)
        for reply in replies:
            if fault := long_form.speech_fault(reply.text, len(reply.codes) * FRAME_SIZE):
                warnings.warn(f"{fault}: {reply.text}", SpeechWarning, stacklevel=2)
        return Reply(text, pcm, codes, None, "length" if cut else "stop")

    def read_aloud(
        self,
        text: str,
        sampling: SamplingParams | None = None,
        max_patches: int = MAX_PATCHES,
        voice: str | None = None,
        style: Style = NORMAL,
        speed: float = 1.0,
    ) -> Iterator[Reply]:
        """Read `text` aloud, one reply for each of its sentences. Arguments and errors are those of `say`.

        Nothing is checked: `long_form.speech_fault` tells from a reply whether its speech fits its text.
        """
        parts = long_form.sentences(text)
        if not parts:
            raise UserError("nothing to say: the text holds no letters or digits")
        greeting = self.lm.prompt.opening(voice, "t2s")
        for part in parts:
            prompt = self.lm.prompt.tts_prompt(long_form.with_final_mark(part), greeting)
            conversation = Conversation(self, prompt, sampling, max_patches, True, (), style, speed)
            yield replace(conversation.collect(conversation.reply(user_spoke=False)), text=part)

    def transcribe(self, pcm: np.ndarray, max_patches: int = MAX_PATCHES) -> str:
        """Transcribe `pcm [N]` of any length, float32 at 24 kHz.

        Raises:
            UserError: The model was not trained to transcribe.
        """
        return long_form.join(segment.text for segment in self.transcribe_segments([pcm], max_patches))

    def transcribe_segments(
        self, blocks: Iterable[np.ndarray], max_patches: int = MAX_PATCHES, aligner: long_form.Aligner | None = None
    ) -> Iterator[long_form.TranscriptSegment]:
        """Transcribe a recording window by window (see `long_form.speech_windows`).

        Args:
            blocks: The recording, blocks `[N]` of any size, float32 at 24 kHz.
            max_patches: Limit of one window's transcript.
            aligner: Finds the words of a segment in its audio (`word_times.with_word_times`).

        Raises:
            UserError: The model was not trained to transcribe.
        """
        greedy, system = SamplingParams.greedy(device=self.lm.device), self.lm.prompt.transcription_system
        for start, end, pcm in long_form.speech_windows(blocks):
            conversation = self.conversation("s2t", None, greedy, system, max_patches)
            events = conversation.ask(Turn.user(speech=pcm), stream=True)
            if system is None:  # the answer, which would follow the transcript, is not generated
                text = next((event.text for event in events if isinstance(event, Transcript)), "")
            else:
                text = "".join(event.text for event in events if isinstance(event, TextDelta))
            segment = long_form.TranscriptSegment(start, end, text.strip())
            yield aligner(segment, pcm) if aligner else segment

    def encode_speech(self, speech: Speech) -> Tensor:
        """Return the codes `[T, K]` (int64) of a speech segment, encoded if it has none.

        Raises:
            UserError: It has neither codes of this codec nor samples.
        """
        return speech_codes(speech, self.codec, self.lm.device)
