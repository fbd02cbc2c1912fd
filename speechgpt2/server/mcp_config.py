"""How a client names an MCP server among the tools of a session: `{"type": "mcp", …}`, as in OpenAI's API."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from speechgpt2.server.schema import NoEffect, WireModel


class ToolNames(WireModel):
    """Some of a server's tools by their names. Other filters are refused, because a filter must not be ignored."""

    tool_names: list[str] = Field(default_factory=list)
    read_only: None = None


class ApprovalFilter(WireModel):
    """Which tools need an approval. One that is in neither list does."""

    always: ToolNames = ToolNames()
    never: ToolNames = ToolNames()


class McpTool(WireModel):
    """An MCP server whose tools the server of the session calls, by Streamable HTTP."""

    type: Literal["mcp"]
    server_label: str = Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")
    server_url: str = Field(pattern=r"^https?://[^/]", max_length=2_048)
    authorization: str | None = None
    headers: dict[str, str] | None = None
    allowed_tools: list[str] | ToolNames | None = None
    require_approval: Literal["always", "never"] | ApprovalFilter = "always"
    connector_id: None = None
    server_description: Annotated[Any, NoEffect("the model sees the descriptions of the tools")] = None

    def allows(self, name: str) -> bool:
        """Whether the model may call the tool `name`."""
        if self.allowed_tools is None:
            return True
        return name in (self.allowed_tools if isinstance(self.allowed_tools, list) else self.allowed_tools.tool_names)

    def needs_approval(self, name: str) -> bool:
        """Whether the client approves each call of the tool `name`."""
        if isinstance(self.require_approval, ApprovalFilter):
            return name in self.require_approval.always.tool_names or name not in self.require_approval.never.tool_names
        return self.require_approval == "always"

    def http_headers(self) -> dict[str, str]:
        """The headers that are sent to the server."""
        given = dict(self.headers or {})
        return given if self.authorization is None else {**given, "Authorization": f"Bearer {self.authorization}"}
