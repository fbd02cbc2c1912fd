"""The context: edits anywhere, and a row that follows them."""

import numpy as np
import pytest
import torch

from speechgpt2.engine.context import Context
from speechgpt2.errors import UserError
from speechgpt2.lm.prompt import Prompt
from speechgpt2.lm.segments import concat
from tests.lm.tiny import tiny_config, tiny_tokenizer

PROMPT = Prompt(tiny_config(), tiny_tokenizer())
OPENING = PROMPT.system_prompt("s2s")
PIECE = 8


def new(capacity=256, opening=OPENING):
    return Context(PROMPT, capacity, PIECE, opening)


def speech(patches, seed=0):
    return PROMPT.speech_patches(torch.randint(1024, (3 * patches, 3), generator=torch.Generator().manual_seed(seed)))


def reply(words="Hello there"):
    return PROMPT.reply(words)


def same(context, *parts):
    whole, ours = concat(*parts), context.patches(0, context.length)
    return torch.equal(whole.text, ours.text) and torch.equal(whole.codes, ours.codes)


class Row:
    """A device's row: whatever it is given is written at its position, and stays there."""

    def __init__(self, context):
        self.context, self.cells, self.read = context, {}, 0

    def follow(self, most=10_000):
        while self.context.pending_patches and most:
            at = self.context.kv_length
            patches = self.context.next_chunk()
            for i in range(patches.text.shape[1]):
                self.cells[at + i] = (int(patches.text[0, i]), patches.codes[0, i].tolist())
                self.latest = at + i
            self.read += patches.text.shape[1]
            most -= 1

    def agrees(self):
        whole = self.context.patches(0, self.context.kv_length)
        ours = [self.cells[i] for i in range(self.context.kv_length)]
        return ours == list(zip(whole.text[0].tolist(), whole.codes[0].tolist(), strict=True))


def test_turns_are_separated_as_in_a_prompt():
    context = new()
    context.add(1, "assistant", reply())
    context.add(2, "user", PROMPT.user_text("Hello"))
    context.add(3, "user", PROMPT.user_text("there"))
    context.add(4, "assistant", reply("what"))
    unanswered = PROMPT.turn_end(speaking=False)
    turns = [PROMPT.reply_start(), reply(), PROMPT.user_text("Hello"), unanswered, PROMPT.user_text("there")]
    assert same(context, OPENING, *turns, reply("what"))


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_removed_turn_leaves_no_trace(number):
    turns = {1: ("user", PROMPT.user_text("Hello")), 2: ("assistant", reply()),
             3: ("user", PROMPT.user_text("what")), 4: ("assistant", reply("is"))}  # fmt: skip
    context, without = new(), new()
    for n, (role, patches) in turns.items():
        context.add(n, role, patches)
        if n != number:
            without.add(n, role, patches)
    context.remove(context.find(number))
    assert same(context, without.patches(0, without.length)) and context.find(number) is None
    assert [(s.number, s.start, s.stop, s.separator) for s in context.spans] == [
        (s.number, s.start, s.stop, s.separator) for s in without.spans
    ]


def test_only_the_changed_part_is_prefilled_again():
    context = new()
    row = Row(context)
    context.add(1, "user", PROMPT.user_text("Hello there"))
    span = context.add(2, "assistant", PROMPT.text_patches(PROMPT.encode("what is the weather like")))
    row.follow()
    row.read, kept = 0, PROMPT.text_patches(PROMPT.encode("what is"))
    context.replace(span, kept)
    assert context.kv_length == context.length - 1  # the last once more: the next patch is drawn from there
    row.follow()
    assert row.read == 1 and row.agrees() and row.latest == context.length - 1


def test_prefill_chunks_do_not_depend_on_timing():
    def pieces(eager):
        context, sizes = new(), []

        def read():
            while context.pending_patches:
                sizes.append(context.next_chunk().text.shape[1])

        context.add(1, "user", PROMPT.user_speech_start(), user_spoke=True, speech_offset=5)
        for i in range(20):
            context.extend(speech(1, i))
            if eager:
                read()
        context.extend(PROMPT.user_speech_end(torch.zeros(0, 3, dtype=torch.int64)))
        read()
        return sizes

    assert pieces(True) == pieces(False) and 1 in pieces(True) and max(pieces(True)) == PIECE


def test_row_agrees_after_random_edits():
    """Random edits with reading in between: the row always holds the beginning of the context."""
    generator = np.random.default_rng(0)
    lines = [PROMPT.system_prompt("s2s", system=line) for line in ("Hello there", "what is the weather", "")]
    context = new(128, lines[0])
    row, number = Row(context), 0
    for _ in range(400):
        kind = generator.integers(6)
        spans = context.spans
        if kind <= 1 or not spans:
            number += 1
            role = "user" if generator.random() < 0.6 else "assistant"
            context.add(number, role, PROMPT.user_text("weather " * int(generator.integers(1, 9))))
        elif kind == 2:
            context.extend(speech(1, number), prefilled=not context.pending_patches)
            if context.kv_length == context.length:  # as a reply's patches are
                patch = context.patches(context.length - 1, context.length)
                row.cells[context.length - 1] = (int(patch.text[0, 0]), patch.codes[0, 0].tolist())
        elif kind == 3:
            context.remove(spans[generator.integers(len(spans))])
        elif kind == 4:
            context.replace(spans[generator.integers(len(spans))], PROMPT.text_patches([1]))
        else:
            context.set_system_prompt(lines[generator.integers(3)])
        context.drop_old_turns()
        row.follow(most=int(generator.integers(3)))
        assert row.agrees() and context.length <= context.capacity
        edges = [context.system_length, *(s.stop for s in context.spans)]
        assert [s.start for s in context.spans] == edges[:-1] and edges[-1] == context.length


def test_oldest_exchanges_are_dropped_and_the_system_prompt_stays():
    context, lengths = new(), []
    for i in range(100):
        context.add(2 * i, "user", PROMPT.user_text("Hello there"))
        context.add(2 * i + 1, "assistant", reply("what is the weather"))
        context.drop_old_turns()
        lengths.append(context.length)
        assert torch.equal(context.patches(0, context.system_length).text, OPENING.text)
        assert context.spans[0].role == "user" and context.spans[-1].number == 2 * i + 1
    assert max(lengths) <= 256 - 64 and min(lengths[20:]) >= 100  # some is kept, some room is left


def test_endless_user_speech_loses_its_beginning():
    context = new()
    head = PROMPT.user_speech_start()
    context.add(1, "user", head, user_spoke=True, speech_offset=head.text.shape[1])
    for i in range(600):
        context.extend(speech(1, i))
        context.drop_old_turns()
        assert context.length <= 256 - 64
    latest = concat(*(speech(1, i) for i in range(580, 600)))
    assert torch.equal(context.patches(context.length - 20, context.length).codes, latest.codes)
    assert same(context, OPENING, head, context.patches(len(OPENING.text[0]) + len(head.text[0]), context.length))


def test_too_long_turn_is_refused_and_changes_nothing():
    context = new()
    context.add(1, "user", PROMPT.user_text("Hello"))
    before = context.patches(0, context.length)
    with pytest.raises(UserError, match="too long"):
        context.add(2, "user", PROMPT.user_text("weather " * 300))
    with pytest.raises(UserError, match="shorter"):
        context.set_system_prompt(PROMPT.text_patches([1] * 100))
    assert same(context, before)
