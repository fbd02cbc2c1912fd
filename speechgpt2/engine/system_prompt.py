"""The system prompt of a session, which the model reads before all turns."""

from __future__ import annotations

from typing import NamedTuple

from speechgpt2.duplex.protocol import ReplyOptions, SessionSettings
from speechgpt2.lm.prompt import Prompt
from speechgpt2.types import Mode, Patches, Speech, Tool

SESSION_DEFAULTS = ReplyOptions()  # everything as the session's settings say


class SystemPrompt(NamedTuple):
    """What a system prompt says: modalities, instructions, tools, and the greeting that opens the conversation."""

    mode: Mode
    instructions: str | None
    tools: tuple[Tool, ...]
    greeting: Speech | None

    @classmethod
    def from_settings(
        cls, prompt: Prompt, settings: SessionSettings, mode: Mode, options: ReplyOptions = SESSION_DEFAULTS
    ) -> SystemPrompt:
        """Return the system prompt that a session's settings ask for.

        Args:
            prompt: The model's prompt layout.
            settings: The session's settings, with an encoded greeting. Without one, that of the voice is used.
            mode: Modalities of the user's last turn and of the answer.
            options: A reply's own instructions, tools and style.
        """
        instructions = settings.instructions if options.instructions is None else options.instructions
        tools = settings.tools if options.tools is None else options.tools
        greeting = settings.greeting or prompt.greetings.opening(settings.voice, mode)
        return cls(mode, prompt.styled(instructions, mode, options.style or settings.style), tools, greeting)

    def same(self, other: SystemPrompt) -> bool:
        """Return whether both say the same."""
        # Greetings hold arrays, which `==` compares element by element: compare identities instead.
        return self[:3] == other[:3] and self.greeting is other.greeting

    def render(self, prompt: Prompt) -> Patches:
        """Return its patches, `[1, P]`."""
        greeting = None if self.greeting is None else prompt.greeting(self.greeting)
        return prompt.system_prompt(self.mode, greeting, self.instructions, self.tools)
