"""Initialise a speech model from a text model of Hugging Face or of a GGUF file.

lm = from_text_model("Qwen/Qwen3-0.6B", PatchDecoderConfig(width=1024, layers=8, heads=16, ffn=4096))
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from tokenizers import Tokenizer

from speechgpt2 import config as configs
from speechgpt2 import hub
from speechgpt2.errors import UserError
from speechgpt2.lm import huggingface
from speechgpt2.lm.config import BackboneConfig, LMConfig, PatchDecoderConfig, PromptConfig
from speechgpt2.lm.families import read_backbone
from speechgpt2.lm.gguf import GGUFModel
from speechgpt2.lm.model import SpeechLM
from speechgpt2.lm.tokenizer import special_tokens


class TextModel(NamedTuple):
    """A text model whose weights are not read yet: `rows` of its embedding, and `path` of its configuration."""

    backbone: BackboneConfig
    tensors: huggingface.Tensors
    rows: int
    tokenizer: Tokenizer
    eos: str
    path: Path


def read_text_model(name: str | Path) -> TextModel:
    """Open a folder, a Hugging Face id or a GGUF file.

    Raises:
        UserError: If it cannot be read or its family is not supported.
    """
    tensors: huggingface.Tensors
    if str(name).endswith(".gguf"):
        path = Path(name)
        if not path.is_file():
            raise UserError(f"{name}: no such file")
        file = GGUFModel(path)
        tensors, content, tokenizer, eos = file.tensors, file.content, file.tokenizer(), file.eos()
    else:
        path = hub.resolve(name, "config.json")
        folder = path.parent
        tensors, content = huggingface.open_tensors(folder), configs.read(path)
        tokenizer, eos = hub.load_tokenizer(folder), huggingface.read_eos(folder)
    rows = huggingface.shape_of(tensors, "model.embed_tokens.weight", path)[0]
    return TextModel(read_backbone(content, rows, path), tensors, rows, tokenizer, eos, path)


def from_text_model(
    name: str | Path, patch_decoder: PatchDecoderConfig, prompt: PromptConfig | None = None
) -> SpeechLM:
    """Return a speech model whose backbone and text embedding are those of a text model.

    Its speech parts have random weights. The tokenizer gains the special tokens that it lacks, and the text embedding
    gains rows for them if needed.

    Args:
        name: A folder, a Hugging Face id of one of the families in lm/families/, or a GGUF file.
        patch_decoder: Sizes of the patch decoder. Its rotary frequencies do not depend on the text model.
        prompt: The chat template; its end of sequence is replaced by that of the text model. None means the released
            template, which lists tools.

    Raises:
        UserError: If it cannot be read or its family is not supported.
    """
    text = read_text_model(name)
    prompt = replace(prompt or PromptConfig(tools=True), eos=text.eos)
    text.tokenizer.add_special_tokens(special_tokens(prompt))
    backbone = replace(text.backbone, vocab=max(text.rows, text.tokenizer.get_vocab_size()))
    lm = SpeechLM(LMConfig(backbone, patch_decoder, prompt), text.tokenizer)
    if lm.text_head is None:
        huggingface.tie(text.tensors, [("lm_head.weight", "model.embed_tokens.weight")], text.path)
    places = huggingface.text_places(lm.text_embedding, lm.text_head, lm.backbone)
    for vocabulary in {"model.embed_tokens.weight", "lm_head.weight"} & places.keys():
        places[vocabulary] = places[vocabulary][: text.rows]
    huggingface.fill(places, text.tensors, text.path)
    with torch.no_grad():
        lm.patch_decoder.codes.table[:, -1] = 0  # "no speech" adds nothing, so text is read as the text model reads it
    return lm.eval()
