"""What stays in a model's memory of a spoken reply that was cut short: what its listener heard, and not a word more.

A model that drafts has written its whole answer before it speaks, and every model names a word one patch before it
sounds. So cutting the speech alone would leave words in memory that nobody heard. Here the reply is written anew, as
if it had been meant to end there.
"""

from __future__ import annotations

from speechgpt2.lm.prompt import AlignedSpeech, Prompt
from speechgpt2.lm.reply import parse_reply
from speechgpt2.types import Patches


def as_heard(prompt: Prompt, reply: Patches, transcribed: bool, heard: int) -> Patches | None:
    """The `reply [1, P]` of which only the first `heard` patches of speech were heard, properly closed.

    None: nothing of it was. `transcribed`: it begins with a transcript of the user's speech, which is kept. Words
    count as heard from the patch on in which they begin to sound.
    """
    ids = prompt.special_ids
    speaking = reply.codes[0, :, 0, 0] != prompt.config.no_speech
    codes = reply.codes[0][speaking][:heard]
    if not len(codes):
        return None
    named = reply.text[0][speaking][: len(codes) - 1].tolist()  # the last patch names what would have come next
    words = [token for token in named if token not in (ids.filler, ids.last_filler)]
    spoken = AlignedSpeech(codes.flatten(0, 1), [*named, ids.last_filler if words else ids.filler])
    text = prompt.tokenizer.decode(words).strip()
    return prompt.reply(text, spoken, parse_reply(prompt, reply, transcribed).transcript)


def speech_patches(prompt: Prompt, reply: Patches) -> int:
    """How many patches of the `reply [1, P]` are speech."""
    return int((reply.codes[0, :, 0, 0] != prompt.config.no_speech).sum())
