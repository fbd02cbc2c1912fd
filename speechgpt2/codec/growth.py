"""A deeper codec from a trained one, without losing what it knows.

Transformer and ConvNeXt layers add to their input what they compute, times a learnt scale. A new layer whose scale is
zero passes its input on unchanged, so the deeper codec begins with the codes and the audio of the one it grew from.
"""

from __future__ import annotations

import torch

from speechgpt2.codec.config import CodecConfig
from speechgpt2.codec.model import Codec
from speechgpt2.errors import UserError

SCALES = ("attention_scale", "ffn_scale", "gamma")  # parameters that scale what a layer adds


def grow(codec: Codec, config: CodecConfig) -> Codec:
    """Return a codec of `config` that computes what `codec` computes.

    Args:
        codec: A trained codec; it is not changed.
        config: The same widths, heads and codebooks, and as many layers or more everywhere.

    Raises:
        UserError: The configurations differ in more than the number of layers.
    """
    grown = Codec(config)
    new, known = grown.state_dict(), codec.state_dict()
    unfit = [name for name, tensor in known.items() if name not in new or new[name].shape != tensor.shape]
    if unfit:
        raise UserError(f"a codec can grow by layers only; {unfit[0]} does not fit the larger configuration")
    added = [name for name in new if name not in known]
    with torch.no_grad():
        for name in added:
            if name.rsplit(".", 1)[-1] in SCALES:
                new[name].zero_()
    grown.load_state_dict({**new, **known})
    return grown
