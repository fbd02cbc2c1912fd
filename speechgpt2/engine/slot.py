"""A session inside the engine, on its thread: what was said so far, what is being heard, the reply under way.

A slot does what its session asks and offers what is to be done next; the engine runs that, together with other slots',
and brings the results back. Nothing here touches a device.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from speechgpt2.duplex.protocol import ReplyOptions, SessionSettings
from speechgpt2.engine.config import EngineConfig
from speechgpt2.engine.context import Context, Span
from speechgpt2.engine.ear import Ear
from speechgpt2.engine.mailbox import Mailbox
from speechgpt2.engine.memory import as_heard, speech_patches
from speechgpt2.engine.orders import Draw
from speechgpt2.engine.runner import Drawn
from speechgpt2.engine.scheduler import Need
from speechgpt2.engine.sounds import Sound
from speechgpt2.lm import tools as calling
from speechgpt2.lm.prompt import Prompt
from speechgpt2.lm.reply import ReplyEvent, ReplyParser
from speechgpt2.types import (
    FRAME_SIZE,
    SAMPLE_RATE,
    AudioDelta,
    Mode,
    Patches,
    ReplyDone,
    Role,
    Speech,
    TextDelta,
    Tool,
    ToolCall,
    Transcript,
)

CLOSING = 16  # patches that are kept for ending a reply properly
OF_THE_SESSION = ReplyOptions()


class History(NamedTuple):
    """A turn of before: `text` what was written or said, `codes [T, K]` if it was spoken."""

    role: Role
    text: str | None
    codes: Tensor | None


class Told(NamedTuple):
    """What the model is told before all turns; a reply may have its own instructions and tools."""

    mode: Mode
    instructions: str | None
    tools: tuple[Tool, ...]
    greeting: Speech | None


class Asked(NamedTuple):
    """Something to do for a session: the turn that it makes, and whether it waits until nobody speaks."""

    action: Callable[[], None]
    number: int | None
    quiet: bool


class Reply:
    """A reply in the making, of at most so many patches. `played_from`: when its sound began, or would have, had it
    never run dry; `ending`: why nothing more is written, while sound is still to come.
    """

    def __init__(self, number: int, most: int, speak: bool, reader: ReplyParser):
        self.number, self.most, self.speak, self.reader = number, most, speak, reader
        self.patches = self.sounding = self.coming = 0  # written so far; of them heard, and on their way to sound
        self.ending: Literal["stop", "length"] | None = None
        self.open = 0  # segments of speech begun less those ended
        self.played_from: float | None = None
        self.calls: list[ToolCall] = []  # told at its end: one that is cut short calls nothing


class Slot:
    """One session's side of the engine. `mailbox` is its reader's; `delay` of the codec: by how many samples a sound
    comes later than its codes say.
    """

    def __init__(
        self,
        number: int,
        prompt: Prompt,
        config: EngineConfig,
        settings: SessionSettings,
        delay: int,
        mailbox: Mailbox,
    ):
        self.number, self.prompt, self.config, self.settings, self.delay = number, prompt, config, settings, delay
        self.mailbox = mailbox
        self.samples = prompt.config.patch_frames * FRAME_SIZE
        mode: Mode = "s2s" if settings.speak else "s2t"
        self.told = Told(mode, settings.instructions, settings.tools, settings.greeting)
        self.context = Context(prompt, config.context, config.piece, self._opening(self.told))
        self.ear: Ear | None = None
        self.reply: Reply | None = None
        self.heard_text: str | None = None  # what the user said last, where known
        self._asked: deque[Asked] = deque()  # and not yet done

    # what a session asks: see `dialogue.protocol.Session`

    def start_turn(self, number: int) -> None:
        def begin() -> None:
            start = self.prompt.user_speech_start()
            self.context.add(number, "user", start, spoken=True, head=start.text.shape[1])
            self.ear, self.heard_text = Ear(self.samples), None
            self._set_mode(self.settings.speak)

        self._in_turn(begin, number)

    def hear(self, pcm: np.ndarray, now: float) -> None:
        self._in_turn(lambda: self._listening().hear(pcm, now), quiet=False)

    def end_turn(self) -> None:
        self._in_turn(lambda: self._listening().end(), quiet=False)

    def rollback(self, reply: int | None) -> None:
        def reopen() -> None:
            ear, span = self._listening(), None if reply is None else self.context.find(reply)
            self.reply = None
            if span is not None:
                self.context.remove(span)
            if ear.closing:
                self.context.cut_end(self.context.spans[-1], ear.closing)
            ear.reopen()

        self._drop_asked(reply)
        self._in_turn(reopen, quiet=False)

    def discard_turn(self) -> None:
        def drop() -> None:
            self.ear = None
            self.context.remove(self.context.spans[-1])

        self._in_turn(drop, quiet=False)

    def add_turn(self, number: int, turn: History) -> None:
        self._in_turn(lambda: self._add(number, turn), number)

    def respond(self, number: int, options: ReplyOptions) -> None:
        self._in_turn(lambda: self._begin_reply(number, options), number)

    def truncate(self, number: int, heard: int) -> None:
        self._drop_asked(number)
        span, count = self.context.find(number), max(0, heard - self.delay) // self.samples
        if span is None or span.role != "assistant":
            return
        if self.reply is None or self.reply.number != number:
            if count < speech_patches(self.prompt, self.context.slice(span.body, span.stop)):
                self._cut(span, count)
            return
        if self.reply.speak:
            self._cut(span, count)
        else:
            self.context.extend(self.prompt.turn_end(speaking=False))
        self._end_reply()

    def delete_turn(self, number: int) -> None:
        def remove() -> None:
            span = self.context.find(number)
            if span is None or (self.reply is not None and self.reply.number == number):
                return
            if self.ear is not None and span is self.context.spans[-1]:
                if not self.ear.over:
                    return
                self.ear = None
            self.context.remove(span)

        self._in_turn(remove, quiet=False)

    def configure(self, settings: SessionSettings) -> None:
        def change() -> None:
            self.settings = settings
            self._set_mode(settings.speak)

        self._in_turn(change)

    # what is to be done

    @property
    def backlog(self) -> int:
        """Samples of the user's that wait to be encoded."""
        return 0 if self.ear is None else len(self.ear.patches) * self.samples

    def need(self, now: float) -> Need:
        """For the scheduler."""
        due, waited = False, 0.0
        if self.ear is not None and self.ear.due:
            due, waited = True, now - self.ear.since
            if self.ear.over:  # whoever has spoken waits
                waited = self.config.patience
        replying = self.reply is not None and self.reply.ending is None
        writing = self.reply is not None and not self.reply.open
        lead = self._lead(now)
        return Need(self.number, due, waited, self.context.waiting, replying, lead, writing, self.awaited)

    def sound(self) -> Sound | None:
        """The next of the user's sound, to encode; None if it ended with nothing left to encode."""
        sound = self._listening().next()
        if len(sound.pcm):
            return sound
        self.listened(np.zeros((0, self.prompt.config.codebooks), np.int64), sound)
        return None

    def listened(self, heard: np.ndarray, sound: Sound) -> None:
        """The codes `[T, K]` of the user's `sound`, which may be void by now."""
        ear = self.ear
        if ear is None or ear.away is not sound:
            return
        ear.away, codes = None, torch.from_numpy(heard)
        patches = self.prompt.user_speech_end(codes) if sound.final else self.prompt.speech_patches(codes)
        self.context.extend(patches)
        self.context.tidy()
        if sound.final:
            ear.closing = patches.text.shape[1]
            self._go_on()

    def draw(self) -> Draw | None:
        """How to draw the reply's next patch; None unless all that was said before is taken in."""
        if self.reply is None or self.reply.ending or self.context.waiting:
            return None
        s, fresh = self.settings, self.reply.patches == 0
        return Draw(s.temperature, s.top_k, s.top_p, s.seed, fresh, not self.reply.open)

    @property
    def awaited(self) -> bool:
        """Whether the end of the user's turn is being heard, or a reply's first sound is on its way."""
        if self.ear is not None and self.ear.away is not None and self.ear.away.final:
            return True
        return self.reply is not None and self.reply.coming > 0 and self.reply.played_from is None

    def drawn(self, patches: Sequence[Drawn]) -> None:
        """The model has written and taken in the reply's next patches, whose sound will be `sounded`. What comes after
        the reply's end does not count.
        """
        reply = self.reply
        assert reply is not None
        for patch in patches:
            if self.reply is reply and reply.ending is None:
                self._drawn(reply, patch)

    def _drawn(self, reply: Reply, patch: Drawn) -> None:
        ids = self.prompt.special_ids
        reply.patches += 1
        if patch.token == ids.eos and self._speaks_after_all(reply):
            return
        self.context.extend(_patch(patch), taken=True)
        reply.open += (patch.token == ids.speech_start) - (patch.token == ids.speech_end)
        self._tell(reply, reply.reader.read(patch.token, patch.sound is not None))
        reply.coming += patch.sound is not None
        if reply.reader.ended or (reply.open and not reply.speak):  # it was not asked to speak
            self._finish("stop")
        elif reply.patches >= reply.most or self.context.room <= CLOSING:
            self._finish("length")

    def _speaks_after_all(self, reply: Reply) -> bool:
        """Whether a reply that would end without speech goes on where it would begin."""
        if not reply.speak or reply.sounding or reply.coming or reply.patches >= reply.most:
            return False
        written = reply.reader.speech_continuation_prompt()
        if written is None:
            return False
        self.context.replace(self.context.spans[-1], written)
        reply.open = 1
        return True

    def sounded(self, number: int, pcm: np.ndarray, now: float) -> None:
        """The sound `pcm [N]` of a patch of reply `number`."""
        reply = self.reply
        if reply is None or reply.number != number:  # it was cut short
            return
        reply.coming -= 1
        if reply.played_from is None or self._ahead(now) <= 0:
            reply.played_from = now - reply.sounding * self.samples / SAMPLE_RATE
        reply.sounding += 1
        self.mailbox.put(number, AudioDelta(pcm))
        if reply.ending is not None and not reply.coming:
            self._finish(reply.ending)

    # inside

    def _listening(self) -> Ear:
        if self.ear is None:
            raise RuntimeError("nobody speaks")  # the session's part is to see to that
        return self.ear

    def _in_turn(self, action: Callable[[], None], number: int | None = None, quiet: bool = True) -> None:
        """Do this after all that was asked before; if `quiet`, when a reply and a turn under way are over."""
        self._asked.append(Asked(action, number, quiet))
        self._go_on()

    def _go_on(self) -> None:
        while self._asked:
            unsettled = self.ear is not None and self.ear.over and not self.ear.settled
            if self._asked[0].quiet and (unsettled or self.reply is not None):
                return
            self._asked.popleft().action()

    def _drop_asked(self, number: int | None) -> None:
        self._asked = deque(asked for asked in self._asked if number is None or asked.number != number)

    def _cut(self, span: Span, heard: int) -> None:
        """Leave only `heard` patches of a reply's speech in memory."""
        kept = as_heard(self.prompt, self.context.slice(span.body, span.stop), span.spoken, heard)
        if kept is None:
            self.context.remove(span)
        else:
            self.context.replace(span, kept)

    def _add(self, number: int, turn: History) -> None:
        self.ear = None
        if turn.role == "assistant":
            last = self.context.spans[-1] if self.context.spans else None
            answers_speech = last is not None and last.role == "user" and last.spoken
            heard = self.heard_text if answers_speech else None
            spoken = None if turn.codes is None else self.prompt.align_speech(turn.codes, text=turn.text)
            patches = self.prompt.reply(turn.text or "", spoken, heard)
            self.context.add(number, "assistant", patches, spoken=heard is not None)
        elif turn.codes is not None:
            head = self.prompt.user_speech_start().text.shape[1]
            self.context.add(number, "user", self.prompt.user_speech(turn.codes), spoken=True, head=head)
            self.heard_text = turn.text
        else:
            self.context.add(number, turn.role, self.prompt.user_text(turn.text or ""))
        self.context.tidy()
        if turn.role == "user":
            self._set_mode(self.settings.speak)

    def _set_mode(self, speak: bool, recital: bool = False, own: ReplyOptions = OF_THE_SESSION) -> None:
        """Tell the model how the user's last turn came, or that something is to be read aloud, and how to answer;
        a reply's `own` instructions and tools hold until the next turn.
        """
        users = [span for span in self.context.spans[-2:] if span.role == "user"]
        heard = "s" if (users[-1].spoken if users else self.told.mode[0] == "s" and not recital) else "t"
        mode: Mode = f"{heard}2{'s' if speak else 't'}"  # type: ignore[assignment]
        instructions = self.settings.instructions if own.instructions is None else own.instructions
        tools = self.settings.tools if own.tools is None else own.tools
        told = Told(mode, instructions, tools, self.settings.greeting)
        if told[:3] != self.told[:3] or told.greeting is not self.told.greeting:
            self.context.open_with(self._opening(told))
            self.told = told

    def _opening(self, told: Told) -> Patches:
        speech, greeting = told.greeting, None
        if speech is not None and speech.codes is not None:
            greeting = self.prompt.align_speech(torch.as_tensor(speech.codes), text=speech.text)
        return self.prompt.system_prompt(told.mode, greeting, told.instructions, told.tools)

    def _begin_reply(self, number: int, options: ReplyOptions) -> None:
        s, text = self.settings, options.text
        speak = s.speak if options.speak is None else options.speak
        last = self.context.spans[-1] if self.context.spans else None
        transcribing = last is not None and last.role == "user" and last.spoken and text is None
        given, begun = self.prompt.text_patches([]), ""
        if text is not None:
            self.prompt.require_chain_of_modality("read a given text aloud")
            given = self.prompt.tts_prefix(text)
        self._set_mode(speak or text is not None, recital=text is not None, own=options)
        if text is None and not (transcribing and self.prompt.template.chain_of_modality):
            begun = self._call_begun(options)
            given = self.prompt.text_patches(self.prompt.encode(begun))
        self.context.tidy()
        self.context.add(number, "assistant", given, spoken=transcribing)
        most = min(options.max_patches or s.max_patches, s.max_patches)
        reader = ReplyParser(self.prompt, transcribing, tools=bool(self.told.tools) and text is None, prefix=begun)
        self.reply = Reply(number, most, speak or text is not None, reader)
        if text is not None:
            self.reply.open = 1
            self.mailbox.put(number, TextDelta(text))

    def _call_begun(self, options: ReplyOptions) -> str:
        """What a reply that must call a tool is given to begin with."""
        must = self.settings.require_tool if options.require_tool is None else options.require_tool
        if not must or not self.told.tools or not self.prompt.template.tools:
            return ""
        return calling.tool_call_prefix(must if isinstance(must, str) else None)

    def _lead(self, now: float) -> float:
        """Seconds of sound that the listener has in hand, or is about to get."""
        coming = 0 if self.reply is None else self.reply.coming
        return self._ahead(now) + coming * self.samples / SAMPLE_RATE

    def _ahead(self, now: float) -> float:
        """Seconds of sound that the listener has in hand."""
        reply, unread = self.reply, self.mailbox.unread / SAMPLE_RATE
        if reply is None or reply.played_from is None:
            return unread
        ahead = reply.sounding * self.samples / SAMPLE_RATE - (now - reply.played_from)
        return max(unread, ahead, 0.0) if self.settings.paced else unread

    def _finish(self, reason: Literal["stop", "length"]) -> None:
        reply = self.reply
        assert reply is not None
        if reply.coming:
            reply.ending = reason
            return
        if not reply.reader.ended:
            self._tell(reply, reply.reader.finish())
            self.context.extend(self.prompt.turn_end(speaking=reply.open != 0))
        for call in reply.calls:
            self.mailbox.put(reply.number, call)
        self.mailbox.put(reply.number, ReplyDone(reason))
        self._end_reply()
        self.context.tidy()

    def _tell(self, reply: Reply, known: Sequence[ReplyEvent]) -> None:
        for event in known:
            if isinstance(event, Transcript):
                self.heard_text = event.text
            if isinstance(event, ToolCall):
                reply.calls.append(event)
            else:
                self.mailbox.put(reply.number, event)

    def _end_reply(self) -> None:
        self.reply = None
        self._go_on()


def _patch(drawn: Drawn) -> Patches:
    return Patches(torch.tensor([[drawn.token]]), torch.from_numpy(drawn.codes)[None, None])
