"""The styles of a session's replies: the reply's own, or the last that the user asked for, or that of the settings."""

from __future__ import annotations

from typing import NamedTuple

from speechgpt2.duplex.protocol import ReplyOptions, SessionSettings
from speechgpt2.lm.prompt import Prompt
from speechgpt2.style import Style, delivered
from speechgpt2.style_requests import StyleRequest


class StyleState(NamedTuple):
    """What has to be known of the styles when a session is resumed.

    `lasting`: the style the user last asked to keep. `latest`: the last reply's style, if different.
    """

    lasting: Style | None = None
    latest: Style | None = None


class ReplyStyles:
    """The styles that the user has asked for, by the number of the reply that followed the request."""

    def __init__(self) -> None:
        self._lasting: dict[int, Style] = {}
        self._latest: Style | None = None  # of the last reply

    def reply_style(self, settings: SessionSettings, options: ReplyOptions, continues: bool) -> Style:
        """Return the style of a reply to a turn that asks for none.

        Args:
            settings: The session's settings.
            options: The reply's own options.
            continues: Whether it answers the results of the last reply's tool calls, and so has its style.
        """
        if options.style is not None:
            self._latest = options.style
        elif not continues or self._latest is None:
            self._latest = next(reversed(self._lasting.values()), settings.style)
        return self._latest

    def follow(self, request: StyleRequest, reply: int, settings: SessionSettings, options: ReplyOptions) -> Style:
        """Return the style of a reply to a turn with a request; one that lasts is kept for those to come."""
        style = self._latest = request.applied(self.reply_style(settings, options, continues=False))
        if request.lasting:
            self._lasting[reply] = style
        return style

    def roll_back(self, reply: int | None) -> None:
        """Forget what was asked for in the turn before a speculative reply."""
        if reply is not None:
            self._lasting.pop(reply, None)

    def state(self, settings: SessionSettings) -> StyleState:
        """Return what has to be saved; `settings`: the session's."""
        lasting = next(reversed(self._lasting.values()), None)
        return StyleState(lasting, None if self._latest == (lasting or settings.style) else self._latest)

    def restore(self, state: StyleState) -> None:
        """Resume from a saved state."""
        self._lasting = {} if state.lasting is None else {0: state.lasting}  # 0 is the number of no reply
        self._latest = state.latest

    def clear(self) -> None:
        """Return to the style of the settings."""
        self._lasting.clear()


def delivery_of(style: Style, prompt: Prompt, settings: SessionSettings, options: ReplyOptions) -> Style:
    """Return the style in which a reply's speech is delivered: at its speed, without what the model does itself."""
    speed = settings.speed if options.speed is None else options.speed
    return delivered(style, speed, prompt.template.follows_instructions)
