"""Every recipe is a configuration, and its tasks fit the layout of the model that it is for."""

from pathlib import Path

import pytest

from speechgpt2 import config as configs
from speechgpt2.codec.train import CodecTrainConfig
from speechgpt2.lm.prompt import Prompt
from speechgpt2.lm.tasks import check_tasks
from speechgpt2.lm.train import LMTrainConfig
from tests.lm.tiny import tiny_config, tiny_tokenizer

RECIPES = Path(__file__).parent.parent.parent / "recipes"
STAGES = sorted((RECIPES / "small").glob("*.yaml"))
OF_MINI = [RECIPES / "finetune-mini.yaml", RECIPES / "demo-train.yaml", *sorted((RECIPES / "mini").glob("lm*.yaml"))]
OF_RELEASED = [*STAGES, RECIPES / "finetune-qlora.yaml"]
OF_CODEC = [
    p
    for p in [*sorted(RECIPES.glob("*.yaml")), *sorted((RECIPES / "mini").glob("*.yaml"))]
    if p not in [*OF_MINI, *OF_RELEASED]
]


@pytest.mark.parametrize("path", [*OF_RELEASED, *OF_MINI], ids=lambda path: path.stem)
def test_recipes_of_the_language_model(path):
    chain = path in OF_MINI
    prompt = Prompt(tiny_config(chain_of_modality=chain, tools=not chain), tiny_tokenizer())
    check_tasks(prompt, configs.load(LMTrainConfig, path).mix)


@pytest.mark.parametrize("path", OF_CODEC, ids=lambda path: path.stem)
def test_recipes_of_the_codec(path):
    assert configs.load(CodecTrainConfig, path).steps > 0


def test_there_are_four_stages():
    assert [path.stem[0] for path in STAGES] == ["0", "1", "2", "3"]
