"""Begin a speech model with the weights of a text model from Hugging Face.

lm = from_text_model("Qwen/Qwen3-0.6B", PatchDecoderConfig(width=1024, layers=8, heads=16, ffn=4096))
"""

from __future__ import annotations

from pathlib import Path

from speechgpt2 import config as configs
from speechgpt2 import hub
from speechgpt2.lm import huggingface
from speechgpt2.lm.config import LMConfig, PatchDecoderConfig, PromptConfig
from speechgpt2.lm.families import read_backbone
from speechgpt2.lm.model import SpeechLM
from speechgpt2.lm.tokenizer import special_tokens


def from_text_model(
    name: str | Path, patch_decoder: PatchDecoderConfig, prompt: PromptConfig | None = None
) -> SpeechLM:
    """Return a speech model whose backbone and text embedding are those of a text model.

    Its speech parts have random weights. The tokenizer gains the special tokens that it lacks, and the text embedding
    gains rows for them if needed.

    Args:
        name: A folder or a Hugging Face id of one of the families in lm/families/.
        patch_decoder: Sizes of the patch decoder.
        prompt: The chat template; None means the released one with the text model's end of sequence.

    Raises:
        UserError: If it cannot be read or its family is not supported.
    """
    path = hub.resolve(name, "config.json")
    folder, tensors = path.parent, huggingface.read_tensors(path.parent)
    rows = huggingface.shape_of(tensors, "model.embed_tokens.weight", folder)[0]
    prompt = prompt or PromptConfig(eos=huggingface.read_eos(folder))
    tokenizer = hub.load_tokenizer(folder)
    tokenizer.add_special_tokens(special_tokens(prompt))
    backbone = read_backbone(configs.read(path), max(rows, tokenizer.get_vocab_size()), path)
    lm = SpeechLM(LMConfig(backbone, patch_decoder, prompt), tokenizer)
    if lm.text_head is None:
        huggingface.tie(tensors, [("lm_head.weight", "model.embed_tokens.weight")], folder)
    places = huggingface.text_places(lm.text_embedding, lm.text_head, lm.backbone)
    for vocabulary in {"model.embed_tokens.weight", "lm_head.weight"} & places.keys():
        places[vocabulary] = places[vocabulary][:rows]
    huggingface.fill(places, tensors, folder)
    return lm.eval()
