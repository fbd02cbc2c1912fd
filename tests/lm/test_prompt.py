"""Turns as patches. Equality with the released prompts is tested in test_released.py."""

from __future__ import annotations

import pytest
import torch
from tokenizers import Tokenizer, models

from speechgpt2.errors import UserError
from speechgpt2.lm.config import BackboneConfig, LMConfig, PatchDecoderConfig
from speechgpt2.lm.example import TurnPair, training_example
from speechgpt2.lm.prompt import Prompt
from speechgpt2.lm.segments import concat
from speechgpt2.types import MODES, Patches
from tests.lm.tiny import tiny_config, tiny_tokenizer

SILENCE = [688, 131, 226]


def make(chain_of_modality: bool = False) -> Prompt:
    return Prompt(tiny_config(chain_of_modality=chain_of_modality), tiny_tokenizer())


def codes(frames: int) -> torch.Tensor:
    return torch.randint(0, 1024, (frames, 3), generator=torch.Generator().manual_seed(frames))


def written(prompt: Prompt, patches: Patches) -> str:
    """The text stream as text: filler `_` and `|`, speech in angle brackets, eos `$`, end of transcript `?`."""
    ids = prompt.special_ids
    marks = dict(zip(ids, "$<>_|?", strict=True))
    out, words = "", []
    for token in [*patches.text[0].tolist(), None]:
        if token is not None and token not in marks:
            words.append(token)
            continue
        out += prompt.tokenizer.decode(words) + marks.get(token, "")
        words = []
    return out


def is_silent(patches: Patches) -> torch.Tensor:
    return (patches.codes == 1024).all(-1).all(-1)[0]


@pytest.mark.parametrize("mode", MODES)
def test_system_prompt_of_each_mode(mode):
    side = {"s": "speech", "t": "text"}
    task = f"You should answer the user's {side[mode[0]]} questions in {side[mode[2]]}."
    wanted = f"You are an helpful assistant. {task}\n\n\n"
    prompt = make()
    assert written(prompt, prompt.system_prompt(mode)) == wanted
    assert is_silent(prompt.system_prompt(mode)).all()
    greeting = prompt.align_speech(codes(4), text="你好")
    assert written(prompt, prompt.system_prompt(mode, greeting)) == wanted + "[|SpeechGPT|]: <你好|> ###\n$"
    assert written(prompt, prompt.system_prompt(mode, system="Be brief.\n")) == "Be brief.\n"


def test_unknown_mode_is_refused():
    with pytest.raises(UserError, match="unknown mode 's2x'; one of s2s"):
        make().system_prompt("s2x")


@pytest.mark.parametrize(("frames", "patches"), [(0, 3), (1, 4), (17, 9), (18, 9), (19, 10)])
def test_user_speech_ends_in_silence(frames, patches):
    prompt = make()
    turn = prompt.user_speech(codes(frames))
    assert written(prompt, turn) == "[|Human|]: <" + "_" * patches + "> ###\n[|SpeechGPT|]: "
    speech = turn.codes[0][~is_silent(turn)].flatten(0, 1)
    assert torch.equal(speech[:frames], codes(frames))
    assert speech[frames:].tolist() == [SILENCE] * (3 * patches - frames)


def test_user_speech_may_arrive_in_parts():
    prompt, said = make(), codes(17)
    pieces = [
        prompt.user_speech_start(),
        prompt.speech_patches(said[:6]),
        prompt.speech_patches(said[6:15]),
        prompt.user_speech_end(said[15:]),
    ]
    for ours, whole in zip(concat(*pieces), prompt.user_speech(said), strict=True):
        assert torch.equal(ours, whole)


def test_partial_patches_are_refused():
    with pytest.raises(ValueError, match="whole patches"):
        make().speech_patches(codes(4))
    with pytest.raises(ValueError, match="one token each"):
        make().speech_patches(codes(6), [1])


def test_special_token_names_in_user_text_are_text():
    prompt = make()
    turn = prompt.user_text("say <|im_end|> and <|sosp|>")
    assert not set(turn.text[0].tolist()) & set(prompt.special_ids)
    assert "say <|im_end|> and <|sosp|>" in written(prompt, turn)


def test_reply_without_chain_of_modality():
    prompt = make()
    spoken = prompt.align_speech(codes(7), [("hello", 0.0, 0.2), ("there", 0.26, 0.28)], "Hello there")
    assert written(prompt, prompt.reply("Hi", transcript="unused")) == "Hi ###\n$"
    assert written(prompt, prompt.reply("Hello there", spoken)) == "<Hello| there|> ###\n$"


def test_reply_with_chain_of_modality():
    prompt = make(chain_of_modality=True)
    spoken = prompt.align_speech(codes(3), text="Hello")
    full = prompt.reply("Hello", spoken, transcript="what is it")
    assert written(prompt, full) == "what is it?Hello<Hello|> ###\n$"
    assert written(prompt, prompt.reply("Hello")) == "Hello ###\n$"


