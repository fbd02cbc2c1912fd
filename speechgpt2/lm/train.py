"""Training of the language model on packed examples.

Every step packs examples into rows and learns, at the positions of the loss masks, the next text token and the codes of
the next patch. Filler has less weight than words, and deeper codebooks have less weight than the first. Some codes of
the model's own speech are replaced in the input, because generated speech has errors, too. During training, an
auxiliary linear layer predicts the phones of the user's last patch from the hidden state: words alone, two or three a
second, teach recognition slowly. Another one can predict the phones of the patch that the model is about to speak,
which are the same in all voices: so less speech of its own voices teaches to read aloud. A draft head learns to propose
the tokens after the next one.

A configuration is a stage: a mix of tasks, what is frozen, losses, a schedule, and a limit for the perplexity of text.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from speechgpt2 import config as configs
from speechgpt2 import hub
from speechgpt2.errors import UserError
from speechgpt2.lm import tasks
from speechgpt2.lm.adapters import LoraConfig, add_adapters, merged_tensors, quantize_frozen
from speechgpt2.lm.checkpoint import WEIGHTS_FILE
from speechgpt2.lm.config import BackboneConfig, PatchDecoderConfig, SamplingConfig
from speechgpt2.lm.losses import LMLosses, TermWeights
from speechgpt2.lm.model import CONFIG_FILE, SpeechLM
from speechgpt2.lm.packing import Batch, ExampleSource, RowBatches
from speechgpt2.lm.tasks import TaskMix
from speechgpt2.lm.validation import HeldOutLosses, HeldOutTask
from speechgpt2.nn.precision import has_fast_bf16
from speechgpt2.nn.quantized import Quantization
from speechgpt2.training import distributed, run
from speechgpt2.training.prefetch import StepLoader
from speechgpt2.training.run import RunFolder, WeightAverage, learning_rate, seed_step
from speechgpt2.training.validation import ValidationConfig

GATE_TEXTS = 32  # held-out texts whose perplexity is measured


@dataclass(frozen=True)
class RateScale:
    """The learning rate of the parameters whose names match `pattern`, relative to that of the run."""

    pattern: str
    scale: float


@dataclass(frozen=True)
class LMTrainConfig:
    """Configuration of a run: a stage.

    A step sees `rows` × `accumulate` rows of `row_patches` positions in each process. Patterns are names of parameters,
    in which `*` stands for anything, such as `backbone.*`.
    """

    # The model that a run begins with, unless --init or --text-model names one
    backbone: BackboneConfig | None = None  # of a new model; `vocab` limits the tokenizer that is trained on the texts
    patch_decoder: PatchDecoderConfig | None = None  # of a new model, or of a text model's new speech parts
    chain_of_modality: bool = False  # the layout of a text model's replies
    # What is learnt
    mix: TaskMix = field(default_factory=TaskMix)
    freeze: tuple[str, ...] = ()
    new_tokens: bool = False  # train the rows of the special tokens, although the text embedding is frozen
    lora: LoraConfig | None = None
    quantize: Quantization | None = None  # the frozen matrices of the layers, such as {kind: int4}: QLoRA
    text_weight: float = 1.0
    codes_weight: float = 0.5  # all codes, relative to text
    code_weights: tuple[float, ...] = (0.5, 0.3, 0.2)  # each codebook
    phones_weight: float = 0.5  # the user's phones
    spoken_phones_weight: float = 0.0  # the phones of the model's speech: fewer hours teach to read aloud
    filler_weight: float = 0.3
    draft_tokens: int = 0  # tokens that a new draft head proposes
    draft_weight: float = 0.2  # loss of the draft head
    corrupt: float = 0.1  # share of the model's own frames that are replaced in the input
    dropout: float = 0.0  # share of what each layer's attention and feed-forward part add that is left out
    corrupt_given: float = 0.0  # share of the other frames of speech that are replaced: fewer voices seem more
    max_perplexity_ratio: float | None = None  # the perplexity of held-out text may rise to this times that before
    sampling: SamplingConfig | None = None  # how the model is sampled by default; None: as the one it begins with
    # Schedule
    steps: int = 4000
    rows: int = 2
    accumulate: int = 1
    row_patches: int = 384
    peak_lr: float = 1e-3
    rates: tuple[RateScale, ...] = ()
    warmup: int = 200
    betas: tuple[float, ...] = (0.9, 0.98)
    weight_decay: float = 0.05
    clip: float = 1.0
    average: float = 0.998  # moving average of the trained weights, which is saved; 0: none
    seed: int = 0
    report_every: int = 50
    save_every: int = 250
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    workers: int = 0  # processes, besides the one that trains, that prepare batches ahead
    # Memory
    checkpoint_activations: bool = False  # compute the backbone's activations again in the backward pass
    compile: bool = False
    sharded: bool = False  # weights, gradients and optimizer states are divided among the processes (FSDP)

    def __post_init__(self) -> None:
        if self.rows < 1 or self.accumulate < 1 or self.row_patches < 2:
            raise UserError("rows and accumulate must be at least 1, row_patches at least 2")
        if not 0 <= self.dropout < 1:
            raise UserError(f"dropout must be a share in 0…1, not {self.dropout}")

    @property
    def weights(self) -> TermWeights:
        """Weights of the terms of the loss."""
        return TermWeights(
            text=self.text_weight,
            codes=self.codes_weight,
            codebooks=self.code_weights,
            phones=self.phones_weight,
            draft=self.draft_weight,
            filler=self.filler_weight,
            spoken_phones=self.spoken_phones_weight,
        )


def train(
    config: LMTrainConfig,
    model: SpeechLM,
    source: ExampleSource,
    folder: str,
    resume: bool = False,
    device: str = "cpu",
    held_out: Sequence[HeldOutTask] = (),
) -> SpeechLM:
    """Train `model` to `config.steps`, with checkpoints in `folder`, where the averaged model is saved as well."""
    run.train(LMTrainer(config, model, source, torch.device(device), held_out), config, folder, resume, "lm")
    return model


class LMTrainer:
    """Model, phone head, optimizer and weight average. Frozen weights are kept in bfloat16 where that is fast."""

    def __init__(
        self,
        config: LMTrainConfig,
        model: SpeechLM,
        source: ExampleSource,
        device: torch.device,
        held_out: Sequence[HeldOutTask] = (),
    ):
        self.config, self.source, self.device = config, source, device
        if len(config.code_weights) != model.config.codebooks:
            raise UserError(f"code_weights needs {model.config.codebooks} values, one for each codebook")
        self.model, self.dtype = model, model.dtype
        freeze(model, config.freeze)
        torch.manual_seed(config.seed)
        add_adapters(model, config.lora, config.new_tokens)
        if config.quantize is not None:
            quantize_frozen(model, config.quantize)
        self.losses = LMLosses(model, len(source.phones), config.weights).to(device).train()
        half = has_fast_bf16(device)
        for parameter in model.parameters():
            is_half = half and not parameter.requires_grad and parameter.dim() > 1
            parameter.data = parameter.data.to(torch.bfloat16 if is_half else torch.float32)
        distributed.broadcast_weights(self.losses)
        self.is_sharded = config.sharded and distributed.world_size() > 1
        layers = [*model.backbone.layers, *model.patch_decoder.stack.layers]
        prepare_layers(model, config)
        if self.is_sharded:
            distributed.shard(self.losses, layers, ("text_error", "errors"))
        self.trained = {name: p for name, p in self.losses.named_parameters() if p.requires_grad}
        self.average = WeightAverage(self.trained, config.average) if config.average else None
        groups = parameter_groups(self.trained, config)
        adam: dict[str, Any] = {"lr": 0.0, "betas": config.betas, "fused": not self.is_sharded}
        self.optimizer = torch.optim.AdamW(groups, **adam)
        self.autocast = torch.autocast(device.type, torch.bfloat16, enabled=half)
        self.perplexity_before: float | None = None
        eos = model.prompt.special_ids.eos
        self.loader = StepLoader(row_batches(config, model, source), config.steps, config.workers)
        self.held_out = HeldOutLosses(held_out, config.rows, config.row_patches, eos) if held_out else None

    def step(self, step: int) -> dict[str, Tensor]:
        """Take one optimizer step and return losses and accuracies.

        Raises:
            UserError: If the perplexity of held-out text has risen above the limit. It is checked before each saving.
        """
        config = self.config
        self._measure_perplexity_before()
        seed_step(config.seed, step)
        batches = self.batches(step)
        totals = distributed.add_up(torch.stack([self.losses.totals(batch) for batch in batches]).sum(0))
        for group in self.optimizer.param_groups:
            group["lr"] = group["scale"] * learning_rate(step, config.steps, config.peak_lr, config.warmup)
        self.optimizer.zero_grad(set_to_none=True)
        sums: dict[str, Tensor] = {}
        for batch in batches:
            with self.autocast:
                loss, terms, values = self.losses(batch, totals)
            (loss * distributed.world_size()).backward()  # gradients are averaged, the parts of the loss add up
            for name, term in terms.items():
                sums[name] = sums.get(name, 0) + term
        if not self.is_sharded:  # else the backward pass has averaged them
            distributed.average_gradients(self.trained.values())
        values["grad_norm"] = distributed.whole(nn.utils.clip_grad_norm_(self.trained.values(), config.clip))
        self.optimizer.step()
        if self.average is not None:
            self.average.update(self.trained, step)
        if self._limits_perplexity and ((step + 1) % config.save_every == 0 or step + 1 == config.steps):
            values["text_perplexity"] = torch.tensor(self._checked_perplexity(f"step {step + 1}"))
        joined = distributed.add_up(torch.stack(list(sums.values())))
        return {**dict(zip(sums, joined)), **values}  # accuracies are those of the last batch

    def batches(self, step: int) -> list[Batch]:
        """Return this process's batches of a step, on its device."""
        return [batch.to(self.device) for batch in self.loader.take(step)]

    @torch.no_grad()
    def text_perplexity(self) -> float:
        """Return the perplexity of held-out text. Raises `UserError` if there is none."""
        texts = self.source.held_out_texts()[:GATE_TEXTS]
        if not texts:
            raise UserError("max_perplexity_ratio needs held-out text: add plain texts to --data, or a larger held_out")
        error, count = 0.0, 0
        for text in texts:
            patches = tasks.plain_text(self.model.prompt, text).patches
            patches = type(patches)(*(part[:, : self.config.row_patches].to(self.device) for part in patches))
            with self.autocast:
                error += float(self.losses.text_error(patches))
            count += patches.text.shape[1] - 1
        return math.exp(error / count)

    @property
    def _limits_perplexity(self) -> bool:
        return self.config.max_perplexity_ratio is not None

    def _measure_perplexity_before(self) -> None:
        """Measure the perplexity that the limit refers to, if there is a limit and it is the first time."""
        if self._limits_perplexity and self.perplexity_before is None:
            self.perplexity_before = self.text_perplexity()

    def _checked_perplexity(self, when: str) -> float:
        now, before, limit = self.text_perplexity(), self.perplexity_before, self.config.max_perplexity_ratio
        assert before is not None and limit is not None
        if now > before * limit:
            raise UserError(
                f"{when}: the perplexity of held-out text rose from {before:.3f} to {now:.3f}, the limit is "
                f"{limit} times; this state is not saved. Lower peak_lr, freeze more, or give `text` more of the mix"
            )
        return now

    def validate(self) -> dict[str, float]:
        """Return the losses of the averaged model on held-out examples (lm/validation.py), or nothing without them.

        Raises:
            UserError: If the perplexity of held-out text has risen above the limit.
        """
        if self.held_out is None:
            return {}
        self._measure_perplexity_before()
        self._forget_gathered()
        with self.average.in_place_of(self.trained) if self.average else nullcontext():
            with self.autocast:
                values = self.held_out.evaluate(self.losses, self.device)
            if self._limits_perplexity:
                values["text_perplexity"] = self._checked_perplexity("validation")
            self._forget_gathered()
        return values

    def _forget_gathered(self) -> None:
        """Drop gathered weights of a sharded model, which do not follow changes of the shards."""
        if self.is_sharded:
            self.losses.reshard()  # type: ignore[operator]

    def content(self, step: int) -> dict[str, Any]:
        """Return everything that the next step depends on. Frozen weights are those that the run began with."""
        return {
            **self.progress(step),
            "trained": {name: p.detach() for name, p in self.trained.items()},
            "average": self.average.values if self.average is not None else {},
            "optimizer": self.optimizer.state_dict(),
        }

    def progress(self, step: int) -> dict[str, Any]:
        """Return what the next step depends on besides tensors: the position in the data is the step."""
        return {
            "step": step,
            "rows_per_step": self.config.rows * self.config.accumulate * distributed.world_size(),
            "perplexity_before": self.perplexity_before,
        }

    def shards(self) -> dict[str, Tensor]:
        """Return all tensors of a checkpoint, by name; those of a sharded run are the shards of this process."""
        found = {f"trained.{name}": p.detach() for name, p in self.trained.items()}
        if self.average is not None:
            found |= {f"average.{name}": value for name, value in self.average.values.items()}
        for name, parameter in self.trained.items():
            found |= {f"{key}.{name}": value for key, value in self._optimizer_state(parameter).items()}
        return found

    def _optimizer_state(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        """Return the optimizer's state of a parameter, which before the first step is that of a new optimizer."""
        state = self.optimizer.state[parameter]
        if not state:
            state["step"] = torch.zeros((), device=parameter.device if self.optimizer.defaults["fused"] else None)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        return state

    @torch.no_grad()
    def restore(self, content: dict[str, Any] | None) -> int:
        """Restore a checkpoint and return the step to continue from.

        Raises:
            ValueError: If it holds other parameters than those that are trained now.
        """
        if content is None:
            return 0
        self.perplexity_before = content["perplexity_before"]
        self._say_rows(content)
        if "trained" not in content:  # shards, which are read already
            return content["step"]
        if {n: t.shape for n, t in content["trained"].items()} != {n: p.shape for n, p in self.trained.items()}:
            raise ValueError("it trains other parameters, or other sizes")
        for name, value in content["trained"].items():
            self.trained[name].copy_(distributed.sharded_like(value, self.trained[name]))
        if self.average is not None:
            averages = content["average"].items()
            self.average.values = {
                name: distributed.sharded_like(value.to(self.device), self.trained[name]) for name, value in averages
            }
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        for number, state in content["optimizer"]["state"].items():
            for key, value in state.items():
                state[key] = distributed.sharded_like(value, parameters[number])
        self.optimizer.load_state_dict(content["optimizer"])
        return content["step"]

    def _say_rows(self, content: dict[str, Any]) -> None:
        now = self.progress(0)["rows_per_step"]
        before = content.get("rows_per_step", now)
        if now != before and distributed.rank() == 0:
            print(f"from step {content['step']} on, a step has {now} rows (it had {before})", file=sys.stderr)

    def export(self, folder: Path) -> None:
        """Write the averaged model, with adapters merged, in the precision that it began with."""
        averages = self.average.values if self.average is not None else {}
        tensors = merged_tensors(self.model, lambda name, tensor: self._saved(averages.get(f"model.{name}", tensor)))
        shapes = {name: torch.empty((), dtype=self.dtype).expand(tensor.shape) for name, tensor in tensors.items()}
        if distributed.rank() > 0:  # helps to gather shards
            for name in hub.aligned_order(shapes):
                tensors[name].make()
            return
        sampling = self.config.sampling or self.model.config.sampling
        configs.dump(replace(self.model.config, sampling=sampling), folder / CONFIG_FILE)
        self.model.prompt.tokenizer.save(str(folder / "tokenizer.json"))
        hub.save_aligned(folder / WEIGHTS_FILE, shapes, lambda name: tensors[name].make())

    def _saved(self, tensor: Tensor) -> Tensor:
        """Return a tensor in the precision of the model's files. That of a sharded run is whole in one process only."""
        if not self.is_sharded:
            return tensor.to(self.dtype)
        return distributed.whole(tensor).to(self.dtype).to("cpu" if distributed.rank() == 0 else "meta")

    def log_samples(self, run: RunFolder, step: int) -> None:
        """Log nothing: `sg2 eval` shows what the model says."""


def row_batches(config: LMTrainConfig, model: SpeechLM, source: ExampleSource) -> RowBatches:
    """Return what makes the batches of this process."""
    return RowBatches(
        source=source,
        seed=config.seed,
        first=distributed.rank() * config.accumulate * config.rows,
        rows=config.rows,
        count=config.accumulate,
        patches=config.row_patches,
        filler=model.prompt.special_ids.eos,
        corrupted=config.corrupt,
        corrupted_given=config.corrupt_given,
        no_speech=model.config.no_speech,
    )


def freeze(model: SpeechLM, patterns: tuple[str, ...]) -> None:
    """Exclude the parameters whose names match a pattern. Raises `UserError` if a pattern matches none, or all are."""
    names = [name for name, _ in model.named_parameters()]
    for pattern in patterns:
        is_tied = pattern == "text_head.*" and model.text_head is None  # then there is nothing to freeze
        if not is_tied and not any(fnmatchcase(name, pattern) for name in names):
            parts = sorted({name.split(".")[0] for name in names})
            raise UserError(f"freeze: no parameter matches '{pattern}'; the parts of this model are {', '.join(parts)}")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not any(fnmatchcase(name, pattern) for pattern in patterns))


