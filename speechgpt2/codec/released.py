"""The released codec checkpoint: `sg2_codec_ckpt.pkl` with its YAML file. This module alone knows its names.

The checkpoint is a bare state dict. It is read with `weights_only=True`, so no code in it is executed. Weight norm is
folded into plain weights; streaming buffers and training statistics are dropped.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from speechgpt2 import config as configs
from speechgpt2 import hub
from speechgpt2.codec.config import CodecConfig, HiFiGANConfig, MelConfig, QuantizerConfig, released
from speechgpt2.codec.hifigan import fold_weight_norm
from speechgpt2.errors import UserError
from speechgpt2.nn.convnext import ConvNeXtConfig
from speechgpt2.nn.transformer import TransformerConfig

HUB_ID, CHECKPOINT = "fnlp/SpeechGPT-2.0-preview-Codec", "sg2_codec_ckpt.pkl"
SUFFIXES = (".pkl", ".pt", ".pth", ".ckpt")  # of a checkpoint file
IGNORED = re.compile(r"\.pad_buffer$|\.codebook\.layers\.\d+\.(inited|cluster_size|embed_avg)$")

# Applied in order to each released name.
RENAMES: list[tuple[str, str | Callable[[re.Match[str]], str]]] = [
    (r"^mel_transform\.window$", "encoder.mel.window"),
    (r"^mel_transform\.melmat$", "encoder.mel.filters"),
    (r"^encoder_(convnext|transformer)\.", r"encoder.\1."),
    (r"^decoder_(convnext|transformer)\.", r"decoder.\1."),
    (r"^encoder_extra_down_sample_1\.conv\.conv\.conv\.", "encoder.down.0.conv."),
    (r"^encoder_extra_down_sample_2\.conv\.conv\.conv\.", "encoder.down.1.conv."),
    (r"^quantizer\.codebook\.layers\.", "quantizer.codebooks."),
    (r"^post_projector\.project\.conv\.", "decoder.widen."),
    (r"^vq_transformer\.", "decoder.vq_transformer."),
    (r"^post_projector_of_vq_transformer\.project\.conv\.", "decoder.narrow."),
    (r"^decoder_extra_up_sample_1\.deconv\.", "decoder.up.0."),
    (r"^decoder_extra_up_sample_2\.deconv\.", "decoder.up.1."),
    (r"^decoder_hifigan\.", "decoder.head."),
    # ConvNeXt
    (r"\.downsample_layers\.0\.0\.conv\.", ".stem."),
    (r"\.downsample_layers\.0\.1\.", ".stem_norm."),
    (r"\.downsample_layers\.(\d+)\.0\.", lambda m: f".transitions.{int(m[1]) - 1}.0."),
    (r"\.downsample_layers\.(\d+)\.1\.conv\.", lambda m: f".transitions.{int(m[1]) - 1}.1."),
    (r"\.dwconv\.conv\.", ".depthwise."),
    (r"\.pwconv1\.", ".expand."),
    (r"\.pwconv2\.", ".project."),
    # transformer
    (r"\.transformer\.transformer\.layers\.", ".transformer.layers."),
    (r"\.vq_transformer\.transformer\.layers\.", ".vq_transformer.layers."),
    (r"\.self_attn\.in_proj_weight$", ".attention.in_proj.weight"),
    (r"\.self_attn\.out_proj\.", ".attention.out_proj."),
    (r"\.norm1\.", ".attention_norm."),
    (r"\.norm2\.", ".ffn_norm."),
    (r"(layers\.\d+)\.linear1\.", r"\1.expand."),
    (r"(layers\.\d+)\.linear2\.", r"\1.project."),
    (r"\.layer_scale_1\.scale$", ".attention_scale"),
    (r"\.layer_scale_2\.scale$", ".ffn_scale"),
    # HiFi-GAN
    (r"\.head\.input_conv\.conv\.", ".head.input."),
    (r"\.head\.output_conv\.conv\.", ".head.output."),
    (r"\.head\.upsamples\.(\d+)\.deconv\.", r".head.up.\1."),
    (r"\.convs1\.(\d+)\.conv\.", r".dilated.\1."),
    (r"\.convs2\.(\d+)\.conv\.", r".plain.\1."),
    (r"\.conv_out\.", ".mix."),
]


def find(name: str | Path, file_name: str) -> Path:
    """Return the file that identifies the codec `name`: `file_name` in a folder of this project, or a released file.

    Raises:
        UserError: If there is none.
    """
    path = Path(name)
    if path.suffix in SUFFIXES:
        return path
    try:
        return hub.resolve(name, file_name, CHECKPOINT, "*.pkl")
    except UserError as error:
        if (path / "config.json").is_file():
            raise UserError(f"{name}: a language model without a codec; name the codec too: --codec {HUB_ID}") from None
        raise error from None


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read the bare state dict in `path`.

    Raises:
        UserError: If it is absent, damaged or holds anything but tensors.
    """
    hub.check_file(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError, OSError) as error:
        raise UserError(f"{path}: not a PyTorch state dict ({str(error).splitlines()[0][:120]})") from None
    if not isinstance(state, dict) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise UserError(f"{path}: not a bare state dict of tensors")
    return state