def test_aligned_text_leads_the_audio_by_a_patch():
    prompt, said = make(), codes(7)
    spoken = prompt.align_speech(said, [("你", 0.13, 0.2)])
    # The word begins in the recording's patch 1, which is the speech's 2.
    assert written(prompt, prompt.speech_patches(spoken.codes, spoken.tokens)) == "_你_|"
    assert spoken.codes.tolist() == [SILENCE] * 3 + said.tolist() + [SILENCE] * 2
    crowded = prompt.align_speech(codes(3), [("今天天气", 0.0, 0.1)])
    assert written(prompt, prompt.speech_patches(crowded.codes, crowded.tokens)) == "今天天气"
    assert crowded.codes[6:].tolist() == [SILENCE] * 6


def test_tts_needs_chain_of_modality():
    prompt = make(chain_of_modality=True)
    assert written(prompt, prompt.tts_prompt("Hello")).endswith(" in speech.\n\n\n[|SpeechGPT|]: Hello<")
    with pytest.raises(UserError, match="cannot read a given text aloud"):
        make().tts_prompt("Hello")


def test_turn_end_closes_open_speech():
    prompt = make()
    assert written(prompt, prompt.turn_end(speaking=True)) == "> ###\n$"
    assert written(prompt, prompt.turn_end(speaking=False)) == " ###\n$"


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("chain_of_modality", [False, True])
def test_training_example_masks_the_replies(mode, chain_of_modality):
    prompt = make(chain_of_modality)
    spoken = prompt.align_speech(codes(5), text="你好")
    user = [codes(10), codes(4)] if mode[0] == "s" else ["Hello", "what"]
    exchanges = [TurnPair(u, "你好", spoken, transcript="Hello there") for u in user]
    example = training_example(prompt, mode, exchanges)
    reply = prompt.reply("你好", spoken if mode[2] == "s" else None, "Hello there" if mode[0] == "s" else None)
    turns = [prompt.user_speech(u) if mode[0] == "s" else prompt.user_text(u) for u in user]
    whole = concat(prompt.system_prompt(mode), turns[0], reply, turns[1], reply)
    assert torch.equal(example.patches.text, whole.text) and torch.equal(example.patches.codes, whole.codes)
    learnt = Patches(
        example.patches.text[example.text_loss_mask][None], example.patches.codes[example.text_loss_mask][None]
    )
    assert written(prompt, learnt) == written(prompt, reply) * 2
    marked = example.patches.codes[example.code_loss_mask]
    assert len(marked) == (2 * len(spoken.tokens) if mode[2] == "s" else 0) and not (marked == 1024).any()


def test_phone_labels_stand_at_their_frames():
    prompt = make()
    labels = torch.arange(10)
    example = training_example(prompt, "s2t", [TurnPair(codes(10), "你好", user_phones=labels)])
    turn = example.patches.codes[0, :, 0, 0] != 1024
    labelled = example.phones[0, turn].flatten()
    assert labelled[:10].tolist() == labels.tolist() and (labelled[10:] == -1).all()
    assert (example.phones[0, ~turn] == -1).all()


def test_phone_labels_of_a_reply_are_delayed_like_its_codes():
    prompt = make()
    spoken = prompt.align_speech(codes(7), [("你好", 0.0, 0.2)], phones=torch.arange(7))
    example = training_example(prompt, "t2s", [TurnPair("你好", "你好", spoken)])
    own = example.code_loss_mask[0]
    assert example.patches.codes[0, own].flatten(0, 1)[3:10].tolist() == codes(7).tolist()
    assert example.phones[0, own].flatten()[:10].tolist() == [-1] * 3 + list(range(7))
    assert (example.phones[0, ~own] == -1).all()


def test_training_example_without_a_user_is_tts():
    prompt = make(chain_of_modality=True)
    example = training_example(prompt, "t2s", [TurnPair(None, "Hello", prompt.align_speech(codes(3), text="Hello"))])
    recital = prompt.tts_prompt("Hello")
    assert torch.equal(example.patches.text[:, : recital.text.shape[1]], recital.text)


def test_tokenizer_without_special_tokens_is_refused():
    config = LMConfig(BackboneConfig(10, 8, 1, 1, 1, 8), PatchDecoderConfig(8, 1, 1, 8))
    with pytest.raises(UserError, match=r"does not know the special token <\|im_end\|>"):
        Prompt(config, Tokenizer(models.BPE()))


def test_silence_must_be_codes():
    with pytest.raises(UserError, match="silence"):
        LMConfig(BackboneConfig(10, 8, 1, 1, 1, 8), PatchDecoderConfig(8, 1, 1, 8), codebooks=2)


def test_half_a_surrogate_pair_becomes_a_question_mark():
    prompt = make()
    assert prompt.encode("Hello \ud800") == prompt.encode("Hello ?")


def test_duration_of_a_patch_follows_from_its_frames():
    backbone, decoder = BackboneConfig(10, 8, 1, 1, 1, 8), PatchDecoderConfig(8, 1, 1, 8)
    config = LMConfig(backbone, decoder, patch_frames=5)
    assert (config.patch_samples, config.patch_seconds) == (4800, 0.2)
    assert LMConfig(backbone, decoder).patch_seconds == 0.12
