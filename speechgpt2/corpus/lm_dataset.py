"""Training data of the language model: codes of every utterance of a corpus, and dialogues drawn in all modes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from rich.console import Console
from rich.progress import track

from speechgpt2 import hub
from speechgpt2.codec.model import Codec
from speechgpt2.corpus.phones import SILENCE, PhoneSet
from speechgpt2.corpus.store import PAD_TO, Corpus, Record
from speechgpt2.errors import UserError
from speechgpt2.lm.alignment import TimedWord, restore_spacing
from speechgpt2.lm.config import LMConfig, PromptConfig
from speechgpt2.lm.example import TrainingExample, TurnPair, training_example
from speechgpt2.lm.model import SpeechLM
from speechgpt2.lm.prompt import AlignedSpeech, Prompt
from speechgpt2.lm.tokenizer import train_tokenizer
from speechgpt2.lm.train import LMTrainConfig
from speechgpt2.training import distributed
from speechgpt2.training.run import has_fast_bf16
from speechgpt2.types import FRAME_RATE, MODES, UNFINISHED, Mode

CODES = "codes.npy"
LATER = 9  # bound of the frames of silence before the input speech
PAUSED = 13  # bound of the frames of silence after an incomplete question
LANGS = ("en", "zh")
GO_ON = {"en": "Yes, go on.", "zh": "请继续说。"}
BATCH = 16  # utterances per batch of the encoder
SYSTEM = "{input} to {output}\n"  # short: every token of the prompt costs a small model
PROMPT_TEXTS = [
    "speech to text\n",
    "text to speech\n",
    "[|Human|]: ",
    "[|SpeechGPT|]: ",
    " ###\n",
    " ###\n[|SpeechGPT|]: ",
] * 1000


def encode_corpus(corpus: Corpus, codec: Codec, out: str | Path) -> None:
    """Write `OUT` unless it exists: int16 `[all frames, K]`, frame i belonging to sample 960·i of the corpus.

    With progress; atomically. The processes of a run share the work. In bfloat16 where that is quicker: to learn from,
    it does not matter that some codes (1, 3 and 5 % by codebook) are then only near the nearest.
    """
    if Path(out).exists():
        return
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    hub.check_writable(out)
    codes = np.zeros((len(corpus.samples) // PAD_TO, codec.config.quantizer.codebooks), np.int16)
    spoken = sorted((r for r in corpus.records if r.length), key=lambda r: r.length)
    mine = range(BATCH * distributed.rank(), len(spoken), BATCH * distributed.world_size())
    for i in track(mine, description="encoding", console=Console(stderr=True, quiet=distributed.rank() > 0)):
        group = spoken[i : i + BATCH]
        pcm = torch.zeros(len(group), group[-1].length)
        for row, record in zip(pcm, group):
            row[: record.length] = torch.from_numpy(corpus.pcm(record))
        with torch.autocast("cpu", torch.bfloat16, enabled=has_fast_bf16(torch.device("cpu"))):
            rows = codec.encode(pcm)
        for row, record in zip(rows, group):
            first, frames = record.start // PAD_TO, record.length // PAD_TO
            codes[first : first + frames] = row[:frames].numpy()
    parts = distributed.gather(torch.from_numpy(codes)[None].int())  # each is 0 where other processes encoded
    if distributed.rank() == 0:
        hub.save_array(Path(out), parts.sum(0).numpy().astype(np.int16))
    distributed.barrier()


def silence_frame(codec: Codec) -> tuple[int, ...]:
    """Return the codes of the frame that encodes silence, after a second of it."""
    return tuple(codec.encode(torch.zeros(1, 25 * PAD_TO))[0, -1].tolist())


def new_model(config: LMTrainConfig, corpus: Corpus, codec: Codec) -> SpeechLM:
    """A model with random weights, a tokenizer trained on the corpus' texts, and a prompt with chain of modality."""
    torch.manual_seed(config.seed)
    texts = [text for r in corpus.records if r.split == "train" for text in (r.text, *r.extra.get("typed", ()))]
    tokenizer = train_tokenizer([*texts, *PROMPT_TEXTS], config.backbone.vocab)
    backbone = replace(config.backbone, vocab=tokenizer.get_vocab_size())
    q = codec.config.quantizer
    prompt = PromptConfig(chain_of_modality=True, system=SYSTEM, silence=silence_frame(codec))
    shape = LMConfig(backbone, config.patch_decoder, prompt, 3, q.codebooks, q.size, config.draft_tokens)
    return SpeechLM(shape, tokenizer)


