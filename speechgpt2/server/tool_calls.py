"""The tools of one Realtime session that the server runs: beside the audio, several calls at once.

    response.output_item.added (mcp_call) · response.mcp_call_arguments.delta · .done · response.output_item.done
    response.done
        response.mcp_call.in_progress                 call_runner.py; the user may go on speaking
        response.created …                            a filler ("One moment, please."), if the wait is long
        response.mcp_call.completed | failed
    response.created …                                the answer

Results wait until neither side speaks. Then they enter the context together, and the model answers. A filler is cut by
the answer, and the model forgets it. When the user speaks meanwhile, a call is cancelled or kept as its tool declares;
a kept call, and one in the background, is answered when there is room. If the turn would end without an answer because
of its tools, the assistant says a fixed sentence (`assistant.loop.CallLimit`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress

from speechgpt2.assistant.loop import NO_MORE, CallLimit, refused
from speechgpt2.assistant.toolbox import Toolbox, ToolResult
from speechgpt2.duplex.protocol import ReplyOptions
from speechgpt2.errors import MissingDependency, UserError
from speechgpt2.extras import require
from speechgpt2.server import fillers
from speechgpt2.server.call_runner import CANCELLED, CallGroup, CallRunner, PendingCall, Tasks
from speechgpt2.server.context import SessionContext
from speechgpt2.server.hosted_tools import LABEL, HostedTools
from speechgpt2.server.mcp_connections import McpConnections
from speechgpt2.server.response import RealtimeResponse
from speechgpt2.server.responses import Responses
from speechgpt2.server.schema import ProtocolError
from speechgpt2.server.session_config import FunctionTool, SessionConfig
from speechgpt2.types import ToolCall

SETTLE_SECONDS = 0.3  # after a user's turn, in which a response to it begins
UNFINISHED = "The response was cut off, so the call was not made."

log = logging.getLogger("sg2.realtime")


class ToolCalls:
    """What the server's tools do in one session.

    Args:
        context: The session.
        responses: Its responses.
        hosted: The server's tools and rules.
        configure: Tells the model that the session has other tools.
        fail: Called when the client reads too slowly; ends the session.
    """

    def __init__(
        self,
        context: SessionContext,
        responses: Responses,
        hosted: HostedTools,
        configure: Callable[[], None],
        fail: Callable[[], None],
    ):
        self._context, self._responses, self._hosted, self._configure = context, responses, hosted, configure
        self._tasks = Tasks(fail)
        self.runner = CallRunner(context, self._tasks, self._call_finished)
        self.servers = McpConnections(context, hosted, self._tasks.spawn, self._tools_changed)
        self._toolbox: Toolbox | None = hosted.toolbox() if hosted.functions else None
        context.hosted_tools = hosted.tools
        self._called: list[PendingCall] = []  # of the response in progress
        self._groups: list[CallGroup] = []  # that wait for a result
        self._ready: list[str] = []  # results that the model does not know yet
        self._limit = CallLimit()
        self._user_speaking = False
        self.filler = Filler(context, responses)

    async def work(self) -> None:
        """Connect to the servers of the first settings; at the session's end, cancel what is under way."""
        self.servers.update(self._context.config)
        try:
            await asyncio.Event().wait()
        finally:
            self._tasks.cancel()
            self.servers.close()

    # tools

    def hosts(self, name: str, config: SessionConfig) -> bool:
        """Return whether the server runs a call of `name`: its own tool, or one that neither side has.

        Args:
            name: The tool.
            config: The settings of the response that calls it.
        """
        if self._toolbox is None:
            return False
        return name in self._toolbox or all(tool.name != name for tool in config.functions)

    def check(self, config: SessionConfig) -> None:
        """Check new settings before they are accepted.

        Raises:
            ProtocolError: A server may not be named, or a function has the name of a tool of the server.
        """
        self.servers.check(config)
        hosted = {tool.name for tool in self._context.hosted_tools}
        for number, tool in enumerate(config.tools):
            if isinstance(tool, FunctionTool) and tool.name in hosted:
                param = f"session.tools[{number}].name"
                raise ProtocolError(f"This server has a tool '{tool.name}' itself.", "invalid_value", param)
        if config.mcp_servers:
            try:
                require("jsonschema", "assistant")
            except MissingDependency as error:
                raise ProtocolError(str(error), "unsupported_value", "session.tools") from None

    def update(self) -> None:
        """Follow the session's new settings."""
        before = self._context.hosted_tools
        self.servers.update(self._context.config)
        self._set_toolbox()
        if self._context.hosted_tools != before:
            self._configure()

    def _tools_changed(self) -> None:
        """A client's MCP server is connected: offer its tools. Changes nothing if that fails (`UserError`)."""
        before = self._toolbox, self._context.hosted_tools
        try:
            self._set_toolbox()
            self._configure()
        except UserError:
            self._toolbox, self._context.hosted_tools = before
            raise

    def _set_toolbox(self) -> None:
        functions = self.servers.functions
        if not functions and not self._hosted.functions:
            self._toolbox, self._context.hosted_tools = None, ()
            return
        toolbox = self._hosted.toolbox(functions)
        names = {tool.name for tool in self._context.config.functions}
        if shared := sorted(names & {tool.name for tool in toolbox.tools}):
            raise UserError(f"{shared[0]}: two tools have this name")
        self._toolbox, self._context.hosted_tools = toolbox, toolbox.tools

    # the response in progress

    def called(self, call: ToolCall) -> None:
        """The model has called a tool of the server's or of the client's. The server answers a malformed call."""
        response = self._responses.current
        if response is not None and (call.malformed or self.hosts(call.name, response.config)):
            self._add(response, call)
        else:
            self._responses.add_tool_call(call.name, call.arguments)

    def cancel(self, response_id: str | None) -> None:
        """Stop the current response; without one, the tool calls in progress.

        Raises:
            ProtocolError: There is nothing to stop.
        """
        calls = response_id is None and self.runner.cancel(kept_too=True)
        if self._responses.current is not None or not calls:
            self._responses.cancel(response_id)

    def _add(self, response: RealtimeResponse, call: ToolCall) -> None:
        """Announce a call. It is made when the response is complete."""
        server = self.servers.find(call.name)
        item = response.add_hosted_call(call.name, call.arguments, LABEL if server is None else server.server_label)
        pending = PendingCall(call, item, response.output.index(item), server)
        if self._toolbox is not None and call.name in self._toolbox:
            declared = self._toolbox[call.name]
            pending.background, pending.kept = declared.background, declared.on_interrupt == "keep"
        self._called.append(pending)

    def response_ended(self, response: RealtimeResponse | None, reason: str) -> None:
        """A response has ended: make its calls, or tell the results that have waited for its end.

        Args:
            response: The response; None if none has begun.
            reason: Why it has ended (`ReplyDone`). One that failed counts as interrupted.
        """
        was_filler = self.filler.response_ended(response)
        calls, self._called = self._called, []
        waiting = bool(self._groups or self._ready or was_filler)
        words = waiting or response is None or any(item.text for item in response.output if item.type != "mcp_call")
        step = self._limit.after_reply(bool(calls), words, reason)
        if step == "run the calls":
            self._start(CallGroup(calls), self._toolbox or self._hosted.toolbox())
        elif step == "refuse the calls":
            self._ready += self._report(calls, refused([call.call for call in calls]))
        else:
            text = UNFINISHED if reason != "stop" else NO_MORE
            self._report(calls, [ToolResult(call.call, text, False, 0.0) for call in calls])
        if step in ("say that it failed", "write that it failed"):
            self._say_that_it_failed(speak=self._context.config.speaks and step == "say that it failed")
        self._tell()

    def _report(self, calls: list[PendingCall], results: list[ToolResult]) -> list[str]:
        """Report results of calls that were not made; returns their texts."""
        for call, result in zip(calls, results, strict=True):
            self.runner.report(call, result)
        return [result.text for result in results]

    def _say_that_it_failed(self, speak: bool) -> None:
        said, reads_aloud = fillers.last_words(self._context.items), self._context.reads_aloud
        with suppress(UserError):  # the user has just begun to speak
            fillers.say_that_it_failed(self._context.dialogue, said, speak, reads_aloud)

    def _start(self, group: CallGroup, toolbox: Toolbox) -> None:
        for call in group.calls:
            self.runner.start(call, toolbox)
        if not group.awaited:
            self._ready += group.texts()
            return
        self._groups.append(group)
        if self._hosted.filler_seconds and self._context.config.speaks:
            self._tasks.after(self._hosted.filler_seconds, self._speak_filler)

    # what the user does

    def speech_started(self) -> None:
        """The user speaks: calls that are not kept are cancelled, and results wait."""
        self._user_speaking = True
        self.runner.cancel(kept_too=False)

    def reply_started(self) -> None:
        """A reply begins, so the user does not speak."""
        self._user_speaking = False

    def speech_ended(self) -> None:
        """The user's speech is over: it is a turn, or it was dropped."""
        self._user_speaking = False
        self._tasks.after(SETTLE_SECONDS, self._tell)

    def turn_added(self) -> None:
        """The user has said something new."""
        self._limit = CallLimit()
        self.filler.spoken = False

    # the answer

    def _call_finished(self, call: PendingCall) -> None:
        assert call.result is not None
        if call.background and call.result.text != CANCELLED:
            self._ready.append(f"Result of {call.call.name} {call.call.arguments}: {call.result.text}")
        for group in [group for group in self._groups if not group.open]:
            self._groups.remove(group)
            if any(result.text != CANCELLED for result in group.results):
                self._limit.count(group.results)
                self._ready += group.texts()
        self._tell()

    def _tell(self) -> None:
        """Tell the model the results and have it answer, unless somebody speaks. Then it happens later."""
        if not self._ready or self._user_speaking:
            return
        if self.filler.active:
            self.filler.cut()
            return
        if self._responses.busy:
            return
        texts, self._ready = self._ready, []
        dialogue = self._context.dialogue
        try:
            dialogue.add_turn(self._hosted.turn(texts))
            dialogue.respond(ReplyOptions(require_tool=False) if self._limit.refused else None)
        except UserError as error:  # the user has just begun to speak, and gets an answer to all of it
            log.info("an answer to tool results waits", extra={"fields": {"reason": str(error)}})

    def _speak_filler(self) -> None:
        if self._groups and not self._user_speaking and not self._responses.busy:
            self.filler.speak()


