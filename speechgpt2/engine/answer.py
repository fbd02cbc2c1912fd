"""One answer: its words, its pace, and what is left of it when the listener breaks in."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from speechgpt2.engine.memory import Passage
from speechgpt2.lm.prompt import Prompt, join
from speechgpt2.lm.reply import ReplyReader
from speechgpt2.types import FRAME_SIZE, SAMPLE_RATE, Patches, TextDelta, Transcript


class Pace:
    """Keeps speech a bounded time ahead of its playback, which begins with the first sample and never stops."""

    def __init__(self, lead: float):
        self.lead = lead
        self.samples = 0  # given so far
        self._began = 0.0

    def give(self, samples: int, now: float) -> None:
        """So many samples were given."""
        if not self.samples:
            self._began = now
        self.samples += samples

    def due_at(self) -> float:
        """When the next piece should be made."""
        return self._began + self.samples / SAMPLE_RATE - self.lead if self.samples else 0.0


class Answer:
    """An answer being given, or the latest one given. `epoch` marks its events; `passage` is its place in memory."""

    def __init__(self, prompt: Prompt, passage: Passage, spoken: bool, most: int, epoch: int, pace: Pace):
        self.passage, self.most, self.epoch, self.pace = passage, most, epoch, pace
        self.reader = ReplyReader(prompt, spoken)
        self.over = False
        self._prompt = prompt
        self._head = len(passage)  # patches that stood there before it began
        self._whole: Patches | None = None  # as it was before it was first cut

    def take(self, token: int, codes: Tensor) -> list[Transcript | TextDelta]:
        """One more patch, `codes [G, K]`; what it tells."""
        self.passage.text.append(token)
        self.passage.codes.append(codes)
        return self.reader.read(token, self._speaks(codes))

    @property
    def patches(self) -> int:
        """Patches that it has so far."""
        return len(self.passage) - self._head

    def closing(self) -> Patches:
        """What it needs in memory if nothing more comes."""
        starts, ends = (
            self.passage.text.count(id) for id in (self._prompt.ids.speech_start, self._prompt.ids.speech_end)
        )
        return self._prompt.closing(speaking=starts > ends)

    def cut(self, heard: int) -> Patches:
        """The whole passage as it should be remembered if the listener heard `heard` samples of it.

        What is kept of the speech are the patches that were played to their end. A word stands at the patch before the
        one in which it begins to sound (lm/prompt.py), so the last patch that is kept loses its word. A draft tells all
        that was going to be said, and is replaced by the words that were. An answer in text alone was shown as it was
        made, and keeps what it has.
        """
        if self._whole is None:
            self._whole = Patches(torch.tensor([self.passage.text]), torch.stack(self.passage.codes)[None])
        text, codes = self._whole.text[0].tolist(), self._whole.codes[0]
        ids, patch = self._prompt.ids, codes.shape[1]
        spoken = [i for i, piece in enumerate(codes) if self._speaks(piece)]
        if not spoken and ids.speech_start not in text[self._head :]:
            return self._closed(text, codes, speaking=False)
        start = text.index(ids.speech_start, self._head)
        kept = spoken[: heard // (patch * FRAME_SIZE)]
        words = [text[i] for i in kept[:-1]]
        before = self._said(text[:start], words)
        if not kept:
            return join(before, self._prompt.closing(speaking=False))
        row = [*words, ids.filler]
        speech = self._prompt.speech(codes[kept].flatten(0, 1), row)
        return join(before, self._prompt.text([ids.speech_start]), speech, self._prompt.closing(speaking=True))

    def _said(self, draft: Sequence[int], words: Sequence[int]) -> Patches:
        """What precedes the speech, with none of the words that are still to come."""
        ids = self._prompt.ids
        if not self._prompt.words.draft:
            return self._prompt.text(draft)
        transcript = list(draft[: draft.index(ids.heard) + 1]) if ids.heard in draft else list(draft[: self._head])
        special = {ids.filler, ids.last_filler}
        said = self._prompt.tokenizer.decode([word for word in words if word not in special]).strip()
        return self._prompt.text([*transcript, *self._prompt.encode(said)])

    def _closed(self, text: Sequence[int], codes: Tensor, speaking: bool) -> Patches:
        whole = Patches(torch.tensor([text]), codes[None])
        return whole if self.reader.ended else join(whole, self._prompt.closing(speaking))

    def _speaks(self, codes: Tensor) -> bool:
        return int(codes[0, 0]) != self._prompt.config.no_speech
