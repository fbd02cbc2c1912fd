"""Tools that the server runs itself: those of its configuration, for Realtime sessions and REST requests."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

from speechgpt2.assistant.functions import PythonTool
from speechgpt2.assistant.sources import ToolSources
from speechgpt2.assistant.toolbox import Toolbox, shorten
from speechgpt2.persona import load_persona
from speechgpt2.server.config import ServerConfig, ToolsConfig, is_loopback
from speechgpt2.server.schema import ProtocolError
from speechgpt2.types import Text, Tool, Turn

LABEL = "speechgpt2"  # the `server_label` of tools of the configuration
MAX_RESULT = 4_000  # characters
MAX_RUNNING = 8  # calls of one session at once


class HostedTools:
    """The tools of a server's configuration, and its rules for the tools of clients.

    Args:
        config: The server's settings.

    Raises:
        UserError: A source of tools is not what it should be.
        MissingDependency: The package that a source needs is not installed.
    """

    def __init__(self, config: ServerConfig):
        tools = with_persona(config.tools, config.persona)
        self.timeout, self.filler_seconds = tools.timeout, tools.filler_seconds
        self.max_chars = min(MAX_RESULT, config.context // 2)
        self._local, self._hosts = is_loopback(config.host), {host.lower() for host in tools.mcp_hosts}
        functions, knowledge = (None if path is None else Path(path) for path in (tools.functions, tools.knowledge))
        opened = ToolSources(functions, knowledge, tools.mcp, tools.expert, tools.search).open()
        self.functions: tuple[PythonTool, ...] = () if opened is None else opened.functions

    @property
    def tools(self) -> tuple[Tool, ...]:
        """The descriptions of the configured tools, for a model's prompt."""
        return tuple(function.tool for function in self.functions)

    def toolbox(self, more: Iterable[PythonTool] = ()) -> Toolbox:
        """Return a toolbox of one session: the configured tools, and `more`.

        Raises:
            UserError: Two tools have one name.
            MissingDependency: The extra `assistant` is not installed.
        """
        return Toolbox([*self.functions, *more], self.timeout, self.max_chars, MAX_RUNNING)

    def check_address(self, url: str, param: str) -> None:
        """Check that clients may name an MCP server.

        A server that only this machine can reach connects anywhere for its clients; another one only to the hosts of
        its configuration, because it may reach what its clients cannot.

        Raises:
            ProtocolError: They may not; names the field `param`.
        """
        host = (urlsplit(url).hostname or "").lower()
        if not (self._local or "*" in self._hosts or host in self._hosts):
            text = f"This server does not connect to MCP servers at {host!r}: its setting tools.mcp_hosts names others."
            raise ProtocolError(text, "invalid_value", param)

    def turn(self, texts: Sequence[str]) -> Turn:
        """Return the turn that tells a model some results. Together they take half of the context at most."""
        share = self.max_chars // max(1, len(texts))
        return Turn("tool", tuple(Text(shorten(text, share)) for text in texts))


def with_persona(tools: ToolsConfig, name: str | None) -> ToolsConfig:
    """Return the configured tools, and those of a persona where there is none of their kind."""
    if name is None:
        return tools
    own = load_persona(name).tools
    return replace(
        tools,
        functions=tools.functions or own.functions,
        knowledge=tools.knowledge or own.knowledge,
        mcp=(*tools.mcp, *own.mcp),
        expert=tools.expert or own.expert,
        search=tools.search or own.search,
    )