def rename(state: Mapping[str, Tensor], reference: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Turn released names and weight norm into this package's names and plain weights.

    Args:
        state: The released state dict.
        reference: The state dict of a codec of the same configuration, for its shapes.

    Returns:
        Tensors by this package's names. Whether they fit is for the caller to check.

    Raises:
        UserError: If one half of a weight-norm pair is missing.
    """
    renamed = {}
    for name, tensor in state.items():
        if IGNORED.search(name) or name.endswith(".original1"):
            continue
        if name.endswith(".parametrizations.weight.original0"):
            v = state.get(name[:-1] + "1")
            if v is None:
                raise UserError(f"the checkpoint holds {name} but not its pair original1")
            tensor, name = fold_weight_norm(tensor, v), name.replace(".parametrizations.weight.original0", ".weight")
        else:
            tensor = tensor.clone()  # so that nothing keeps the file mapped
        for pattern, new in RENAMES:
            name = re.sub(pattern, new, name)
        expected = reference.get(name)
        if expected is not None and tensor.dim() == 3 and expected.dim() == 2 and tensor.shape[2] == 1:
            tensor = tensor[..., 0]  # a 1×1 convolution is a matrix
        renamed[name] = tensor
    return renamed


def read_config(checkpoint: Path, path: str | Path | None) -> CodecConfig:
    """Read the codec's sizes from the released YAML file (`generator_params: …`).

    Args:
        checkpoint: The checkpoint file.
        path: The YAML file; None means the only one beside the checkpoint, or else the released sizes.

    Raises:
        UserError: If the file is not of that kind.
    """
    if path is None:
        beside = sorted(checkpoint.parent.glob("*.yaml")) if checkpoint.parent.is_dir() else []
        if len(beside) != 1:
            return released()
        path = beside[0]
    content = configs.read(path)
    values = content.get("generator_params", content) if isinstance(content, dict) else None
    if not isinstance(values, dict) or "encoder_convnext_kwargs" not in values:
        raise UserError(
            f"{path}: not a released codec configuration (no generator_params with encoder_convnext_kwargs)"
        )
    try:
        return _config(values)
    except (KeyError, TypeError, IndexError) as error:
        raise UserError(f"{path}: not a released codec configuration ({type(error).__name__}: {error})") from None


def _config(p: dict[str, Any]) -> CodecConfig:
    mel, head = p["mel_kwargs"], p["decoder_hifigan_kwargs"]
    return CodecConfig(
        mel=MelConfig(mel["num_mels"], mel.get("win_length") or mel["fft_size"], mel["hop_size"]),
        encoder_convnext=_convnext(p["encoder_convnext_kwargs"]),
        encoder_transformer=_transformer(p["encoder_transformer_kwargs"]),
        quantizer=QuantizerConfig(p["quantizer_kwargs"]["codebook_num"], p["quantizer_kwargs"]["codebook_size"]),
        vq_transformer=_transformer(p["vq_transformer_kwargs"]),
        decoder_transformer=_transformer(p["decoder_transformer_kwargs"]),
        decoder_convnext=_convnext(p["decoder_convnext_kwargs"]),
        head=HiFiGANConfig(
            channels=head["channels"],
            scales=tuple(head["upsample_scales"]),
            kernel=head["kernel_size"],
            block_kernel=head["resblock_kernel_sizes"][0],
            dilations=tuple(head["resblock_dilations"][0]),
            groups=head["groups"],
        ),
    )


def _convnext(p: dict[str, Any]) -> ConvNeXtConfig:
    return ConvNeXtConfig(tuple(p["depths"]), tuple(p["dims"]), p["kernel_size"], float(p.get("drop_path_rate", 0)))


def _transformer(p: dict[str, Any]) -> TransformerConfig:
    return TransformerConfig(
        p["d_model"], p["num_heads"], p["num_layers"], p["dim_feedforward"], p["context"], float(p["max_period"])
    )
