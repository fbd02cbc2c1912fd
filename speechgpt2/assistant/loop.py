"""The tool loop: ask, run the tool calls of the reply, add their results, ask again, until a reply calls no tools.

toolbox = Toolbox([weather])
conversation = model.conversation("s2s", tools=toolbox.tools)
answer = run(conversation, Turn.user(speech=pcm), toolbox)     # answer.reply, answer.results
for event in stream(conversation, Turn.user("Is it sunny?"), toolbox): ...
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from speechgpt2.assistant.toolbox import Toolbox, ToolResult, tool_turn
from speechgpt2.errors import UserError
from speechgpt2.types import Event, ReplyDone, ToolCall, Turn

if TYPE_CHECKING:  # a conversation is passed in: what runs tools should not wait for torch
    from collections.abc import Generator

    from speechgpt2.chat import Conversation, Reply

MAX_ROUNDS = 4
NO_MORE = "No more tool calls are allowed in this turn. Answer with what you know."


@dataclass(frozen=True)
class AssistantAnswer:
    """The outcome of a turn.

    Attributes:
        reply: The last reply. It has no calls, unless a limit or an interruption ended the loop.
        results: The results of all calls, in order.
        rounds: How many times results were added to the conversation.
    """

    reply: Reply
    results: tuple[ToolResult, ...]
    rounds: int


def run(conversation: Conversation, turn: Turn, toolbox: Toolbox, max_rounds: int = MAX_ROUNDS) -> AssistantAnswer:
    """Answer a turn with the help of tools.

    Args:
        conversation: One that was begun with `toolbox.tools`.
        turn: The user's turn.
        toolbox: The functions.
        max_rounds: Most replies whose calls are run. Calls of another reply are refused, and the model is asked for an
            answer once more.

    Raises:
        UserError: The conversation was begun without tools, or the turn is invalid.
    """
    events: list[Event] = []
    results: list[ToolResult] = []
    rounds, finished = 0, False
    for event in stream(conversation, turn, toolbox, max_rounds):
        if isinstance(event, ToolResult):
            results.append(event)
            finished = True
            continue
        if finished:  # the next reply begins
            events, rounds, finished = [], rounds + 1, False
        events.append(event)
    return AssistantAnswer(conversation.collect(events), tuple(results), rounds)


def stream(
    conversation: Conversation, turn: Turn, toolbox: Toolbox, max_rounds: int = MAX_ROUNDS
) -> Iterator[Event | ToolResult]:
    """Answer a turn and return events as they happen: those of each reply, then the results of its calls.

    A consumer that stops early interrupts the reply. The calls of such a reply are not run, nor are those of a reply
    that was cut at its maximal length.

    Args:
        conversation: One that was begun with `toolbox.tools`.
        turn: The user's turn.
        toolbox: The functions.
        max_rounds: See `run`.

    Raises:
        UserError: The conversation was begun without tools, or the turn is invalid.
    """
    if toolbox.tools and not conversation.tools:
        raise UserError("the conversation was begun without tools: pass tools=toolbox.tools to conversation()")
    return _stream(conversation, turn, toolbox, max_rounds)


def _stream(conversation: Conversation, turn: Turn, toolbox: Toolbox, max_rounds: int) -> Iterator[Event | ToolResult]:
    for rounds in range(max_rounds + 2):
        calls: list[ToolCall] = []
        complete = False
        # closing(): a consumer that stops early ends the reply at once, not when the garbage collector finds it
        with closing(cast("Generator[Event]", conversation.ask(turn, stream=True))) as events:
            for event in events:
                if isinstance(event, ToolCall):
                    calls.append(event)
                complete = complete or event == ReplyDone("stop")
                yield event
        if not calls or not complete or rounds > max_rounds:
            return
        if rounds < max_rounds:
            results = toolbox.run(calls)
        else:
            results = [ToolResult(call, NO_MORE, False, 0.0) for call in calls]
        yield from results
        turn = tool_turn(results)
