"""Truncation of an interrupted spoken reply: the model remembers what was played, and no word more.

A model with chain of modality writes its whole answer before it speaks, and every model writes a word one patch before
its audio. So cutting the speech alone would leave words in memory that were never played. Therefore the reply is laid
out again, as if it had ended where it was cut.
"""

from __future__ import annotations

from speechgpt2.lm.prompt import Prompt
from speechgpt2.lm.reply import parse_reply
from speechgpt2.lm.segments import AlignedSpeech
from speechgpt2.types import Patches


def truncated_reply(prompt: Prompt, reply: Patches, user_spoke: bool, played_patches: int) -> Patches | None:
    """Cut a reply after the patches of speech that were played.

    Args:
        prompt: The model's prompt layout.
        reply: The reply as generated so far, `[1, P]`.
        user_spoke: Whether the reply begins with a transcript of the user's speech, which is kept.
        played_patches: Patches of speech that were played. A word counts as played if its first patch was.

    Returns:
        The shorter reply with its end; None if nothing of it was played.
    """
    ids = prompt.special_ids
    speaking = reply.codes[0, :, 0, 0] != prompt.config.no_speech
    codes = reply.codes[0][speaking][:played_patches]
    if not len(codes):
        return None
    # The text stream is one patch ahead of the audio: the last token belongs to audio that was not played.
    tokens = reply.text[0][speaking][: len(codes) - 1].tolist()
    words = [token for token in tokens if token not in (ids.filler, ids.last_filler)]
    speech = AlignedSpeech(codes.flatten(0, 1), [*tokens, ids.last_filler if words else ids.filler])
    text = prompt.tokenizer.decode(words).strip()
    return prompt.reply(text, speech, parse_reply(prompt, reply, user_spoke).transcript)


def speech_patches(prompt: Prompt, reply: Patches) -> int:
    """Count the patches of `reply [1, P]` that hold speech."""
    return int((reply.codes[0, :, 0, 0] != prompt.config.no_speech).sum())
