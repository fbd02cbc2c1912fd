"""The language model that a training run begins with."""

from __future__ import annotations

from dataclasses import replace

import torch

from speechgpt2 import config as configs
from speechgpt2 import hub
from speechgpt2.codec.model import Codec
from speechgpt2.corpus.codes import CodedData
from speechgpt2.corpus.store import PAD_TO
from speechgpt2.errors import UserError
from speechgpt2.lm import config as lm_config
from speechgpt2.lm import huggingface, released
from speechgpt2.lm.config import LMConfig, PromptConfig
from speechgpt2.lm.draft_head import DraftHead
from speechgpt2.lm.model import CONFIG_FILE, SpeechLM, initialize
from speechgpt2.lm.prompt import Prompt
from speechgpt2.lm.text_model import from_text_model, read_text_model
from speechgpt2.lm.tokenizer import train_tokenizer
from speechgpt2.lm.train import LMTrainConfig

SYSTEM = "{input} to {output}\n"  # short: every token of the prompt costs a small model
PROMPT_TEXTS = [
    "speech to text\n",
    "text to speech\n",
    "[|Human|]: ",
    "[|SpeechGPT|]: ",
    " ###\n",
    " ###\n[|SpeechGPT|]: ",
] * 1000


def silence_frame(codec: Codec) -> tuple[int, ...]:
    """Return the codes of the frame that encodes silence, after a second of it."""
    device = next(codec.parameters()).device
    return tuple(codec.encode(torch.zeros(1, 25 * PAD_TO, device=device))[0, -1].tolist())


def model_to_train(
    config: LMTrainConfig, data: CodedData, codec: Codec, init: str | None, text_model: str | None
) -> SpeechLM:
    """Return the speech model `init`, or one made of `text_model`, or a new one. Raises `UserError`."""
    if init:
        return prepare_model(SpeechLM.from_pretrained(init), config, codec)
    return from_text(text_model, config, codec) if text_model else new_model(config, data, codec)


def planned_shape(config: LMTrainConfig, init: str | None, text_model: str | None) -> LMConfig:
    """Return the sizes of the model that `model_to_train` would return, from its configuration alone.

    Args:
        config: The run.
        init: "released" for the sizes of the released model, or a built-in name, a folder or a Hugging Face id.
        text_model: As for `from_text_model`.

    Raises:
        UserError: If the sizes are not given.
    """
    if init == "released":
        return lm_config.released()
    if init:
        path = hub.resolve(init, CONFIG_FILE, "config.json")
        if path.name == CONFIG_FILE:
            return configs.load(LMConfig, path)
        return released.read_config(path.parent, huggingface.open_tensors(path.parent), None)
    if config.patch_decoder is None:
        raise UserError("give --init or --text-model, or write the sizes of a new model into the configuration")
    if text_model:
        return LMConfig(read_text_model(text_model).backbone, config.patch_decoder, PromptConfig(tools=True))
    if config.backbone is None:
        raise UserError("give --init or --text-model, or write `backbone` into the configuration")
    return LMConfig(config.backbone, config.patch_decoder, PromptConfig(chain_of_modality=True))


def new_model(config: LMTrainConfig, data: CodedData, codec: Codec) -> SpeechLM:
    """Return a model with random weights, a tokenizer trained on the data's texts, and chain of modality.

    Raises:
        UserError: If the configuration lacks its sizes.
    """
    if config.backbone is None or config.patch_decoder is None:
        raise UserError("a new model needs `backbone` and `patch_decoder` in its configuration, or give --init")
    torch.manual_seed(config.seed)
    tokenizer = train_tokenizer([*data.texts(), *PROMPT_TEXTS], config.backbone.vocab)
    backbone = replace(config.backbone, vocab=tokenizer.get_vocab_size())
    q = codec.config.quantizer
    prompt = PromptConfig(chain_of_modality=True, system=SYSTEM, silence=silence_frame(codec))
    shape = LMConfig(backbone, config.patch_decoder, prompt, 3, q.codebooks, q.size, config.draft_tokens)
    return SpeechLM(shape, tokenizer)


def from_text(name: str, config: LMTrainConfig, codec: Codec) -> SpeechLM:
    """Return a speech model with the weights of a text model (lm/text_model.py) and new speech parts.

    Raises:
        UserError: If it cannot be read, or the configuration lacks the sizes of the patch decoder.
    """
    if config.patch_decoder is None:
        raise UserError("a text model needs `patch_decoder` in the configuration, the sizes of its new speech part")
    torch.manual_seed(config.seed)
    q = codec.config.quantizer
    if (q.codebooks, q.size) != (3, 1024):
        raise UserError(f"the codec has {q.codebooks} codebooks of {q.size}; a text model's layout takes 3 of 1024")
    prompt = PromptConfig(config.chain_of_modality, tools=True, transcribes=True, silence=silence_frame(codec))
    return from_text_model(name, config.patch_decoder, prompt)


def prepare_model(model: SpeechLM, config: LMTrainConfig, codec: Codec) -> SpeechLM:
    """Return `model`, with a new draft head if the configuration has one and the model has none.

    With chain of modality, its code of silence becomes that of `codec`.
    """
    shape = model.config
    if shape.prompt.chain_of_modality:
        shape = replace(shape, prompt=replace(shape.prompt, silence=silence_frame(codec)))
    if config.draft_tokens:
        shape = replace(shape, draft_tokens=config.draft_tokens)
        if model.draft_head is None:
            torch.manual_seed(config.seed)
            model.draft_head = DraftHead(shape.backbone.width)
            initialize(torch.nn.ModuleDict({"draft_head": model.draft_head}))
    model.config, model.prompt = shape, Prompt(shape, model.prompt.tokenizer)
    return model
