"""An MCP server by the official SDK, for tests: over stdin and stdout, or HTTP on the port that is its argument."""

import os
import sys
import time

from mcp.server import MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.types import ImageContent, ToolAnnotations

server = MCPServer("demo")


@server.tool()
def weather(city: str, days: int = 1) -> str:
    """Look up the weather in a city."""
    return f"sunny in {city} for {days} days"


@server.tool(name="fails.always")
def fails() -> str:
    """Fail."""
    raise ToolError("no network")


@server.tool()
def hangs() -> str:
    """Take too long."""
    time.sleep(30)
    return "late"


@server.tool()
def long() -> str:
    """Return a million characters."""
    return "x" * 1_000_000


@server.tool()
def huge() -> str:
    """Return ten million characters."""
    return "x" * 10_000_000


@server.tool(meta={"speechgpt2/background": True, "speechgpt2/on_interrupt": "keep"})
def research(topic: str) -> str:
    """Take one's time."""
    time.sleep(0.5)
    return f"all about {topic}"


@server.tool(annotations=ToolAnnotations(read_only_hint=False))
def order(coffee: str) -> str:
    """Order a coffee."""
    return f"{coffee} is ordered"


@server.tool()
def picture() -> ImageContent:
    """Return a picture."""
    return ImageContent(type="image", data="AA==", mime_type="image/png")


@server.tool()
def process() -> int:
    """Tell the number of the process."""
    return os.getpid()


@server.tool()
def dies() -> str:
    """End the server."""
    os._exit(3)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        server.run("streamable-http", port=int(sys.argv[1]))
    else:
        server.run("stdio")
