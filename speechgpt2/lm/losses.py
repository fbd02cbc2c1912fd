"""The losses of the language model on a batch, as one module, which can be compiled and sharded as a whole.

Every term is a sum over positions divided by a total over all batches of the step, on all processes, so that the
gradient does not depend on how a step is divided into batches.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechgpt2.lm.adapters import text_logits
from speechgpt2.lm.model import SpeechLM
from speechgpt2.lm.packing import Batch
from speechgpt2.training.labels import UNKNOWN
from speechgpt2.types import Patches


class TermWeights(NamedTuple):
    """Weights of the terms: text, the codes of all codebooks and of each, phones, drafts; filler relative to words.

    `phones` is that of the user's phones, `spoken_phones` that of the model's own.
    """

    text: float
    codes: float
    codebooks: tuple[float, ...]
    phones: float
    draft: float
    filler: float
    spoken_phones: float = 0.0


class LMLosses(nn.Module):
    """Model and phone heads. `phones` is the number of phone labels."""

    def __init__(self, model: SpeechLM, phones: int, weights: TermWeights):
        super().__init__()
        self.model, self.weights = model, weights
        self.phone_head = nn.Linear(model.config.backbone.width, model.config.patch_frames * phones)
        # Made last, so that a run without it begins with the same weights.
        self.spoken_phone_head = copy.deepcopy(self.phone_head) if weights.spoken_phones else None
        token_weight = torch.ones(model.config.backbone.vocab)
        token_weight[[model.prompt.special_ids.filler, model.prompt.special_ids.last_filler]] = weights.filler
        self.register_buffer("token_weight", token_weight, persistent=False)
        self.register_buffer("codebook_weight", torch.tensor(weights.codebooks), persistent=False)

    def totals(self, batch: Batch) -> Tensor:
        """Return the divisors of the terms: text, codes, phones, spoken phones, and one for each draft token."""
        text_mask = batch.text_loss_mask[:, 1:]
        weight: Tensor = self.token_weight  # type: ignore[assignment]
        counts = [
            weight[batch.targets[:, 1:][text_mask]].sum(),
            batch.code_loss_mask[:, 1:].sum() * batch.phones.shape[-1],
            (_user_phones(batch) != UNKNOWN).sum(),
            (_own_phones(batch) != UNKNOWN).sum(),
            *(mask.sum() for mask in self._drafted(batch)),
        ]
        return torch.stack([count.float() for count in counts])

    def forward(self, batch: Batch, totals: Tensor) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
        """Return the loss, its terms, and accuracies.

        Args:
            batch: The batch, on the model's device.
            totals: The sum of `totals` of all batches of the step.
        """
        text_total, code_total, phone_total, spoken_total, *draft_totals = totals.clamp(min=1e-9).unbind()
        w = self.weights
        # In float32 even where frozen embeddings are in half precision: it is the residual stream.
        embedded = self.model.embed(batch.inputs).float()
        hidden, _ = self.model.backbone(embedded, segments=batch.segments)
        # The phones of the user are predicted one patch later, because the audio after a phone helps to recognise it.
        phones, phones_right = _phone_error(self.phone_head, hidden[:, 1:], _user_phones(batch))
        terms, values = {"phones": phones / phone_total}, {"phones_right": phones_right}
        hidden = hidden[:, :-1]
        if self.spoken_phone_head is not None:
            spoken, values["spoken_right"] = _phone_error(self.spoken_phone_head, hidden, _own_phones(batch))
            terms["spoken_phones"] = spoken / spoken_total
        draft, drafts_right = self._drafts(hidden, batch, draft_totals)
        text, words_right = self._text(hidden, batch)
        code_terms = self._codes(hidden, batch) / code_total  # [K]
        codebook_weight: Tensor = self.codebook_weight  # type: ignore[assignment]
        codes = (code_terms * codebook_weight).sum()
        terms = {"text": text / text_total, "codes": codes, **terms, **draft}
        loss = w.text * terms["text"] + w.codes * codes + w.phones * terms["phones"] + w.draft * draft.get("draft", 0.0)
        loss = loss + w.spoken_phones * terms.get("spoken_phones", 0.0)
        for k, value in enumerate(code_terms):
            terms[f"code_{k}"] = value
        terms = {name: term.detach() for name, term in terms.items()}
        return loss, terms, {"words_right": words_right, **values, **drafts_right}

    def text_error(self, patches: Patches) -> Tensor:
        """Return the summed cross-entropy of all text tokens of `patches [1, P]` but the first."""
        hidden, _ = self.model.backbone(self.model.embed(patches).float())
        logits = text_logits(self.model, hidden[0, :-1]).float()
        return F.cross_entropy(logits, patches.text[0, 1:], reduction="sum")

    def errors(self, batch: Batch) -> Tensor:
        """Return the sums that held-out losses are made of, `[3 + K]`.

        They are the error of text and the weight of its tokens, the number of codes of each codebook, and the error of
        each codebook.
        """
        hidden, _ = self.model.backbone(self.model.embed(batch.inputs).float(), segments=batch.segments)
        hidden = hidden[:, :-1]
        text, codes = self._text(hidden, batch)[0], self._codes(hidden, batch)
        return torch.cat([text[None], self.totals(batch)[:2], codes]).float()

    def _text(self, hidden: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the summed cross-entropy of text, and the accuracy of words."""
        mask = batch.text_loss_mask[:, 1:]
        logits, targets = text_logits(self.model, hidden[mask]).float(), batch.targets[:, 1:][mask]
        weight: Tensor = self.token_weight  # type: ignore[assignment]
        accuracy = (logits.argmax(-1) == targets)[weight[targets] == 1].float().mean()
        return F.cross_entropy(logits, targets, weight=weight, reduction="sum"), accuracy

    def _codes(self, hidden: Tensor, batch: Batch) -> Tensor:
        """Return the summed cross-entropy of the codes of each codebook, `[K]`."""
        mask = batch.code_loss_mask[:, 1:]
        targets = batch.patches.codes[:, 1:][mask]  # [N, G, K]
        logits = self.model.code_logits(hidden[mask], targets).float()
        errors = F.cross_entropy(logits.flatten(0, 2), targets.flatten(), reduction="none")
        return errors.view(-1, targets.shape[-1]).sum(0)

    def _drafted(self, batch: Batch) -> list[Tensor]:
        """Return for each draft token the mask of the positions whose hidden state it follows from.

        There are none without a draft head, or if its loss has no weight, which saves a sixth of a step's time.
        """
        if self.model.draft_head is None or not self.weights.draft:
            return []
        written = batch.patches.codes[:, 1:, 0, 0] == self.model.config.no_speech
        writes = batch.text_loss_mask[:, 1:] & written
        same_segment = batch.segments[:, 2:] == batch.segments[:, 1:-1]
        masks, follows = [], writes
        for i in range(self.model.config.draft_tokens):
            follows = follows[:, :-1] & writes[:, i + 1 :] & same_segment[:, i:]
            masks.append(follows)
        return masks

    def _drafts(
        self, hidden: Tensor, batch: Batch, totals: Sequence[Tensor]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return the draft head's cross-entropy and the acceptance rate of each drafted token, if there is a head.

        A drafted token is accepted if it and all before it are right.
        """
        masks = self._drafted(batch)
        if not masks or self.model.draft_head is None:
            return {}, {}
        tokens, x, losses, values = batch.patches.text[:, 1:], hidden, [], {}
        before = torch.ones_like(tokens, dtype=torch.bool)
        for i, follows in enumerate(masks):
            # x[:, p] predicts tokens[:, p + i]; its successor predicts the token after that.
            x = self.model.draft_head(x[:, :-1], self.model.text_embedding(tokens[:, i : tokens.shape[1] - 1]))
            logits = text_logits(self.model, x[follows]).float()
            wanted = tokens[:, i + 1 :][follows]
            losses.append(F.cross_entropy(logits, wanted, reduction="sum") / totals[i])
            right = torch.zeros_like(follows)
            right[follows] = logits.argmax(-1) == wanted
            before = before[:, :-1] & right
            values[f"draft_{i + 1}_right"] = before.sum() / follows.sum().clamp(min=1)
        return {"draft": torch.stack(losses).mean()}, values


def _user_phones(batch: Batch) -> Tensor:
    """Return the phones of the user's frames, `[B, P − 1, G]`, of all patches but the last."""
    return batch.phones.masked_fill(batch.code_loss_mask[..., None], UNKNOWN)[:, :-1]


def _own_phones(batch: Batch) -> Tensor:
    """Return the phones of the model's own frames, `[B, P − 1, G]`, of all patches but the first."""
    return batch.phones.masked_fill(~batch.code_loss_mask[..., None], UNKNOWN)[:, 1:]


def _phone_error(head: nn.Linear, hidden: Tensor, phones: Tensor) -> tuple[Tensor, Tensor]:
    """Return the summed cross-entropy and the accuracy of phones, both 0 if no phone is labelled.

    Args:
        head: Predicts the phones of a patch.
        hidden: `[B, N, D]`.
        phones: `[B, N, G]`, −1 where they are unknown.
    """
    labelled = (phones != UNKNOWN).any(-1)
    targets = phones[labelled]
    logits = head(hidden[labelled]).float().unflatten(-1, (phones.shape[-1], -1))  # [M, G, labels]
    accuracy = (logits.argmax(-1) == targets).sum() / (targets != UNKNOWN).sum().clamp(min=1)
    error = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=UNKNOWN, reduction="sum")
    return error, accuracy