class Filler:
    """A few words while the user waits, at most once for each turn of the user's.

    Attributes:
        spoken: Whether this turn has had one.
    """

    def __init__(self, context: SessionContext, responses: Responses):
        self._context, self._responses = context, responses
        self._number: int | None = None  # of the reply
        self.spoken = False

    @property
    def active(self) -> bool:
        """Whether it is being said."""
        return self._number is not None

    def speak(self) -> None:
        """Say it, unless it was said."""
        if self.spoken:
            return
        options = fillers.options(fillers.last_words(self._context.items), self._context.reads_aloud)
        with suppress(UserError):  # the user has just begun to speak
            self._number = self._context.dialogue.respond(options)
            self.spoken = True

    def cut(self) -> None:
        """Stop it; its end brings the answer."""
        current = self._responses.current
        if current is not None and current.turn == self._number:
            current.cancel_reason = ""
        with suppress(UserError):  # it has ended, and its last event is on the way
            self._context.dialogue.interrupt(None)

    def response_ended(self, response: RealtimeResponse | None) -> bool:
        """A response has ended, or none has begun. Returns whether it was the filler, which the model forgets then."""
        if self._number is None or (response is not None and response.turn != self._number):
            return False
        self._context.dialogue.delete_turn(self._number)
        self._number = None
        return True
