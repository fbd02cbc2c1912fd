"""A set of functions that runs the tool calls of a model.

    toolbox = Toolbox([weather, clock], timeout=10.0)
    conversation = model.conversation("t2t", tools=toolbox.tools)
    results = toolbox.run(reply.calls)                 # or: await toolbox.run_async(reply.calls)
    conversation.ask(tool_turn(results))

A call never raises: a failure is a result, a sentence that the model can speak about. Results are data. Text in a
result that looks like a control token of a prompt is changed so that no tokenizer reads it as one.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import inspect
import json
import math
import re
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from speechgpt2.assistant.functions import PythonTool
from speechgpt2.assistant.schema import to_json
from speechgpt2.errors import UserError
from speechgpt2.extras import require
from speechgpt2.types import Text, Tool, ToolCall, Turn

MAX_ERROR = 200  # characters of an exception's message that a result keeps
MAX_ARGUMENTS = 100_000  # characters of a call's arguments
REPEAT = 'Repeat it as {"name": …, "arguments": {…}} with the arguments that the tool has.'
CONTROL = re.compile(r"[<\[](?=/?\||/?[A-Za-z_]+>)")  # begins <|im_end|>, [|Human|], <tool_call>, </tool_response>


@dataclass(frozen=True)
class ToolResult:
    """The outcome of one call.

    Attributes:
        call: The call.
        text: What the model reads: the function's value as text, or one sentence that says what went wrong.
        ok: Whether the function returned a value.
        seconds: How long the call took.
        invalid: Whether the call is malformed, of no tool or with wrong arguments, which the model may repair once.
    """

    call: ToolCall
    text: str
    ok: bool
    seconds: float
    invalid: bool = False


class CallError(Exception):
    """A call that cannot be made; the message is the result's text."""


class InvalidCall(CallError):
    """A call that is malformed, of no tool, or with wrong arguments."""


