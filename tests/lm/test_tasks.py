"""Tasks in both layouts: what is learnt, and what a layout cannot express."""

import pytest
import torch

from speechgpt2.errors import UserError
from speechgpt2.lm import tasks
from speechgpt2.lm.example import TurnPair, training_example
from speechgpt2.lm.prompt import Prompt
from speechgpt2.lm.tasks import LabelledSpeech, TaskMix, check_tasks
from tests.lm.tiny import tiny_config, tiny_tokenizer

ALL = TaskMix(
    tools=1.0, cloned_synthesis=1.0, continuation=1.0, interleaving=1.0, text=1.0, unfinished=0.0
)  # what only the released layout can express, and what both can


def prompt(chain=False):
    return Prompt(tiny_config(chain_of_modality=chain, tools=not chain), tiny_tokenizer())


def speech(frames=12):
    codes = torch.arange(frames * 3).view(frames, 3) % 1000
    return LabelledSpeech(codes, [("Hello", 0.0, 0.2), ("there", 0.2, 0.4)], torch.full((frames,), -1))


def spoken(p, text="Hello there"):
    return p.align_speech(speech().codes, speech().words, text)


def learnt(p, example):
    """The text that is learnt, without filler."""
    fillers = (p.special_ids.filler, p.special_ids.last_filler)
    tokens = [t for t in example.targets[example.text_loss_mask].tolist() if t not in fillers]
    return p.tokenizer.decode(tokens, skip_special_tokens=False)


def test_released_transcription_is_a_reply_in_text_that_the_system_line_asks_for():
    p = prompt()
    example = tasks.transcription(p, speech(), "Hello there")
    assert learnt(p, example) == "Hello there ###\n<|im_end|>" and not example.code_loss_mask.any()
    text = p.tokenizer.decode(example.patches.text[0].tolist())
    assert text.startswith(tasks.TRANSCRIBE)


def test_transcription_with_chain_of_modality_ends_with_the_transcript():
    p = prompt(chain=True)
    example = tasks.transcription(p, speech(), "Hello there")
    assert learnt(p, example).endswith("<|heard|>") and "<|im_end|>" not in learnt(p, example)


@pytest.mark.parametrize("chain", (False, True))
@pytest.mark.parametrize("cloned", (False, True))
def test_synthesis_learns_the_speech_of_a_text_that_is_given(chain, cloned):
    p = prompt(chain)
    voice = spoken(p, "What is it") if cloned else None
    example = tasks.synthesis(p, "Hello there", spoken(p), voice)
    text, ids = example.patches.text[0].tolist(), p.special_ids
    assert text.count(ids.speech_start) == 1 + cloned
    first = example.code_loss_mask[0].nonzero()[0]
    start = len(text) - 1 - text[::-1].index(ids.speech_start)
    assert int(first) == start + 1  # the greeting's codes are not learnt
    given = p.encode("Hello there")
    assert any(text[i : i + len(given)] == given for i in range(start))
    assert "Hello there" in learnt(p, example).replace("  ", " ")


def test_continuation_learns_what_follows():
    p = prompt()
    aligned = spoken(p)
    example = tasks.continuation(p, aligned, 2, True)
    assert int(example.code_loss_mask.sum()) == len(aligned.tokens) - 2
    silent = tasks.continuation(p, aligned, 2, False)
    assert learnt(p, silent) == "<|eosp|> ###\n<|im_end|>"  # without a transcript, no filler is taught as text


def test_interleaving_alternates_in_one_reply():
    p = prompt()
    example = tasks.interleaving(p, ["Hello", spoken(p, "there")])
    assert learnt(p, example).startswith("Hello<|sosp|>") and example.code_loss_mask.any()


def test_plain_text_is_learnt_from_its_first_token_on():
    p = prompt()
    example = tasks.plain_text(p, "It's 25 degrees.")
    assert example.text_loss_mask.all() and learnt(p, example) == "It's 25 degrees.<|im_end|>"


def test_dialogues_equal_the_prompt_layout():
    """Training sees exactly what inference builds, patch for patch."""
    p = prompt()
    reply = spoken(p)
    example = training_example(p, "s2s", [TurnPair(speech().codes, "Hello there", reply, "What")])
    parts = [p.system_prompt("s2s"), p.user_speech(speech().codes), p.reply("Hello there", reply)]
    assert torch.equal(example.patches.text, torch.cat([part.text for part in parts], 1))
    assert torch.equal(example.patches.codes, torch.cat([part.codes for part in parts], 1))
    assert torch.equal(example.targets, example.patches.text)


def test_an_empty_reply_is_never_taught():
    with pytest.raises(ValueError, match="empty reply"):
        training_example(prompt(), "s2t", [TurnPair(speech().codes, "")])


def test_a_task_that_a_layout_cannot_express_is_refused():
    check_tasks(prompt(), ALL)
    check_tasks(prompt(chain=True), TaskMix(cloned_synthesis=1.0, text=1.0))
    for chain, task in ((True, "continuation"), (True, "interleaving"), (True, "tools"), (False, "unfinished")):
        mix = TaskMix(**{"unfinished": 0.0, task: 0.5})
        with pytest.raises(UserError, match=f"cannot learn '{task}'.*set `{task}: 0`"):
            check_tasks(prompt(chain), mix)


def test_a_mix_must_be_one():
    zero = dict.fromkeys(TaskMix().weights(), 0.0)
    for values, message in ((zero, "empty"), ({"text": -1.0}, "text must be"), ({"next_turn": 1.0}, "next_turn must")):
        with pytest.raises(UserError, match=message):
            TaskMix(**values)
