"""Tools of MCP servers (Model Context Protocol, https://modelcontextprotocol.io), by the official SDK.

    with McpServer("python weather_server.py") as server:        # a program that talks over stdin and stdout
        toolbox = Toolbox(server.tools)
    McpServer("https://example.com/mcp", headers={"Authorization": "Bearer …"})       # Streamable HTTP

A connection has its own thread and event loop, so tools can be called from threads and from other event loops. If the
server has died, the first call fails, and the next one starts the server again. A failed call is not repeated, because
it may have had an effect.
"""

from __future__ import annotations

import asyncio
import logging
import re
import shlex
import threading
from collections.abc import Awaitable, Callable, Mapping
from types import TracebackType
from typing import Any

from speechgpt2.assistant.functions import NAME, OnInterrupt, PythonTool
from speechgpt2.errors import UserError
from speechgpt2.extras import require
from speechgpt2.types import Tool

CONNECT_SECONDS = 20.0
MAX_TOOLS = 128  # of one server; each takes room in the prompt
# Keys of a tool's `_meta`, by which its server declares what becomes of a call in a live talk (`functions.PythonTool`).
BACKGROUND, ON_INTERRUPT = "speechgpt2/background", "speechgpt2/on_interrupt"

log = logging.getLogger(__name__)


class McpServer:
    """An open connection to one MCP server.

    Args:
        address: An http or https URL, or a command line.
        headers: HTTP headers, for a URL.
        timeout: Limit of the time of a call, in seconds; None for the toolbox's own.
        prefix: Added to the names of the tools, in case two servers have tools of the same name.
        connect_seconds: Limit of the time in which the server must start and answer.

    Attributes:
        tools: The server's tools, for a `Toolbox`.

    Raises:
        UserError: The server cannot be started or reached, is too slow, or has no usable tools.
        MissingDependency: The extra `mcp` is not installed.
    """

    tools: tuple[PythonTool, ...]

    def __init__(
        self,
        address: str,
        *,
        headers: Mapping[str, str] | None = None,
        timeout: float | None = None,
        prefix: str = "",
        connect_seconds: float = CONNECT_SECONDS,
    ):
        self._mcp: Any = require("mcp", "mcp")
        self.address, self.timeout, self.prefix = address, timeout, prefix
        self._headers, self._connect_seconds = dict(headers or {}), connect_seconds
        self._command = None if re.match(r"https?://", address) else _command(address)
        if self._command is not None and headers:
            raise UserError(f"{address}: only an MCP server with a URL takes headers")
        self._connection: _Connection | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=f"mcp-{address[:40]}", daemon=True)
        self._thread.start()
        try:
            self.tools = self._run(self._list_tools())
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> McpServer:
        """Return the server."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the connection."""
        self.close()

    def close(self) -> None:
        """End the connection, and the program if one was started."""
        if self._loop.is_closed():
            return
        self._run(self._disconnect())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _run(self, work: Awaitable[Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(_await(work), self._loop).result()

    async def _list_tools(self) -> tuple[PythonTool, ...]:
        client = await self._connected()
        found: list[Any] = []
        cursor = None
        while len(found) <= MAX_TOOLS:
            page = await client.list_tools(cursor=cursor)
            found += page.tools
            cursor = page.next_cursor
            if not cursor:
                break
        if not found:
            raise UserError(f"{self.address}: the MCP server has no tools")
        if len(found) > MAX_TOOLS:
            raise UserError(f"{self.address}: the MCP server has more than {MAX_TOOLS} tools")
        return tuple(self._described(tool) for tool in found)

    def _described(self, tool: Any) -> PythonTool:
        name = self.prefix + re.sub(r"[^A-Za-z0-9_-]", "_", tool.name)
        if not NAME.match(name):
            raise UserError(f"{self.address}: {name!r} is not a name that a model can call; give a prefix")
        described = Tool(name, tool.description or tool.title or tool.name, tool.input_schema)
        background = (tool.meta or {}).get(BACKGROUND) is True
        return PythonTool(
            described, self._function(tool.name), {}, self.timeout, background, on_interrupt=_on_interrupt(tool)
        )

    def _function(self, name: str) -> Callable[..., Awaitable[str]]:
        async def call(**arguments: Any) -> str:
            future = asyncio.run_coroutine_threadsafe(self._call(name, arguments), self._loop)
            return await asyncio.wrap_future(future)  # a cancelled call is cancelled in the server's loop, too

        return call

    async def _call(self, name: str, arguments: dict[str, Any]) -> str:
        client = await self._connected()
        try:
            result = await client.call_tool(name, arguments)
        except self._mcp.MCPError as error:
            if error.code == require("mcp.types", "mcp").CONNECTION_CLOSED:
                await self._disconnect()
            raise RuntimeError(_reason(error)) from None
        text = _text_of(result)
        if result.is_error:
            raise RuntimeError(text or "no reason given")
        return text

    async def _connected(self) -> Any:
        """Return the client of the open connection. Connect again if there is none."""
        if self._connection is None:
            connection = _Connection(self._new_client())
            try:
                await asyncio.wait_for(asyncio.shield(connection.ready), self._connect_seconds)
            except (asyncio.TimeoutError, TimeoutError):
                await connection.close()
                raise UserError(
                    f"{self.address}: the MCP server gave no answer within {self._connect_seconds:g} seconds"
                ) from None
            except Exception as error:
                await connection.close()
                raise UserError(f"{self.address}: no MCP server ({_reason(error)})") from None
            self._connection = connection
        return self._connection.client

    async def _disconnect(self) -> None:
        if self._connection is not None:
            await self._connection.close()
            self._connection = None

    def _new_client(self) -> Any:
        if self._command is not None:
            program, *arguments = self._command
            target: Any = self._mcp.StdioServerParameters(command=program, args=arguments)
        elif self._headers:
            http = require("mcp.client.streamable_http", "mcp")
            session = http.create_mcp_http_client(headers=self._headers)
            target = http.streamable_http_client(self.address, http_client=session)
        else:
            target = self.address
        return self._mcp.Client(target)


class _Connection:
    """A client that is opened and closed in the same task, as its task groups require."""

    def __init__(self, client: Any):
        self.client = client
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._leave = asyncio.Event()
        self.task = asyncio.ensure_future(self._live())

    async def close(self) -> None:
        self._leave.set()
        if not self.ready.done():
            self.task.cancel()
        await asyncio.wait({self.task}, timeout=10.0)

    async def _live(self) -> None:
        try:
            async with self.client:
                self.ready.set_result(None)
                await self._leave.wait()
        except Exception as error:
            if not self.ready.done():
                self.ready.set_exception(error)
            else:
                log.warning("the connection to an MCP server has ended: %s", _reason(error))
        finally:
            if not self.ready.done():
                self.ready.cancel()


def _command(address: str) -> list[str]:
    try:
        words = shlex.split(address)
    except ValueError as error:
        raise UserError(f"{address!r} is neither a URL nor a command line ({error})") from None
    if not words:
        raise UserError("the address of an MCP server is empty: give a URL or a command line")
    return words


def _on_interrupt(tool: Any) -> OnInterrupt:
    """What its server declares, or else: a call that writes is kept, since a cancelled one may be half done."""
    declared = (tool.meta or {}).get(ON_INTERRUPT)
    if declared in ("cancel", "keep"):
        return declared
    writes = tool.annotations is not None and tool.annotations.read_only_hint is False
    return "keep" if writes else "cancel"


def _text_of(result: Any) -> str:
    """Return the text of a result. Other content is only named, because it cannot be spoken."""
    parts = []
    for block in result.content:
        text = getattr(block, "text", None) or getattr(getattr(block, "resource", None), "text", None)
        parts.append(text if text is not None else f"[{block.type}: cannot be read out]")
    return "\n".join(parts)


def _reason(error: BaseException) -> str:
    """Return the innermost error of a group on one line; connections raise groups of errors."""
    while getattr(error, "exceptions", ()):
        error = error.exceptions[0]  # type: ignore[attr-defined]
    return " ".join(str(error).split())[:200] or type(error).__name__


async def _await(work: Awaitable[Any]) -> Any:
    return await work
