"""A folder in the released layout: prompts, logits and greedy patches equal those of the reference."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from speechgpt2.errors import UserError
from speechgpt2.lm.generation import generate
from speechgpt2.lm.model import SpeechLM
from speechgpt2.lm.sampling import SamplingParams
from speechgpt2.lm.segments import AlignedSpeech, concat
from speechgpt2.types import MODES, Mode, Patches

GOLDEN = Path(__file__).parent.parent / "golden" / "lm"


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    return dict(np.load(GOLDEN / "golden.npz"))


@pytest.fixture(scope="module")
def lm() -> SpeechLM:
    return SpeechLM.from_pretrained(GOLDEN, torch.float32, patch_heads=4)


def flat(patches: Patches) -> np.ndarray:
    """Patches in the reference's layout: [4, 3·P]; row 0 holds the text id, then −100, −100."""
    text = np.full((patches.text.shape[1], 3), -100)
    text[:, 0] = patches.text[0]
    codes = patches.codes[0].flatten(0, 1).numpy()
    return np.concatenate([text.reshape(1, -1), codes.T])


def unflat(array: np.ndarray) -> Patches:
    codes = torch.from_numpy(array[1:].T.copy()).view(1, -1, 3, 3)
    return Patches(torch.from_numpy(array[:1, ::3].copy()), codes)


def prompt(lm: SpeechLM, golden: dict[str, np.ndarray], mode: Mode) -> Patches:
    greeting = AlignedSpeech(torch.from_numpy(golden["greeting_codes"]).view(-1, 3), golden["greeting_text"].tolist())
    typed = json.loads((GOLDEN / "golden.json").read_text())["text"]
    spoken = torch.from_numpy(golden[f"{mode}_user_codes"].T.copy())
    user = lm.prompt.user_speech(spoken) if mode[0] == "s" else lm.prompt.user_text(typed)
    return concat(lm.prompt.system_prompt(mode, greeting), user)


def greedy(lm: SpeechLM, patches: Patches) -> Patches:
    hidden, state = lm.prefill(patches, lm.init_state(1, patches.text.shape[1] + 40))
    drawn = [step.patches for step in generate(lm, hidden, state, SamplingParams.greedy(), max_patches=40)]
    return concat(patches, *drawn)


@pytest.mark.parametrize("mode", MODES)
def test_prompt_equals_the_reference(lm, golden, mode):
    np.testing.assert_array_equal(flat(prompt(lm, golden, mode)), golden[f"{mode}_prompt"])


@pytest.mark.parametrize("mode", MODES)
def test_greedy_patches_equal_the_reference(lm, golden, mode):
    start = prompt(lm, golden, mode)
    np.testing.assert_array_equal(flat(greedy(lm, start)), golden[f"{mode}_greedy"])
    speaking = concat(start, lm.prompt.text_patches([lm.prompt.special_ids.speech_start]))
    np.testing.assert_array_equal(flat(greedy(lm, speaking)), golden[f"{mode}_speech_greedy"])


@pytest.mark.parametrize("mode", MODES)
def test_logits_equal_the_reference(lm, golden, mode):
    patches = concat(prompt(lm, golden, mode), lm.prompt.text_patches([lm.prompt.special_ids.speech_start]))
    with torch.no_grad():
        hidden = lm(patches)
        text = lm.text_logits(hidden)[0]
        entered = lm.patch_decoder.enter(hidden[:, -1])
        codes = lm.code_logits(hidden[:, -1], torch.zeros(1, 3, 3, dtype=torch.int64))[0, 0]
    np.testing.assert_allclose(text, golden[f"{mode}_speech_text_logits"], atol=1e-4, rtol=0)
    np.testing.assert_allclose(entered, golden[f"{mode}_speech_patch_hidden"], atol=1e-4, rtol=0)
    np.testing.assert_allclose(codes, golden[f"{mode}_speech_head_logits"][:, :1024], atol=1e-4, rtol=0)


def test_second_turn_equals_the_whole_history(lm, golden):
    """A second turn after the first equals the whole history in one prefill."""
    first = unflat(golden["t2s_greedy"])  # ends with eos
    second = lm.prompt.user_text("and tomorrow")
    _, state = lm.prefill(first, lm.init_state(1, 256))
    one_by_one, state = lm.prefill(second, state)
    together, _ = lm.prefill(concat(first, second), lm.init_state(1, 256))
    torch.testing.assert_close(one_by_one, together, atol=1e-5, rtol=0)


# other ways the same weights may be stored


@pytest.fixture
def folder(tmp_path) -> Path:
    for name in ("config.json", "tokenizer.json", "special_tokens_map.json", "model.safetensors"):
        shutil.copy(GOLDEN / name, tmp_path / name)
    return tmp_path


