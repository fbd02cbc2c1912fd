"""Runs the calls of one Realtime session's tools: a task each, with the client's approval where it wants to be asked.

conversation.item.added (mcp_approval_request)  ◄─► conversation.item.create (mcp_approval_response)
response.mcp_call.in_progress
response.mcp_call.completed | failed · conversation.item.done
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from speechgpt2.assistant.toolbox import Toolbox, ToolResult
from speechgpt2.server.context import SessionContext
from speechgpt2.server.items import ConversationItem, new_id
from speechgpt2.server.mcp_config import McpTool
from speechgpt2.server.messages import McpApprovalResponseItem
from speechgpt2.server.outbound import SlowConsumerError
from speechgpt2.server.schema import ProtocolError
from speechgpt2.server.tracing import tool_finished
from speechgpt2.types import ToolCall

CANCELLED = "Cancelled, because the user went on."
DENIED = "The user did not allow this call."
IN_BACKGROUND = "{name} is at work. Its result comes later as another tool response; go on with the talk meanwhile."

log = logging.getLogger("sg2.realtime")


@dataclass(eq=False)
class PendingCall:
    """A call, its item and place in its response, and what became of it.

    Attributes:
        server: The MCP server that the client has named for it.
        background: Whether the talk goes on meanwhile.
        kept: Whether it survives an interruption.
    """

    call: ToolCall
    item: ConversationItem
    output_index: int
    server: McpTool | None = None
    background: bool = False
    kept: bool = False
    task: asyncio.Task[None] | None = None
    result: ToolResult | None = None


@dataclass(eq=False)
class CallGroup:
    """The calls of one response."""

    calls: list[PendingCall] = field(default_factory=list)

    @property
    def awaited(self) -> list[PendingCall]:
        """The calls that are answered together."""
        return [call for call in self.calls if not call.background]

    @property
    def open(self) -> bool:
        """Whether a result is missing."""
        return any(call.result is None for call in self.awaited)

    @property
    def results(self) -> list[ToolResult]:
        """The results of awaited calls."""
        return [call.result for call in self.awaited if call.result is not None]

    def texts(self) -> list[str]:
        """Return a text for each call, in the order of the calls."""
        return [
            IN_BACKGROUND.format(name=call.call.name) if call.result is None or call.background else call.result.text
            for call in self.calls
        ]


class Tasks:
    """The tasks of one session. `fail` is called when its client reads too slowly."""

    def __init__(self, fail: Callable[[], None]):
        self._fail = fail
        self._tasks: set[asyncio.Task[None]] = set()

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run a coroutine as a task. What it raises is logged."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def after(self, seconds: float, action: Callable[[], None]) -> None:
        """Do something later, if the session still lasts then."""

        async def wait() -> None:
            await asyncio.sleep(seconds)
            action()

        self.spawn(wait())

    def cancel(self) -> None:
        """Cancel all tasks."""
        for task in self._tasks:
            task.cancel()

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if task.cancelled() or (error := task.exception()) is None:
            return
        if isinstance(error, SlowConsumerError):
            self._fail()
        else:
            log.error("a task of a session failed", exc_info=error)


class CallRunner:
    """Makes calls and reports them to the client.

    Args:
        context: The session.
        tasks: Its tasks.
        finished: Called with each call that has a result.
    """

    def __init__(self, context: SessionContext, tasks: Tasks, finished: Callable[[PendingCall], None]):
        self._context, self._tasks, self._finished = context, tasks, finished
        self._running: list[PendingCall] = []
        self._approvals: dict[str, asyncio.Future[bool]] = {}  # by the id of the request

    def start(self, call: PendingCall, toolbox: Toolbox) -> None:
        """Make a call."""
        self._running.append(call)
        call.task = self._tasks.spawn(self._run(call, toolbox))

    def cancel(self, kept_too: bool) -> bool:
        """Cancel calls, also those that survive an interruption if `kept_too`. Returns whether there were any."""
        calls = list(self._running)
        for call in calls:
            if call.task is not None and (kept_too or not call.kept):
                call.task.cancel()
        return bool(calls)

    def approve(self, item: McpApprovalResponseItem) -> None:
        """Take the client's decision about a call.

        Raises:
            ProtocolError: No call waits for it.
        """
        future = self._approvals.get(item.approval_request_id)
        if future is None or future.done():
            text = f"No tool call waits for the approval '{item.approval_request_id}'."
            raise ProtocolError(text, "invalid_value", "item.approval_request_id")
        future.set_result(item.approve)

    def report(self, call: PendingCall, result: ToolResult) -> None:
        """Report a result to the client."""
        call.result, item, events = result, call.item, self._context.events
        item.status, item.output = "completed" if result.ok else "incomplete", result.text
        if result.ok:
            item.fields["output"] = result.text
        else:
            item.fields["error"] = {"type": "tool_execution_error", "message": result.text}
        kind = "completed" if result.ok else "failed"
        events.send(f"response.mcp_call.{kind}", item_id=item.id, output_index=call.output_index)
        events.send_item_done(item, self._context.items.previous_id(item.id))

    async def _run(self, call: PendingCall, toolbox: Toolbox) -> None:
        result = ToolResult(call.call, CANCELLED, False, 0.0)
        try:
            if await self._allowed(call):
                location = {"item_id": call.item.id, "output_index": call.output_index}
                self._context.events.send("response.mcp_call.in_progress", **location)
                result = await toolbox.run_one(call.call)
            else:
                result = ToolResult(call.call, DENIED, False, 0.0)
        finally:  # also when it is cancelled
            self._running.remove(call)
            tool_finished(call.call)
            self.report(call, result)
            self._finished(call)

    async def _allowed(self, call: PendingCall) -> bool:
        """Ask the client, if it wants to be asked."""
        name, server = call.call.name, call.server
        if server is None or not server.needs_approval(name):
            return True
        fields = {"server_label": server.server_label, "name": name, "arguments": call.call.arguments}
        item = ConversationItem(new_id("mcpr"), "mcp_approval_request", "assistant", fields=fields)
        call.item.fields["approval_request_id"] = item.id
        future = self._approvals[item.id] = asyncio.get_running_loop().create_future()
        self._context.events.send_item(item, self._context.items.add(item))
        try:
            return await future
        finally:
            del self._approvals[item.id]
