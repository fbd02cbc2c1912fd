"""The common part of requests for a reply: `POST /v1/chat/completions` and `POST /v1/responses`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from speechgpt2.server.api_errors import ApiError
from speechgpt2.server.schema import WireModel
from speechgpt2.server.session_config import FunctionTool, Seed, Temperature, ToolChoice, TopP, check_tool_choice


class ReplyRequest(WireModel):
    """A request for a reply."""

    model: str
    stream: bool = False
    temperature: Temperature | None = None
    top_p: TopP | None = None
    seed: Seed | None = None

    def reply_settings(self, tools: Sequence[FunctionTool], tool_choice: ToolChoice) -> dict[str, Any]:
        """Return the fields of a `SessionConfig` for sampling and tools.

        Raises:
            ApiError: `tool_choice` names an unknown tool.
        """
        try:
            check_tool_choice(tool_choice, [tool.name for tool in tools])
        except ValueError as error:
            raise ApiError(400, f"tool_choice {error}.", "invalid_value", "tool_choice") from None
        sampling = {"temperature": self.temperature, "top_p": self.top_p, "seed": self.seed}
        return {**sampling, "tools": list(tools), "tool_choice": tool_choice}