class Toolbox:
    """Functions, sync or async, by the name that the model is told.

    Sync functions run in threads of their own, async ones on the event loop. A thread cannot be stopped: a sync
    function that exceeds its time-out goes on in the background, its value is dropped, and it counts as running.

    Args:
        functions: The functions, or descriptions of functions.
        timeout: Seconds that a call may take, where the function does not say.
        max_chars: Length at which a result's text is cut, with a note.
        max_running: Calls that may run at once; a call beyond is refused.

    Raises:
        UserError: A function cannot be described, or two have one name.
        MissingDependency: The extra `assistant` is not installed.
    """

    def __init__(
        self,
        functions: Iterable[Callable[..., Any] | PythonTool] = (),
        timeout: float = 10.0,
        max_chars: int = 4000,
        max_running: int = 32,
    ):
        self.timeout, self.max_chars, self.max_running = timeout, max_chars, max_running
        self._functions: dict[str, PythonTool] = {}
        self._validators: dict[str, Any] = {}
        self._running, self._lock = 0, threading.Lock()
        for function in functions:
            self.add(function)

    def __contains__(self, name: str) -> bool:
        """Whether there is a tool of this name."""
        return name in self._functions

    def __getitem__(self, name: str) -> PythonTool:
        """The function of this name."""
        return self._functions[name]

    @property
    def functions(self) -> tuple[PythonTool, ...]:
        """All functions, in the order in which they were added."""
        return tuple(self._functions.values())

    @property
    def tools(self) -> tuple[Tool, ...]:
        """What a conversation is told (`SpeechGPT.conversation(tools=…)`)."""
        return tuple(function.tool for function in self._functions.values())

    @cached_property
    def _jsonschema(self) -> Any:
        return require("jsonschema", "assistant")

    @cached_property
    def _registry(self) -> Any:
        return require("referencing", "assistant").Registry()  # fetches no remote references

    def add(self, function: Callable[..., Any] | PythonTool) -> None:
        """Add a function.

        Raises:
            UserError: It cannot be described, its schema is not a JSON schema, or its name is taken.
        """
        described = function if isinstance(function, PythonTool) else PythonTool.from_function(function)
        name, schema = described.tool.name, described.tool.parameters
        if name in self._functions:
            raise UserError(f"{name}: two tools have this name; use @tool(name=…)")
        validator = self._jsonschema.Draft202012Validator
        try:
            validator.check_schema(schema)
        except self._jsonschema.SchemaError as error:
            raise UserError(f"{name}: the parameters are not a JSON schema ({error.message})") from None
        self._functions[name] = described
        self._validators[name] = validator(schema, registry=self._registry)

    def run(self, calls: Sequence[ToolCall]) -> list[ToolResult]:
        """Run calls at once and wait for all; from a coroutine use `run_async`.

        Returns:
            A result per call, in the order of the calls.
        """
        return asyncio.run(self.run_async(calls))

    async def run_async(self, calls: Sequence[ToolCall]) -> list[ToolResult]:
        """Run calls at once and wait for all; cancelling the task cancels the calls.

        Returns:
            A result per call, in the order of the calls.
        """
        return list(await asyncio.gather(*map(self.run_one, calls)))

    async def run_one(self, call: ToolCall) -> ToolResult:
        """Run one call; cancelling the task cancels it."""
        start, invalid = time.monotonic(), False
        try:
            function = self._find(call)
            arguments = self._parse(call)
            text, ok = await self._execute(function, arguments), True
        except CallError as error:
            text, ok, invalid = str(error), False, isinstance(error, InvalidCall)
        except Exception as error:  # a tool may raise anything; the conversation goes on
            text, ok = f"The tool {call.name} failed: {_one_line(error)}", False
        return ToolResult(call, quote(text, self.max_chars), ok, time.monotonic() - start, invalid)

    def _find(self, call: ToolCall) -> PythonTool:
        if call.malformed:
            raise InvalidCall(f"The tool call cannot be read: {_fault(call.arguments)}. {REPEAT}")
        if call.name not in self._functions:
            names = ", ".join(self._functions) or "none"
            raise InvalidCall(f"There is no tool {call.name[:80]}. The tools are: {names}.")
        return self._functions[call.name]

    def _parse(self, call: ToolCall) -> dict[str, Any]:
        """Read a call's arguments and check them against the schema."""
        if len(call.arguments) > MAX_ARGUMENTS:
            raise InvalidCall(f"The arguments of {call.name} are too long.")
        try:
            arguments = json.loads(call.arguments or "{}", parse_constant=_reject)
            errors = list(self._validators[call.name].iter_errors(arguments))
        except (ValueError, RecursionError):
            raise InvalidCall(f"The arguments of {call.name} are not JSON.") from None
        if errors:
            error = self._jsonschema.exceptions.best_match(errors)
            where = "".join(f"{part}: " for part in error.path)
            raise InvalidCall(f"The arguments of {call.name} are wrong: {where}{error.message[:MAX_ERROR]}.")
        if not isinstance(arguments, dict):
            raise InvalidCall(f"The arguments of {call.name} are not a JSON object.")
        return arguments

    async def _execute(self, function: PythonTool, arguments: dict[str, Any]) -> str:
        """Call a function within its time-out."""
        with self._lock:
            if self._running >= self.max_running:
                raise CallError("Too many tool calls are running. Try again later.")
            self._running += 1
        seconds = self.timeout if function.timeout is None else function.timeout
        if _is_async(function.function):
            task: asyncio.Future[str] = asyncio.ensure_future(self._await(function, arguments))
            task.add_done_callback(lambda _: self._finish())
        else:
            task = self._start_thread(function, arguments)
        try:
            done, _ = await asyncio.wait({task}, timeout=seconds)
        except asyncio.CancelledError:
            task.cancel()
            raise
        if not done:
            task.cancel()
            raise CallError(f"The tool {function.tool.name} gave no answer within {seconds:g} seconds.")
        return task.result()

    async def _await(self, function: PythonTool, arguments: dict[str, Any]) -> str:
        try:
            return as_text(await function.function(**function.convert(arguments)), self.max_chars)
        except SystemExit as error:  # would end the event loop
            raise RuntimeError(f"it called exit({error.code})") from None

    def _start_thread(self, function: PythonTool, arguments: dict[str, Any]) -> asyncio.Future[str]:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[str] = loop.create_future()

        def deliver(value: str | None, error: Exception | None) -> None:
            if future.done():  # timed out or cancelled
                return
            if error is None:
                future.set_result(value or "")
            else:
                future.set_exception(error)

        def work() -> None:
            value, failure = None, None
            try:
                value = as_text(function.function(**function.convert(arguments)), self.max_chars)
            except Exception as error:
                failure = error
            except SystemExit as error:
                failure = RuntimeError(f"it called exit({error.code})")
            finally:
                self._finish()
            with contextlib.suppress(RuntimeError):  # the loop has ended: the value is not awaited any more
                loop.call_soon_threadsafe(deliver, value, failure)

        # A daemon: a function that hangs must not keep the program from ending, as an executor's threads do.
        context = contextvars.copy_context()
        threading.Thread(target=context.run, args=(work,), name=f"tool-{function.tool.name}", daemon=True).start()
        return future

    def _finish(self) -> None:
        with self._lock:
            self._running -= 1


