"""Training of the language model on packed conversations.

Every step packs conversations into rows and learns, at the masked positions only, the next text token and the next
patch's codes. Filler counts less than words, deeper codebooks less than the first. Some codes of the model's own
speech are replaced in the input, because generated speech is not perfect either. An auxiliary linear layer, which only
training has, predicts the phones of the user's last patch from the hidden state: words alone, two or three a second,
teach recognition slowly. A draft head learns to propose the tokens after the next one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechgpt2.lm.config import BackboneConfig, PatchDecoderConfig
from speechgpt2.lm.example import TrainingExample
from speechgpt2.lm.model import SpeechLM
from speechgpt2.training import distributed, run
from speechgpt2.training.labels import UNKNOWN, cross_entropy
from speechgpt2.training.run import RunFolder, WeightAverage, generators, has_fast_bf16, learning_rate
from speechgpt2.types import Patches

IGNORED = -100  # a target without loss


class ExampleSource(Protocol):
    """Source of conversations, see `speechgpt2.corpus.lm_dataset`. `phones` are the names of the phone labels."""

    phones: tuple[str, ...]

    def example(self, random: np.random.Generator) -> TrainingExample:
        """Return a random conversation."""
        ...


class Batch(NamedTuple):
    """Packed rows: `patches [B, P]`, and the other fields as in `TrainingExample`.

    `segments [B, P]` numbers the examples of a row; −1 is padding.
    """

    patches: Patches
    segments: Tensor
    targets: Tensor
    text_loss_mask: Tensor
    code_loss_mask: Tensor
    phones: Tensor


@dataclass(frozen=True)
class LMTrainConfig:
    """Configuration of a run. A step sees `rows` × `row_patches` positions. `code_weights` are per codebook."""

    backbone: BackboneConfig  # `vocab` limits the tokenizer that is trained on the corpus
    patch_decoder: PatchDecoderConfig
    steps: int = 4000
    rows: int = 2
    row_patches: int = 384
    peak_lr: float = 1e-3
    warmup: int = 200
    betas: tuple[float, ...] = (0.9, 0.98)
    weight_decay: float = 0.05
    clip: float = 1.0
    average: float = 0.998
    code_weights: tuple[float, ...] = (0.5, 0.3, 0.2)
    codes_weight: float = 0.5  # all codes, relative to text
    phones_weight: float = 0.5  # the user's phones
    filler_weight: float = 0.3
    draft_tokens: int = 0  # tokens that a new draft head proposes
    draft_weight: float = 0.2  # loss of the draft head
    corrupt: float = 0.1  # share of the model's own frames that are replaced in the input
    seed: int = 0
    report_every: int = 50
    save_every: int = 250


def train(
    config: LMTrainConfig,
    model: SpeechLM,
    source: ExampleSource,
    folder: str,
    resume: bool = False,
    device: str = "cpu",
) -> SpeechLM:
    """Train `model` to `config.steps`, with checkpoints in `folder`, where the averaged model is saved as well."""
    run.train(LMTrainer(config, model, source, torch.device(device)), config, folder, resume, "lm")
    return model


class LMTrainer:
    """Model, phone head, optimizer and weight average."""

    def __init__(self, config: LMTrainConfig, model: SpeechLM, source: ExampleSource, device: torch.device):
        self.config, self.source, self.device = config, source, device
        self.model = model.to(device).train()
        labels = self.model.config.patch_frames * len(source.phones)
        self.phone_head = nn.Linear(self.model.config.backbone.width, labels).to(device)
        self.modules = nn.ModuleDict({"model": self.model, "phone_head": self.phone_head})
        distributed.broadcast_weights(self.modules)
        self.average = WeightAverage(model, config.average)
        decayed = [p for p in self.modules.parameters() if p.dim() > 1]
        others = [p for p in self.modules.parameters() if p.dim() <= 1]
        groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=0.0, betas=config.betas, fused=True)  # type: ignore[arg-type]
        self.autocast = torch.autocast(device.type, torch.bfloat16, enabled=has_fast_bf16(device))
        prompt = model.prompt
        self.token_weight = torch.ones(model.config.backbone.vocab, device=device)
        self.token_weight[[prompt.special_ids.filler, prompt.special_ids.last_filler]] = config.filler_weight

    def step(self, step: int) -> dict[str, Tensor]:
        """Take one optimizer step and return losses and accuracies."""
        config = self.config
        random, generator = generators(config.seed, step)
        batch = pack(self.source, random, config.rows, config.row_patches, self.model.prompt.special_ids.eos)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(step, config.steps, config.peak_lr, config.warmup)
        terms, values = self.losses(batch, generator)
        self.optimizer.zero_grad(set_to_none=True)
        loss = terms["text"] + config.codes_weight * terms["codes"] + config.phones_weight * terms["phones"]
        if "draft" in terms:
            loss = loss + config.draft_weight * terms["draft"]
        loss.backward()
        distributed.average_gradients(self.modules.parameters())
        values["grad_norm"] = nn.utils.clip_grad_norm_(self.modules.parameters(), config.clip)
        self.optimizer.step()
        self.average.update(self.model, step)
        return {**terms, **values}

    def losses(self, batch: Batch, generator: torch.Generator) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return the losses, and the accuracies of text tokens and phones."""
        patches, segments, targets, text_loss_mask, code_loss_mask, phones = batch
        corrupted = Patches(patches.text, corrupt(patches.codes, code_loss_mask, self.config.corrupt, generator))
        corrupted, patches = _to(corrupted, self.device), _to(patches, self.device)
        text_loss_mask, code_loss_mask = text_loss_mask[:, 1:].to(self.device), code_loss_mask[:, 1:].to(self.device)
        with self.autocast:
            hidden = self.model(corrupted, segments.to(self.device))
            phone_loss, phones_right = self._phone_loss(hidden, phones.to(self.device))
            hidden = hidden[:, :-1]
            draft_loss, drafts_right = self._draft_loss(hidden, patches, text_loss_mask, segments.to(self.device))
            logits = self.model.text_logits(hidden[text_loss_mask]).float()
            targets = targets[:, 1:].to(self.device)[text_loss_mask]
            text = F.cross_entropy(logits, targets, weight=self.token_weight)
            wanted = patches.codes[:, 1:][code_loss_mask]  # [N, G, K]
            code_logits = self.model.code_logits(hidden[code_loss_mask], wanted).float()
        each = F.cross_entropy(code_logits.flatten(0, 2), wanted.flatten(), reduction="none").view(-1, wanted.shape[-1])
        each = each.sum(0) / max(len(each), 1)  # a batch may hold no speech
        codes = (each * torch.tensor(self.config.code_weights, device=self.device)).sum()
        words = self.token_weight[targets] == 1
        right = (logits.argmax(-1) == targets)[words].float().mean()
        return {"text": text, "codes": codes, "phones": phone_loss, **draft_loss}, {
            "words_right": right,
            "phones_right": phones_right,
            **drafts_right,
            **{f"code_{k}": m for k, m in enumerate(each)},
        }

    def _phone_loss(self, hidden: Tensor, phones: Tensor) -> tuple[Tensor, Tensor]:
        """Return the cross-entropy and the accuracy of phones, both 0 if no phone is known.

        They are predicted one patch late, when the sound that follows a phone is known, too.

        Args:
            hidden: `[B, P, D]`.
            phones: `[B, P, G]`.
        """
        wanted = phones[:, :-1]  # [B, P − 1, G]
        known = (wanted != UNKNOWN).any(-1)
        wanted = wanted[known]
        logits = self.phone_head(hidden[:, 1:][known]).float().unflatten(-1, (phones.shape[-1], -1))  # [N, G, labels]
        right = (logits.argmax(-1) == wanted).sum() / (wanted != UNKNOWN).sum().clamp(min=1)
        return cross_entropy(logits, wanted), right

    def _draft_loss(
        self, hidden: Tensor, patches: Patches, text_loss_mask: Tensor, segments: Tensor
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return the draft head's cross-entropy and the acceptance rate of each drafted token, if there is a head.

        A drafted token is accepted if it and all before it are right.

        Args:
            hidden: `[B, P − 1, D]`.
            patches: `[B, P]`.
            text_loss_mask: Mask of the targets, `[B, P − 1]`.
            segments: `[B, P]`.
        """
        draft_head = self.model.draft_head
        if draft_head is None:
            return {}, {}
        writes = text_loss_mask & (patches.codes[:, 1:, 0, 0] == self.model.config.no_speech)
        tokens, same = patches.text[:, 1:], segments[:, 2:] == segments[:, 1:-1]
        x, follows, losses, values = hidden, writes, [], {}
        before = torch.ones_like(writes)
        for i in range(self.model.config.draft_tokens):
            # x[:, p] predicts tokens[:, p + i]; its successor predicts the token after that.
            x = draft_head(x[:, :-1], self.model.text_embedding(tokens[:, i : tokens.shape[1] - 1]))
            follows = follows[:, :-1] & writes[:, i + 1 :] & same[:, i:]
            logits = self.model.text_logits(x[follows]).float()
            wanted = tokens[:, i + 1 :][follows]
            losses.append(F.cross_entropy(logits, wanted) if len(wanted) else logits.sum())
            right = torch.zeros_like(follows)
            right[follows] = logits.argmax(-1) == wanted
            before = before[:, :-1] & right
            values[f"draft_{i + 1}_right"] = before.sum() / follows.sum().clamp(min=1)
        return {"draft": torch.stack(losses).mean()}, values

    def content(self, step: int) -> dict[str, Any]:
        """Return everything that the next step depends on."""
        return {
            "step": step,
            "modules": self.modules.state_dict(),
            "average": self.average.values,
            "optimizer": self.optimizer.state_dict(),
        }

    def restore(self, content: dict[str, Any] | None) -> int:
        """Restore a checkpoint and return the step to continue from."""
        if content is None:
            return 0
        self.modules.load_state_dict(content["modules"])
        self.average.values = {name: value.to(self.device) for name, value in content["average"].items()}
        self.optimizer.load_state_dict(content["optimizer"])
        return content["step"]

    def export(self, run: RunFolder, step: int) -> None:
        """Write the averaged model to the run's folder."""
        averaged = SpeechLM(self.model.config, self.model.prompt.tokenizer)
        self.average.copy_to(averaged)
        averaged.save_pretrained(run.folder)


def pack(source: ExampleSource, random: np.random.Generator, rows: int, patches: int, filler: int) -> Batch:
    """Fill `rows` rows of `patches` positions with whole examples. An example that is longer than a row is cut."""
    packed = [_row(source, random, patches) for _ in range(rows)]
    return Batch(
        Patches(
            torch.stack([_padded([e.patches.text for e in row], patches, filler) for row in packed]),
            torch.stack([_padded([e.patches.codes for e in row], patches, 0) for row in packed]),
        ),
        torch.stack(
            [_padded([torch.full_like(e.patches.text, i) for i, e in enumerate(row)], patches, -1) for row in packed]
        ),
        torch.stack([_padded([e.targets for e in row], patches, filler) for row in packed]),
        torch.stack([_padded([_targets(e.text_loss_mask) for e in row], patches, False) for row in packed]),
        torch.stack([_padded([_targets(e.code_loss_mask) for e in row], patches, False) for row in packed]),
        torch.stack([_padded([e.phones for e in row], patches, -1) for row in packed]),
    )


def _row(source: ExampleSource, random: np.random.Generator, patches: int) -> list[TrainingExample]:
    row: list[TrainingExample] = []
    filled = 0
    while True:
        example = source.example(random)
        length = example.patches.text.shape[1]
        if filled + length > patches and row:
            return row
        row.append(example)
        filled += length


def _targets(mask: Tensor) -> Tensor:
    """Clear the first position of an example, which nothing precedes."""
    mask = mask.clone()
    mask[:, 0] = False
    return mask


def _padded(parts: list[Tensor], length: int, value: float | bool) -> Tensor:
    """Concatenate parts `[1, p, …]` and cut or pad them to `[length, …]`."""
    joined = torch.cat(parts, dim=1)[0, :length]
    fill = joined.new_full((length - len(joined), *joined.shape[1:]), value)
    return torch.cat([joined, fill])


def corrupt(codes: Tensor, rows: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Return `codes [B, P, G, K]` in which a share of the frames of the patches `rows [B, P]` are permuted."""
    if not share or not rows.any():
        return codes
    codes = codes.clone()
    own = codes[rows]  # [N, G, K]
    frames = own.flatten(0, 1)
    swapped = frames[torch.randperm(len(frames), generator=generator)]
    chosen = torch.rand(len(frames), 1, generator=generator) < share
    codes[rows] = torch.where(chosen, swapped, frames).view_as(own)
    return codes


def _to(patches: Patches, device: torch.device) -> Patches:
    return Patches(patches.text.to(device), patches.codes.to(device))