def going_on(model: SpeechLM, config: LMTrainConfig, codec: Codec) -> SpeechLM:
    """Return a copy of `model` to train on, maybe with the silence of another codec, or another draft head."""
    shape = replace(model.config, draft_tokens=config.draft_tokens or model.config.draft_tokens)
    if shape.prompt.chain_of_modality:  # its silence is that of a codec
        shape = replace(shape, prompt=replace(shape.prompt, silence=silence_frame(codec)))
    torch.manual_seed(config.seed)
    copy = SpeechLM(shape, model.prompt.tokenizer)
    copy.load_state_dict(copy.state_dict() | model.state_dict())
    return copy


@dataclass(frozen=True)
class Shares:
    """Probability of each kind of example, among those that the corpus has."""

    s2s: float = 0.30
    s2t: float = 0.28
    t2s: float = 0.04
    t2t: float = 0.14
    say: float = 0.12
    dictation: float = 0.32
    unfinished: float = 0.1
    next_turn: float = 0.2  # probability of a further exchange


class LabelledSpeech(NamedTuple):
    """Speech of the user: `codes [T, K]`, its words with times, and the phone of every frame, `[T]`."""

    codes: torch.Tensor
    words: list[TimedWord]
    phones: torch.Tensor


class CodedSource:
    """A corpus with its codes, as `encode_corpus` writes them.

    Raises:
        UserError: The codes do not fit the corpus.
    """

    def __init__(self, corpus: Corpus, codes: str | Path, prompt: Prompt):
        self.prompt, self.codes = prompt, np.load(codes, mmap_mode="r")
        if len(self.codes) != len(corpus.samples) // PAD_TO:
            raise UserError(f"{codes} belongs to another corpus than {corpus.path}; encode it again")
        self.phone_set = PhoneSet(record.phones for record in corpus.select(split="train"))
        self.phones = self.phone_set.names

    def _labelled_speech(self, record: Record, random: np.random.Generator) -> LabelledSpeech:
        """Return the record's speech, shifted by a random number of frames so that patch borders fall anywhere."""
        later = int(random.integers(LATER))
        codes = torch.cat([self.prompt.silence.expand(later, -1), self._codes(record)])
        seconds = later / FRAME_RATE
        labels = torch.from_numpy(self.phone_set.labels(record.phones, len(codes) - later))
        silence = labels.new_full((later,), SILENCE)
        words = [(w.text, w.start + seconds, w.end + seconds) for w in record.words]
        return LabelledSpeech(codes, words, torch.cat([silence, labels]))

    def _spoken(self, record: Record) -> AlignedSpeech:
        words = [(w.text, w.start, w.end) for w in record.words]
        return self.prompt.align_speech(self._codes(record), words, record.text)

    def _codes(self, record: Record) -> torch.Tensor:
        first = record.start // PAD_TO
        return torch.from_numpy(self.codes[first : first + record.length // PAD_TO].astype(np.int64))


class ExchangeSource(CodedSource):
    """Draws dialogues of a corpus as examples (see `lm.train`). Raises `UserError`."""

    def __init__(
        self, corpus: Corpus, codes: str | Path, prompt: Prompt, shares: Shares = Shares(), split: str = "train"
    ):
        super().__init__(corpus, codes, prompt)
        self.shares = shares
        questions = {r.extra["exchange"]: r for r in corpus.select(role="user", split=split) if "exchange" in r.extra}
        replies = {
            r.extra["exchange"]: r for r in corpus.select(role="assistant", split=split) if "exchange" in r.extra
        }
        pairs = [(questions[name], replies[name]) for name in questions if name in replies]
        self.spoken = {lang: [p for p in pairs if p[0].length and p[0].lang == lang] for lang in LANGS}
        self.typed = {lang: [p for p in pairs if p[0].lang == lang] for lang in LANGS}
        self.alone = {("unfinished", lang): [q for q, _ in self.spoken[lang] if len(q.words) >= 3] for lang in LANGS}
        for skill, lang in product(("say", "dictation"), LANGS):
            records = corpus.select(split=split, lang=lang)
            self.alone[skill, lang] = [r for r in records if r.extra.get("skill") == skill]

    def example(self, random: np.random.Generator) -> TrainingExample:
        """Draw an example in a random language.

        It is a dialogue of one or more exchanges in a random mode, a text to speak, speech to transcribe, or a question
        that breaks off.
        """
        shares, lang = self.shares, LANGS[int(random.integers(2))]
        kinds = ("s2s", "s2t", "t2s", "t2t", "say", "dictation", "unfinished")
        weights = np.array([getattr(shares, kind) * bool(self.alone.get((kind, lang), True)) for kind in kinds])
        kind = kinds[int(random.choice(len(kinds), p=weights / weights.sum()))]
        if kind == "say":
            return self._recital(_pick(random, self.alone[kind, lang]))
        if kind == "dictation":
            return self._dictation(_pick(random, self.alone[kind, lang]), random)
        if kind == "unfinished":
            return self._unfinished(_pick(random, self.alone[kind, lang]), random)
        mode: Mode = MODES[kinds.index(kind)]
        exchanges = [self._exchange(mode, lang, random)]
        while random.random() < shares.next_turn:
            exchanges.append(self._exchange(mode, lang, random))
        return training_example(self.prompt, mode, exchanges)

    def _exchange(self, mode: Mode, lang: str, random: np.random.Generator) -> TurnPair:
        both_speak = "s" in mode
        question, reply = _pick(random, (self.spoken if both_speak else self.typed)[lang])
        spoken = self._spoken(reply) if mode[2] == "s" else None
        if mode[0] == "s":
            speech = self._labelled_speech(question, random)
            return TurnPair(speech.codes, reply.text, spoken, question.text, speech.words, speech.phones)
        typed = [question.text, *question.extra["typed"]]
        return TurnPair(typed[int(random.integers(len(typed)))], reply.text, spoken)

    def _recital(self, record: Record) -> TrainingExample:
        """Return an example of reading aloud: only the speech is learnt, the text is given."""
        example = training_example(self.prompt, "t2s", [TurnPair(None, record.text, self._spoken(record))])
        begun = (example.patches.text == self.prompt.special_ids.speech_start).cumsum(1) > 0
        return example._replace(
            text_loss_mask=example.text_loss_mask
            & begun
            & (example.patches.text != self.prompt.special_ids.speech_start)
        )

    def _dictation(self, record: Record, random: np.random.Generator) -> TrainingExample:
        """Only the transcript is learnt: nothing is answered."""
        speech = self._labelled_speech(record, random)
        turn = TurnPair(speech.codes, "", None, record.text, speech.words, speech.phones)
        example = training_example(self.prompt, "s2t", [turn])
        ended = (example.patches.text == self.prompt.special_ids.transcript_end).cumsum(1)
        return example._replace(text_loss_mask=example.text_loss_mask & (ended.cumsum(1) <= 1))

    def _unfinished(self, question: Record, random: np.random.Generator) -> TrainingExample:
        """A question that breaks off before one of its words, which is not the time to answer it.

        The codec does not look ahead: what it makes of a beginning is the beginning of what it makes of the whole.
        Nobody has spoken the reply, so where it should be spoken only its text is learnt.
        """
        left = int(random.integers(1, len(question.words)))
        codes, words, phones = self._labelled_speech(question, random)
        frames = int(words[left][1] * FRAME_RATE)
        codes = torch.cat([codes[:frames], self.prompt.silence.expand(int(random.integers(PAUSED)), -1)])
        said = "".join(restore_spacing(question.words, question.text)[:left]).rstrip(" ,.:，：。") + UNFINISHED
        mode: Mode = "s2s" if random.random() < 0.5 else "s2t"
        turn = TurnPair(codes, GO_ON[question.lang], None, said, words[:left], phones[:frames])
        example = training_example(self.prompt, mode, [turn])
        if mode == "s2s":
            example.text_loss_mask[:, -len(self.prompt.encode(self.prompt.template.turn_end)) - 1 :] = False
        return example


def _pick(random: np.random.Generator, items: list):
    return items[int(random.integers(len(items)))]