def tool_turn(results: Iterable[ToolResult]) -> Turn:
    """The turn that tells the model the results of its calls, one text per call in their order."""
    return Turn("tool", tuple(Text(result.text) for result in results))


def as_text(value: Any, max_chars: int) -> str:
    """The text of a function's value: texts as they are, None as "done", other values as JSON where possible.

    Args:
        value: What the function returned.
        max_chars: Length at which the text is cut, with a note.

    Raises:
        CallError: The value is binary.
    """
    if isinstance(value, (bytes, bytearray, memoryview)):
        raise CallError(f"The tool returned {len(value)} bytes of binary data, which cannot be read out.")
    if value is None:
        return "done"
    if isinstance(value, str):
        return shorten(value, max_chars)
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    try:
        return shorten(json.dumps(to_json(value), ensure_ascii=False), max_chars)
    except (TypeError, ValueError, RecursionError):
        return shorten(str(value), max_chars)


def shorten(text: str, max_chars: int) -> str:
    """Cut a text that is longer than `max_chars` and add a note that says so."""
    if len(text) <= max_chars:
        return text
    note = f" … [cut: the result has {len(text)} characters]"
    return text[: max(0, max_chars - len(note))] + note


def quote(text: str, max_chars: int) -> str:
    """Make a text safe for a prompt: control tokens are broken by a blank, half a surrogate pair is replaced."""
    text = CONTROL.sub(lambda found: f"{found[0]} ", text.encode(errors="replace").decode())
    return shorten(text, max_chars)


def _fault(text: str) -> str:
    """Say why a text is no call."""
    try:
        value = json.loads(text[:MAX_ARGUMENTS], parse_constant=_reject)
    except json.JSONDecodeError as error:
        return f"it is not JSON ({error.msg} at character {error.pos})"
    except (ValueError, RecursionError) as error:
        return f"it is not JSON ({_one_line(error)})"
    if not isinstance(value, dict) or not isinstance(value.get("name"), str) or not value["name"]:
        return "it does not name a tool"
    return "its arguments are not a JSON object"


def _is_async(function: Callable[..., Any]) -> bool:
    target = function if inspect.isroutine(function) else type(function).__call__  # an object with `async __call__`
    return inspect.iscoroutinefunction(target)


def _one_line(error: Exception) -> str:
    message = " ".join(str(error).split()) or type(error).__name__
    return f"{message[:MAX_ERROR]}…" if len(message) > MAX_ERROR else message


def _reject(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")
