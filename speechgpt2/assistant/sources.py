"""The sources of tools that a user names on the command line, opened as one toolbox."""

from __future__ import annotations

import atexit
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # a program that uses no tools should not wait for what runs them
    from speechgpt2.assistant.functions import PythonTool
    from speechgpt2.assistant.toolbox import Toolbox


@dataclass(frozen=True)
class ToolSources:
    """Sources of tools. None and () mean that there is no source.

    Attributes:
        functions: A Python file (`functions.load_functions`).
        knowledge: A knowledge base; searching it is one tool.
        mcp: Addresses of MCP servers, which stay connected until the program ends.
        expert: ``NAME@URL`` of a text model that answers questions.
        search: A search engine (`search.open_engine`).
    """

    functions: Path | None = None
    knowledge: Path | None = None
    mcp: tuple[str, ...] = ()
    expert: str | None = None
    search: str | None = None

    def open(self) -> Toolbox | None:
        """Return a toolbox of all sources, or None if none is named.

        Raises:
            UserError: A source cannot be opened, or two tools have the same name.
            MissingDependency: The package that a source needs is not installed.
        """
        if self == ToolSources():
            return None
        from speechgpt2.assistant.functions import load_functions
        from speechgpt2.assistant.toolbox import Toolbox

        toolbox = Toolbox(load_functions(self.functions) if self.functions is not None else ())
        if self.knowledge is not None:
            from speechgpt2.assistant.knowledge import KnowledgeBase

            toolbox.add(KnowledgeBase(self.knowledge).tool())
        for tool in self._from_servers():
            toolbox.add(tool)
        if self.expert is not None:
            from speechgpt2.assistant.expert import Expert

            name, _, address = self.expert.partition("@")
            toolbox.add(Expert(address, name).tool())
        if self.search is not None:
            from speechgpt2.assistant.search import open_engine, web_search

            toolbox.add(web_search(open_engine(self.search)))
        return toolbox

    def _from_servers(self) -> list[PythonTool]:
        tools: list[PythonTool] = []
        for address in self.mcp:
            from speechgpt2.assistant.mcp_servers import McpServer

            server = McpServer(address)
            atexit.register(server.close)
            tools += server.tools
        return tools