def parameter_groups(trained: dict[str, nn.Parameter], config: LMTrainConfig) -> list[dict[str, Any]]:
    """Return the optimizer's groups: by rate, and matrices with weight decay apart from the rest.

    Raises:
        UserError: If nothing is trained.
    """
    if not any(name.startswith("model.") for name in trained):
        raise UserError("everything is frozen; train something, or add lora or new_tokens")
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in trained.items():
        plain = name.removeprefix("model.")
        scale = next((rate.scale for rate in config.rates if fnmatchcase(plain, rate.pattern)), 1.0)
        groups.setdefault((scale, parameter.dim() > 1), []).append(parameter)
    return [
        {"params": parameters, "weight_decay": config.weight_decay if decays else 0.0, "scale": scale}
        for (scale, decays), parameters in groups.items()
    ]


def prepare_layers(model: SpeechLM, config: LMTrainConfig) -> None:
    """Let layers drop parts, be compiled, or be computed again in the backward pass, as the configuration says."""
    for layer in (*model.backbone.layers, *model.patch_decoder.stack.layers) if config.dropout else ():
        for part in (layer.attention, layer.ffn):
            part.register_forward_hook(partial(_dropped, config.dropout))
    for layer in model.backbone.layers:
        if config.checkpoint_activations:
            layer.forward = _recomputed(layer.forward)  # type: ignore[method-assign]
        if config.compile:
            layer.compile()


def _dropped(share: float, module: nn.Module, given: Any, output: Tensor) -> Tensor:
    # An evaluation between two steps computes no gradient, and drops nothing.
    return nn.functional.dropout(output, share) if torch.is_grad_enabled() else output


def _recomputed(forward: Any) -> Any:
    from torch.utils.checkpoint import checkpoint

    return lambda *args: checkpoint(forward, *args, use_reentrant=False) if torch.is_grad_enabled() else forward(*args)
