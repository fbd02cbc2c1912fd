"""Smoke runs: every recipe lowers its losses in small (`pytest -m smoke`), and how a configuration shrinks."""

import json

import pytest

from speechgpt2 import config as configs
from speechgpt2.codec import config as codec_presets
from speechgpt2.codec.train import CodecTrainConfig
from speechgpt2.corpus.smoke import FALLS, STEPS, check_falls, shrunken
from speechgpt2.errors import UserError
from speechgpt2.lm.config import released
from speechgpt2.lm.train import LMTrainConfig
from tests.command_line import fails, sg2
from tests.training.test_recipes import OF_CODEC, OF_MINI, OF_RELEASED, RECIPES

RUNS = [
    *(("codec", path, []) for path in OF_CODEC),
    *(("lm", path, ["--init", "mini"]) for path in OF_MINI),
    *(("lm", path, ["--init", "released"]) for path in OF_RELEASED),
]


@pytest.mark.smoke
@pytest.mark.parametrize("kind, path, init", RUNS, ids=[path.stem for _, path, _ in RUNS])
def test_recipe_lowers_its_losses(kind, path, init, tmp_path):
    result = sg2("train", kind, path, "--smoke", *init, "--out", tmp_path / "run")
    assert "smoke: mel" in result.stdout if kind == "codec" else "smoke: text" in result.stdout
    assert "no data for" not in result.stderr, "a task of the recipe has no example"
    assert (tmp_path / "run" / "best" / "validation.json").exists()


def test_every_recipe_has_a_smoke_run():
    assert {path for _, path, _ in RUNS} == {p for p in RECIPES.rglob("*.yaml") if p.name != "data.yaml"}


def test_sizes_shrink_and_still_fit():
    codec, lm = shrunken(codec_presets.released()), shrunken(released())
    assert codec.encoder_convnext.dims == (64,) * 4 and codec.encoder_convnext.depths == (1,) * 4
    assert codec.head.scales == codec_presets.released().head.scales and codec.quantizer.size == 1024
    assert (lm.backbone.width, lm.backbone.layers, lm.patch_decoder.ffn) == (64, 2, 128)
    assert lm.prompt == released().prompt


def test_phases_keep_their_share_of_the_schedule():
    config = shrunken(configs.load(CodecTrainConfig, RECIPES / "codec-released.yaml"))
    assert config.steps == STEPS
    assert (config.quantize_from, config.freeze_from, config.adversarial_from) == (10, 25, 25)
    lora = shrunken(configs.load(LMTrainConfig, RECIPES / "small" / "2-joint.yaml"))
    assert lora.lora.rank == 4 and lora.lora.targets == ("backbone.layers.*",) and lora.mix.text == 0.5


def write_log(folder, *reports):
    (folder / "log.jsonl").write_text("".join(json.dumps(report) + "\n" for report in reports))


def test_losses_that_do_not_fall_are_an_error(tmp_path, capsys):
    write_log(tmp_path, {"step": 0, "held_out/text": 9.0}, {"text": 4.0, "codes": 0.0}, {"text": 2.0, "codes": 0.0})
    check_falls(tmp_path)
    assert capsys.readouterr().out == f"smoke: text 4.000 → 2.000, 0.50 of it (at most {FALLS['text']})\n"
    for last in (3.9, float("nan")):
        write_log(tmp_path, {"text": 4.0}, {"text": last})
        with pytest.raises(UserError, match="did not fall enough: text 4"):
            check_falls(tmp_path)


def test_a_run_that_reports_no_loss_is_an_error(tmp_path):
    write_log(tmp_path, {"text": 0.0, "codes": 0.0})
    with pytest.raises(UserError, match="reports none of"):
        check_falls(tmp_path)


@pytest.mark.parametrize("option", ["--data data", "--licence MIT", "--resume", "--processes 2"])
@pytest.mark.parametrize("kind, config", [("lm", "finetune-mini.yaml"), ("codec", "finetune-codec.yaml")])
def test_smoke_refuses_options_that_it_has_no_use_for(kind, config, option, tmp_path):
    message = fails("train", kind, RECIPES / config, "--smoke", *option.split(), "--out", tmp_path / "run")
    assert f"leave out {option.split()[0]}" in message
    assert not (tmp_path / "run").exists()


def test_runs_other_than_smoke_need_data(tmp_path):
    recipe = RECIPES / "finetune-mini.yaml"
    assert "give --data" in fails("train", "lm", recipe, "--codec", "mini", "--out", tmp_path / "run")
    assert "give --codec" in fails("train", "lm", recipe, "--data", tmp_path, "--out", tmp_path / "run")
    assert "give --data" in fails("train", "codec", RECIPES / "finetune-codec.yaml", "--out", tmp_path / "run")
    assert "give --init" in fails("train", "lm", recipe, "--smoke", "--out", tmp_path / "run")