def rewrite(folder: Path, change) -> dict[str, torch.Tensor]:
    tensors = load_file(GOLDEN / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    return tensors


def edit_config(folder: Path, change) -> None:
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


def assert_same(a: SpeechLM, b: SpeechLM) -> None:
    assert a.config == b.config
    for (name, x), (other, y) in zip(a.state_dict().items(), b.state_dict().items(), strict=True):
        assert name == other and torch.equal(x, y), name


def test_from_pretrained_recognises_the_released_layout(lm, folder):
    assert_same(SpeechLM.from_pretrained(folder, torch.float32, patch_heads=4), lm)


def test_heads_and_config_keys_may_be_absent(lm, folder):
    rewrite(folder, lambda t: [t.pop(f"local_transformer_lm_heads.{k}.weight") for k in range(3)])
    edit_config(folder, lambda c: [c.pop(key) for key in ("group_size", "n_vq", "speech_vocab_size")])
    assert_same(SpeechLM.from_pretrained(folder, torch.float32, patch_heads=4), lm)


def test_tied_embeddings_may_have_the_heads_name(lm, folder):
    rewrite(folder, lambda t: [t.pop(f"speech_embedddings.{k}.weight") for k in range(3)])
    assert_same(SpeechLM.from_pretrained(folder, torch.float32, patch_heads=4), lm)


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_shards_are_joined(lm, folder, kind):
    tensors = load_file(GOLDEN / "model.safetensors")
    (folder / "model.safetensors").unlink()
    base = "model" if kind == "safetensors" else "pytorch_model"
    files = [f"{base}-0000{i + 1}-of-00002.{kind}" for i in range(2)]
    where = {name: files[i % 2] for i, name in enumerate(tensors)}
    for file in files:
        part = {name: tensors[name] for name in tensors if where[name] == file}
        save_file(part, folder / file) if kind == "safetensors" else torch.save(part, folder / file)
    (folder / f"{base}.{kind}.index.json").write_text(json.dumps({"weight_map": where}))
    assert_same(SpeechLM.from_pretrained(folder, torch.float32, patch_heads=4), lm)
    (folder / files[1]).unlink()
    with pytest.raises(UserError, match=r"00002-of-00002.* no such file"):
        SpeechLM.from_pretrained(folder, patch_heads=4)


def test_single_legacy_pickle(lm, folder):
    (folder / "model.safetensors").unlink()
    tensors = load_file(GOLDEN / "model.safetensors")
    torch.save(tensors, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    assert_same(SpeechLM.from_pretrained(folder, torch.float32, patch_heads=4), lm)


def test_default_precision_is_bfloat16(folder):
    lm = SpeechLM.from_pretrained(folder, patch_heads=4)
    assert {p.dtype for p in lm.parameters()} == {torch.bfloat16}
    hidden, state = lm.prefill(lm.prompt.user_text("hello"), lm.init_state(1, 64))
    assert hidden.isfinite().all() and state.stack.layers[0].keys.dtype == torch.bfloat16


# what can be wrong with a folder


def test_blocks_of_a_shard_are_joined(lm, folder, monkeypatch):
    monkeypatch.setattr("speechgpt2.hub.BLOCK_BYTES", 1000)  # no multiple of a row
    assert_same(SpeechLM.from_pretrained(folder, torch.float32, patch_heads=4), lm)


def test_text_model_is_refused(folder):
    tensors = {name: t for name, t in load_file(GOLDEN / "model.safetensors").items() if "local" not in name}
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(UserError, match="not a speech model"):
        SpeechLM.from_pretrained(folder)


def test_half_a_shard_is_refused(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:100_000])
    with pytest.raises(UserError, match="only part of the file is there; download it again"):
        SpeechLM.from_pretrained(folder)


def test_pointer_of_git_lfs_is_refused(folder):
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(UserError, match="fetch it with `git lfs pull`"):
        SpeechLM.from_pretrained(folder)


def test_patch_heads_default_to_sixteen(folder):
    assert SpeechLM.from_pretrained(folder).config.patch_decoder.heads == 16


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("model.layers.1.mlp.up_proj.weight"), "lacks model.layers.1.mlp.up_proj.weight"),
        (lambda t: t.pop("model.embed_tokens.weight"), "lacks model.embed_tokens.weight"),
        (lambda t: t.update(extra=torch.zeros(1)), "holds extra, which has no place"),
        (lambda t: t.update({"model.norm.weight": torch.zeros(3)}), r"model.norm.weight is \[3\], expected \[64\]"),
        (
            lambda t: t["local_transformer_lm_heads.1.weight"].add_(1),
            "local_transformer_lm_heads.1.weight differs from speech_embedddings.1.weight",
        ),
    ],
)
def test_errors_name_wrong_tensors(folder, change, message):
    rewrite(folder, change)
    with pytest.raises(UserError, match=message):
        SpeechLM.from_pretrained(folder, patch_heads=4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(model_type="gpt2"), "model_type 'gpt2' is not supported"),
        (lambda c: c.update(rope_scaling={"type": "yarn"}), "not supported"),
        (lambda c: c.pop("hidden_size"), "missing key 'hidden_size'"),
        (lambda c: c.update(hidden_size=66), "must divide into 4 heads"),
    ],
)
def test_errors_name_wrong_configurations(folder, change, message):
    edit_config(folder, change)
    with pytest.raises(UserError, match=message):
        SpeechLM.from_pretrained(folder, patch_heads=4)


def test_damaged_and_empty_folders_are_refused(folder, tmp_path):
    (folder / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(UserError, match="damaged"):
        SpeechLM.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match="holds neither"):
        SpeechLM.from_pretrained(folder)
