"""The tool loop: ask, run the tool calls of the reply, add their results, ask again, until a reply calls no tools.

toolbox = Toolbox([weather])
conversation = model.conversation("s2s", tools=toolbox.tools)
answer = run(conversation, Turn.user(speech=pcm), toolbox)     # answer.reply, answer.results
for event in stream(conversation, Turn.user("Is it sunny?"), toolbox): ...
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from speechgpt2.assistant.toolbox import Toolbox, ToolResult, tool_turn
from speechgpt2.errors import UserError
from speechgpt2.types import Event, ReplyDone, ToolCall, Turn

if TYPE_CHECKING:  # a conversation is passed in: what runs tools should not wait for torch
    from collections.abc import Generator

    from speechgpt2.chat import Conversation, Reply

MAX_ROUNDS = 4  # how often the calls of one user turn are run
MAX_INVALID = 2  # rounds with an invalid call: the first may be repaired, the second ends the calls
NO_MORE = "No more tool calls are allowed in this turn. Answer with what you know."


class CallLimit:
    """How long a model may go on calling tools in one turn of the user's.

    Args:
        max_rounds: How often its calls are run.

    Attributes:
        given_up: Whether no more calls are made.
    """

    def __init__(self, max_rounds: int = MAX_ROUNDS) -> None:
        self.max_rounds, self.rounds, self.invalid = max_rounds, 0, 0
        self.given_up = False

    @property
    def reached(self) -> bool:
        """Whether further calls are refused."""
        return self.rounds >= self.max_rounds or self.invalid >= MAX_INVALID

    def count(self, results: Iterable[ToolResult]) -> None:
        """Count a round of calls."""
        self.rounds += 1
        self.invalid += any(result.invalid for result in results)


def refused(calls: Sequence[ToolCall]) -> list[ToolResult]:
    """Return the results of calls beyond the limit."""
    return [ToolResult(call, NO_MORE, False, 0.0) for call in calls]


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
        max_rounds: Most replies whose calls are run. Calls of another reply are refused, and so are those after two
            replies with invalid calls. Then the model is asked for an answer once more.

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
    limit = CallLimit(max_rounds)
    while True:
        calls: list[ToolCall] = []
        complete = False
        # closing(): a consumer that stops early ends the reply at once, not when the garbage collector finds it
        with closing(cast("Generator[Event]", conversation.ask(turn, stream=True))) as events:
            for event in events:
                if isinstance(event, ToolCall):
                    calls.append(event)
                complete = complete or event == ReplyDone("stop")
                yield event
        if not calls or not complete or limit.given_up:
            return
        limit.given_up = limit.reached
        results = refused(calls) if limit.given_up else toolbox.run(calls)
        limit.count(results)
        yield from results
        turn = tool_turn(results)
