"""Fixed sentences of the assistant in a session: while the user waits for a tool, and when the tools are given up."""

from __future__ import annotations

from collections.abc import Iterable

from speechgpt2.assistant.loop import asked_to_say
from speechgpt2.duplex.protocol import Dialogue, ReplyOptions, Session
from speechgpt2.fixed_words import FAILED, WAIT, in_language_of
from speechgpt2.server.items import ConversationItem

INSTRUCTIONS = "The user waits for a tool. In one short sentence, in the language of the user, say that it takes time."
MAX_PATCHES = 40  # of a sentence that the model words itself


def last_words(items: Iterable[ConversationItem]) -> str:
    """Return what the user said last, as far as it is known."""
    texts = [item.text for item in items if item.type == "message" and item.role == "user" and item.text]
    return texts[-1] if texts else ""


def options(said: str, reads_aloud: bool) -> ReplyOptions:
    """Return the options of a filler: fixed words where the model can read them aloud, otherwise instructions."""
    if reads_aloud:
        return ReplyOptions(text=in_language_of(said, WAIT))
    return ReplyOptions(INSTRUCTIONS, max_patches=MAX_PATCHES, tools=())


def say_that_it_failed(session: Session | Dialogue, said: str, speak: bool, reads_aloud: bool) -> int:
    """Have the assistant say that it gives up.

    Args:
        session: The session.
        said: What the user said last.
        speak: Whether it is spoken; otherwise it is written.
        reads_aloud: Whether the model can read a given text aloud. Otherwise it is asked to say it.

    Returns:
        The number of the reply.

    Raises:
        UserError: The user has just begun to speak.
    """
    sentence = in_language_of(said, FAILED)
    if speak and not reads_aloud:
        session.add_turn(asked_to_say(sentence))
        return session.respond(ReplyOptions(max_patches=MAX_PATCHES, require_tool=False))
    return session.respond(ReplyOptions(text=sentence, speak=speak))
