"""An engine by a language model of this project, in its own voice or in that of a clip.

The name of the voice is a model: "mini" or a folder. `accent` is the path of a clip whose voice is copied, with its
text in a file beside it (voice_prompts.py); the clip becomes the greeting. `seed` seeds the sampling. The engine
returns no times.
"""

from __future__ import annotations

import zlib
from functools import cache
from typing import TYPE_CHECKING

from speechgpt2.tts import voice_prompts
from speechgpt2.tts.utterance import Rendering, Voice
from speechgpt2.types import SAMPLE_RATE

if TYPE_CHECKING:
    from speechgpt2.chat import Reply, SpeechGPT

MAX_PATCHES = 250  # of an utterance: 30 seconds


def render(text: str, voice: Voice) -> Rendering:
    """Speak the text.

    Raises:
        ValueError: the model did not end the utterance within `MAX_PATCHES` patches.
        UserError: there is no such model.
    """
    reply = read_aloud(_model(voice.name), text, voice)
    if reply.reason != "stop" or not len(reply.pcm):
        raise ValueError(f"{voice.speaker} did not end {text!r} within {MAX_PATCHES} patches")
    return Rendering(reply.pcm, SAMPLE_RATE)


def read_aloud(model: SpeechGPT, text: str, voice: Voice) -> Reply:
    """Read a text aloud like `SpeechGPT.say`, with a seed, and with a greeting in the voice to copy."""
    from speechgpt2.chat import Conversation
    from speechgpt2.lm.sampling import SamplingParams
    from speechgpt2.lm.segments import concat
    from speechgpt2.types import Speech

    prompt = model.lm.prompt
    greeting = prompt.opening(None, "t2s")  # the model's own voice
    prompt.require_chain_of_modality("read a given text aloud")
    if voice.accent:
        clip = voice_prompts.read_voice_prompt(voice.accent)
        greeting = prompt.align_speech(model.encode_speech(Speech(pcm=clip.pcm, text=clip.text)), text=clip.text)
    seed = zlib.crc32(f"{voice.seed} {text}".encode())
    sampling = SamplingParams.from_config(model.lm.config.sampling, seed, model.lm.device)
    start = concat(prompt.system_prompt("t2s", greeting), prompt.reply_start(), prompt.tts_prefix(text))
    talk = Conversation(model, start, sampling, MAX_PATCHES, speak=True)
    return talk.collect(talk.reply(user_spoke=False))


@cache
def _model(name: str) -> SpeechGPT:
    from speechgpt2.chat import SpeechGPT

    return SpeechGPT.from_pretrained(name)
