"""The MCP servers that a client has named for its session: connected in the background, closed with the session.

conversation.item.added (mcp_list_tools) · mcp_list_tools.in_progress
mcp_list_tools.completed · conversation.item.done            with the tools, which the model knows from then on
mcp_list_tools.failed · conversation.item.done               with the reason in `error`
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from speechgpt2.assistant.functions import PythonTool
from speechgpt2.errors import UserError
from speechgpt2.server.context import SessionContext
from speechgpt2.server.hosted_tools import HostedTools
from speechgpt2.server.items import ConversationItem, new_id
from speechgpt2.server.mcp_config import McpTool
from speechgpt2.server.schema import ProtocolError
from speechgpt2.server.session_config import SessionConfig

if TYPE_CHECKING:
    from speechgpt2.assistant.mcp_servers import McpServer

MAX_SERVERS = 8  # of one session

log = logging.getLogger("sg2.realtime")


@dataclass
class McpConnection:
    """One server: what the client asked for, the task that connects, and the server once it is connected."""

    wanted: McpTool
    task: asyncio.Task[None] | None = None
    server: McpServer | None = None

    @property
    def functions(self) -> tuple[PythonTool, ...]:
        """The tools that the client allows."""
        tools = () if self.server is None else self.server.tools
        return tuple(tool for tool in tools if self.wanted.allows(tool.tool.name))

    def close(self) -> None:
        """End the connection, in a thread, since a server may take its time."""
        if self.task is not None:
            self.task.cancel()
        if self.server is not None:
            asyncio.get_running_loop().run_in_executor(None, self.server.close)


class McpConnections:
    """The connections of one session.

    Args:
        context: The session.
        hosted: The server's rules.
        spawn: Runs a coroutine as a task of the session.
        changed: Called when there are other tools. Raises `UserError` if they cannot be used.
    """

    def __init__(
        self,
        context: SessionContext,
        hosted: HostedTools,
        spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
        changed: Callable[[], None],
    ):
        self._context, self._hosted, self._spawn, self._changed = context, hosted, spawn, changed
        self._open: dict[str, McpConnection] = {}

    @property
    def functions(self) -> list[PythonTool]:
        """The tools of all connected servers."""
        return [function for connection in self._open.values() for function in connection.functions]

    def find(self, name: str) -> McpTool | None:
        """Return the server of the tool `name`; None for a tool of the configuration."""
        for connection in self._open.values():
            if any(function.tool.name == name for function in connection.functions):
                return connection.wanted
        return None

    def check(self, config: SessionConfig) -> None:
        """Check a client's servers before its settings are accepted.

        Raises:
            ProtocolError: There are too many, two have one label, or one may not be named.
        """
        servers = [(n, tool) for n, tool in enumerate(config.tools) if isinstance(tool, McpTool)]
        if len(servers) > MAX_SERVERS:
            raise ProtocolError(f"session.tools: at most {MAX_SERVERS} MCP servers.", "invalid_value", "session.tools")
        labels = set()
        for number, tool in servers:
            param = f"session.tools[{number}]"
            if tool.server_label in labels:
                raise ProtocolError("Two MCP servers have one label.", "invalid_value", f"{param}.server_label")
            labels.add(tool.server_label)
            self._hosted.check_address(tool.server_url, f"{param}.server_url")

    def update(self, config: SessionConfig) -> None:
        """Connect to the servers of the settings, and leave the others."""
        wanted = {tool.server_label: tool for tool in config.mcp_servers}
        for label, connection in list(self._open.items()):
            if wanted.get(label) != connection.wanted:
                self._open.pop(label).close()
        for label, tool in wanted.items():
            if label not in self._open:
                connection = self._open[label] = McpConnection(tool)
                connection.task = self._spawn(self._connect(connection))

    def close(self) -> None:
        """End all connections."""
        for connection in self._open.values():
            connection.close()
        self._open.clear()

    async def _connect(self, connection: McpConnection) -> None:
        events, item = self._context.events, self._add_item(connection.wanted)
        try:
            connection.server = await _connected(connection.wanted)
            self._changed()
            item.fields["tools"] = [_described(function) for function in connection.functions]
            kind = "completed"
        except UserError as error:
            if connection.server is not None:
                asyncio.get_running_loop().run_in_executor(None, connection.server.close)
                connection.server = None
            log.warning("an MCP server cannot be used", extra={"fields": {"reason": str(error)}})
            item.fields["error"], kind = {"type": "protocol_error", "code": 0, "message": str(error)}, "failed"
        item.status = "completed" if kind == "completed" else "incomplete"
        events.send(f"mcp_list_tools.{kind}", item_id=item.id)
        events.send_item_done(item, self._context.items.previous_id(item.id))

    def _add_item(self, wanted: McpTool) -> ConversationItem:
        fields: dict[str, Any] = {"server_label": wanted.server_label, "tools": []}
        item = ConversationItem(new_id("mcpl"), "mcp_list_tools", status="in_progress", fields=fields)
        events = self._context.events
        events.send_item_added(item, self._context.items.add(item))
        events.send("mcp_list_tools.in_progress", item_id=item.id)
        return item


async def _connected(wanted: McpTool) -> McpServer:
    """Connect in a thread. If the session ends meanwhile, the connection is closed as soon as it is there."""
    from speechgpt2.assistant.mcp_servers import McpServer

    connecting = asyncio.ensure_future(
        asyncio.to_thread(McpServer, wanted.server_url, headers=wanted.http_headers() or None)
    )
    try:
        return await asyncio.shield(connecting)
    except asyncio.CancelledError:
        connecting.add_done_callback(_close_late)
        raise


def _close_late(connecting: asyncio.Future[McpServer]) -> None:
    if not connecting.cancelled() and connecting.exception() is None:
        asyncio.get_running_loop().run_in_executor(None, connecting.result().close)


def _described(function: PythonTool) -> dict[str, Any]:
    tool = function.tool
    return {"name": tool.name, "description": tool.description, "input_schema": tool.parameters, "annotations": None}
