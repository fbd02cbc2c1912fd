"""Checks and encodes what clients send, on the calling thread, before it becomes a command."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from speechgpt2.audio import check_audio
from speechgpt2.codec.model import Codec
from speechgpt2.conversation import HistoryTurn, history_turn, speech_codes
from speechgpt2.duplex.protocol import SessionSettings
from speechgpt2.errors import UserError
from speechgpt2.lm.prompt import Prompt
from speechgpt2.style import delivered
from speechgpt2.types import Speech, Turn


class InputEncoder:
    """Prepares settings and turns for the engine's thread. Calls may come from any thread.

    Args:
        codec: The codec, on `device`.
        prompt: The model's prompt layout, with its greetings.
        device: Where the codec computes.
    """

    def __init__(self, codec: Codec, prompt: Prompt, device: torch.device):
        self._codec, self._prompt, self._device = codec, prompt, device

    def encode(self, pcm: np.ndarray) -> torch.Tensor:
        """Encode `pcm [N]` at 24 kHz.

        Returns:
            Codes `[T, K]`.

        Raises:
            UserError: There are no samples, or they are not valid audio.
        """
        pcm = check_audio(pcm)
        if not len(pcm):
            raise UserError("audio must hold at least one sample")
        return self._codec.encode(torch.from_numpy(pcm)[None].to(self._device))[0].cpu()

    def encode_speech(self, speech: Speech) -> torch.Tensor:
        """Return the codes `[T, K]` of a speech segment, encoded if it has none.

        Raises:
            UserError: It has neither codes of this codec nor samples.
        """
        return speech_codes(speech, self._codec, self._device).cpu()

    def prepare_settings(self, settings: SessionSettings) -> SessionSettings:
        """Check voice and speed, compile grammars, and return the settings with an encoded greeting.

        Raises:
            UserError: Voice or speed is not possible, the greeting cannot be encoded, or the schema cannot be followed.
        """
        self._prompt.greetings.resolve(settings.voice)
        delivered(settings.style, settings.speed, self._prompt.template.follows_instructions)
        tools = settings.tools if self._prompt.template.tools else ()
        self._prompt.grammars.constraint(tools, settings.require_tool if tools else False, settings.response_schema)
        if settings.greeting is None:
            return settings
        codes = self.encode_speech(settings.greeting)
        if settings.greeting.pcm is None:
            return settings
        return replace(settings, greeting=replace(settings.greeting, pcm=None, codes=codes.numpy()))

    def history_turn(self, turn: Turn) -> HistoryTurn:
        """Return a turn with its speech encoded.

        Raises:
            UserError: The turn cannot be part of the history.
        """
        return history_turn(turn, self)
