"""From symbols to frames: durations, pitch and energy. In float32, because this part is small."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechgpt2.styletts.layers import SLOPE, BiLSTM, Conv, ResidualBlock


@dataclass(frozen=True)
class AlbertConfig:
    """Sizes of the text model."""

    symbols: int = 178
    positions: int = 512
    embedding: int = 128
    hidden: int = 768
    intermediate: int = 2048
    heads: int = 12
    layers: int = 12


class AlbertLayer(nn.Module):
    """Self-attention and a feed-forward network, each followed by a norm: `[N, H] -> [N, H]`."""

    def __init__(self, config: AlbertConfig) -> None:
        super().__init__()
        size = config.hidden
        self.heads = config.heads
        self.query, self.key, self.value, self.dense = (nn.Linear(size, size) for _ in range(4))
        self.ffn, self.ffn_output = nn.Linear(size, config.intermediate), nn.Linear(config.intermediate, size)
        self.attention_norm, self.output_norm = nn.LayerNorm(size, 1e-12), nn.LayerNorm(size, 1e-12)

    def forward(self, x: Tensor) -> Tensor:
        """Map rows."""
        query, key, value = (
            project(x).unflatten(1, (self.heads, -1)).transpose(0, 1) for project in (self.query, self.key, self.value)
        )
        attended = F.scaled_dot_product_attention(query[None], key[None], value[None])[0]
        x = self.attention_norm(x + self.dense(attended.transpose(0, 1).flatten(1)))
        return self.output_norm(x + self.ffn_output(F.gelu(self.ffn(x), approximate="tanh")))


class Albert(nn.Module):
    """A BERT whose layers share their weights: symbols `[N]` -> `[N, H]`.

    Lan et al.: ALBERT (2019), https://arxiv.org/abs/1909.11942; trained on phonemes in StyleTTS 2.
    """

    def __init__(self, config: AlbertConfig) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(config.symbols, config.embedding)
        self.position_embeddings = nn.Embedding(config.positions, config.embedding)
        self.token_type_embeddings = nn.Embedding(2, config.embedding)  # a remainder of BERT: only the first is used
        self.norm = nn.LayerNorm(config.embedding, 1e-12)
        self.widen = nn.Linear(config.embedding, config.hidden)
        self.layer = AlbertLayer(config)
        self.layers = config.layers

    def forward(self, symbols: Tensor) -> Tensor:
        """Map ids `[N]` to rows."""
        places = self.position_embeddings.weight[: len(symbols)]
        x = self.widen(self.norm(self.word_embeddings(symbols) + self.token_type_embeddings.weight[0] + places))
        for _ in range(self.layers):
            x = self.layer(x)
        return x


class TextBlock(nn.Module):
    """Convolution, norm and activation: `[N, C] -> [N, C]`."""

    def __init__(self, size: int, kernel: int) -> None:
        super().__init__()
        self.conv, self.norm = Conv(size, size, kernel), nn.LayerNorm(size)

    def forward(self, x: Tensor) -> Tensor:
        """Map rows."""
        return F.leaky_relu(self.norm(self.conv(x)), SLOPE)


class TextEncoder(nn.Module):
    """Encodes the symbols for the decoder: ids `[N]` -> `[N, C]`."""

    def __init__(self, symbols: int, size: int, blocks: int = 3, kernel: int = 5) -> None:
        super().__init__()
        self.embedding = nn.Embedding(symbols, size)
        self.cnn = nn.ModuleList(TextBlock(size, kernel) for _ in range(blocks))
        self.lstm = BiLSTM(size, size)

    def forward(self, symbols: Tensor) -> Tensor:
        """Map ids to rows."""
        x = self.embedding(symbols)
        for block in self.cnn:
            x = block(x)
        return self.lstm(x)


class AdaptiveLayerNorm(nn.Module):
    """Layer norm whose scale and shift are computed from the style."""

    def __init__(self, style: int, channels: int) -> None:
        super().__init__()
        self.fc = nn.Linear(style, 2 * channels)

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        """Normalise each of the rows `[N, C]`."""
        gain, bias = self.fc(style).chunk(2)
        return F.layer_norm(x, x.shape[-1:]) * (1 + gain) + bias


class DurationEncoder(nn.Module):
    """LSTMs that see the style at every step: `[N, C] -> [N, C + S]`."""

    def __init__(self, size: int, style: int, layers: int = 3) -> None:
        super().__init__()
        self.lstms = nn.ModuleList()
        for _ in range(layers):
            self.lstms += [BiLSTM(size + style, size), AdaptiveLayerNorm(style, size)]

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        """Map rows under a style `[S]`."""
        beside = style.expand(len(x), -1)
        for lstm, norm in zip(self.lstms[::2], self.lstms[1::2], strict=True):
            x = norm(lstm(torch.cat([x, beside], 1)), style)
        return torch.cat([x, beside], 1)


class Contour(nn.Sequential):
    """A value at twice the rate of the frames: `[T, C] -> [2T]`."""

    def __init__(self, size: int, style: int) -> None:
        half = size // 2
        super().__init__(
            ResidualBlock(size, size, style),
            ResidualBlock(size, half, style, upsample=True),
            ResidualBlock(half, half, style),
            Conv(half, 1, 1),
        )

    def forward(self, x: Tensor, style: Tensor) -> Tensor:  # type: ignore[override]  # the blocks need the style
        """Map rows under a style `[S]`."""
        *blocks, project = self
        for block in blocks:
            x = block(x, style)
        return project(x)[:, 0]


class ProsodyPredictor(nn.Module):
    """Durations of symbols, and pitch and energy of frames."""

    def __init__(self, size: int, style: int, longest: int = 50) -> None:
        super().__init__()
        self.text_encoder = DurationEncoder(size, style)
        self.lstm = BiLSTM(size + style, size)
        self.duration_proj = nn.Linear(size, longest)  # the probabilities that a symbol lasts another frame
        self.shared = BiLSTM(size + style, size)
        self.pitch, self.energy = Contour(size, style), Contour(size, style)

    def durations(self, x: Tensor, speed: float) -> Tensor:
        """Frames of each symbol, int64 `[N]`, from the duration encoder's rows `[N, C + S]`."""
        expected = self.duration_proj(self.lstm(x)).sigmoid().sum(1) / speed
        return expected.round().clamp(min=1).long()

    def contours(self, x: Tensor, style: Tensor) -> tuple[Tensor, Tensor]:
        """Pitch in Hz and energy, `[2T]` each, from rows of frames `[T, C + S]`."""
        x = self.shared(x)
        return self.pitch(x, style), self.energy(x, style)
