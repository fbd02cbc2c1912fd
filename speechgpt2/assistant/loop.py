"""The tool loop: ask, run the tool calls of the reply, add their results, ask again, until a reply calls no tools.

If a turn of the user's would end without an answer because of its tools, the assistant says a fixed sentence
(`fixed_words.FAILED`). `CallLimit` decides that, here and in the server.

toolbox = Toolbox([weather])
conversation = model.conversation("s2s", tools=toolbox.tools)
answer = run(conversation, Turn.user(speech=pcm), toolbox)     # answer.reply, answer.results
for event in stream(conversation, Turn.user("Is it sunny?"), toolbox): ...
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, cast

from speechgpt2.assistant.toolbox import Toolbox, ToolResult, tool_turn
from speechgpt2.errors import UserError
from speechgpt2.fixed_words import FAILED, in_language_of
from speechgpt2.types import Event, ReplyDone, Speech, Text, TextDelta, ToolCall, Transcript, Turn

if TYPE_CHECKING:  # a conversation is passed in: what runs tools should not wait for torch
    from collections.abc import Generator

    from speechgpt2.chat import Conversation, Reply

MAX_ROUNDS = 4  # how often the calls of one user turn are run
MAX_INVALID = 2  # rounds with an invalid call: the first may be repaired, the second ends the calls
NO_MORE = "No more tool calls are allowed in this turn. Answer with what you know."
Step = Literal["run the calls", "refuse the calls", "say that it failed", "write that it failed", "end"]


class CallLimit:
    """What follows each reply to one turn of the user's: how long the model may go on calling tools.

    Args:
        max_rounds: How often its calls are run.
    """

    def __init__(self, max_rounds: int = MAX_ROUNDS) -> None:
        self.max_rounds, self.rounds, self.invalid = max_rounds, 0, 0
        self._steps: list[Step] = []  # taken after the limit

    @property
    def refused(self) -> bool:
        """Whether calls were refused: the model has to answer."""
        return bool(self._steps)

    def count(self, results: Iterable[ToolResult]) -> None:
        """Count a round of calls."""
        self.rounds += 1
        self.invalid += any(result.invalid for result in results)

    def after_reply(self, calls: bool, words: bool, reason: str) -> Step:
        """Return what follows a reply.

        Calls beyond the limit are refused once, and the model is asked for an answer. If that calls tools again, or has
        no words, or if a reply to results has none, a sentence says that it failed.

        Args:
            calls: Whether it calls tools that this side runs.
            words: Whether it says anything.
            reason: Why it ended (`ReplyDone`). The calls of a reply that was cut at its maximal length are not run.
        """
        if reason == "interrupted":
            return "end"
        if calls and reason == "stop" and not self._steps:
            if self.rounds < self.max_rounds and self.invalid < MAX_INVALID:
                return "run the calls"
            return self._take("refuse the calls")
        unanswered = calls or (self.rounds > 0 and not words)
        if not unanswered:
            return "end"
        if "say that it failed" not in self._steps:
            return self._take("say that it failed")
        return "end" if "write that it failed" in self._steps else self._take("write that it failed")

    def _take(self, step: Step) -> Step:
        self._steps.append(step)
        return step


def refused(calls: Sequence[ToolCall]) -> list[ToolResult]:
    """Return the results of calls beyond the limit."""
    return [ToolResult(call, NO_MORE, False, 0.0) for call in calls]


@dataclass(frozen=True)
class AssistantAnswer:
    """The outcome of a turn.

    Attributes:
        reply: The last reply. It has no calls, unless an interruption ended the loop.
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
            replies with invalid calls. Then the model is asked for an answer once more. Without one, the reply is a
            fixed sentence.

    Raises:
        UserError: The conversation was begun without tools, or the turn is invalid.
    """
    events: list[Event] = []
    results: list[ToolResult] = []
    rounds, answered = 0, True
    for event in stream(conversation, turn, toolbox, max_rounds):
        if isinstance(event, ToolResult):
            rounds += answered
            answered = False
            results.append(event)
            continue
        if events and isinstance(events[-1], ReplyDone):  # the next reply begins
            events, answered = [], True
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
    limit, said = CallLimit(max_rounds), words_of(turn)
    replies = conversation.ask(turn, stream=True)
    while True:
        calls: list[ToolCall] = []
        words, reason = "", "interrupted"
        # closing(): a consumer that stops early ends the reply at once, not when the garbage collector finds it
        with closing(cast("Generator[Event]", replies)) as events:
            for event in events:
                match event:
                    case ToolCall():
                        calls.append(event)
                    case TextDelta():
                        words += event.text
                    case Transcript():
                        said = event.text
                    case ReplyDone():
                        reason = event.reason
                yield event
        step = limit.after_reply(bool(calls), bool(words.strip()), reason)
        sentence = in_language_of(said, FAILED)
        match step:
            case "end":
                return
            case "run the calls" | "refuse the calls":
                results = toolbox.run(calls) if step == "run the calls" else refused(calls)
                limit.count(results)
                yield from results
                replies = conversation.ask(tool_turn(results), stream=True)
            case "say that it failed" if conversation.speak and not conversation.reads_aloud:
                replies = conversation.ask(asked_to_say(sentence), stream=True)
            case _:
                replies = conversation.say(sentence)


def asked_to_say(sentence: str) -> Turn:
    """Return the turn that asks a model for a sentence, if it cannot read a given text aloud."""
    return Turn("tool", (Text(f"Say this to the user, and nothing else: {sentence}"),))


def words_of(turn: Turn) -> str:
    """Return what the user has typed or said in a turn, as far as it is known."""
    return " ".join(segment.text or "" for segment in turn.segments if isinstance(segment, (Text, Speech)))
