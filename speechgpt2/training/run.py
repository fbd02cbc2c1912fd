"""A training run: its loop, and its folder with exact checkpoints, scalars and samples.

    RUN/config.yaml        the configuration
    RUN/checkpoint.pt      weights, optimizer, step: everything the next step depends on (training/checkpoints.py)
    RUN/best/              the model with the best held-out value (training/validation.py)
    RUN/lock               locked while a process trains in the folder
    RUN/events.*           TensorBoard scalars and audio, if tensorboard is installed
    RUN/log.jsonl          the same scalars, one line per report

Every random choice of a step comes from a generator seeded by (seed, step), so a resumed run takes exactly the steps
that it would have taken without the interruption.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils import get_total_norm

from speechgpt2 import config as configs
from speechgpt2.errors import UserError
from speechgpt2.training import distributed
from speechgpt2.training.checkpoints import Checkpoints, Sharded
from speechgpt2.training.validation import Validation, ValidationConfig, takes_part


class Schedule(Protocol):
    """The part of a trainer's configuration that the loop reads, in steps."""

    @property
    def steps(self) -> int:
        """Length of the run."""
        ...

    @property
    def report_every(self) -> int:
        """Steps between two reports."""
        ...

    @property
    def save_every(self) -> int:
        """Steps between two checkpoints."""
        ...

    @property
    def validation(self) -> ValidationConfig:
        """When held-out data are evaluated."""
        ...


class Trainer(Protocol):
    """The interface of a trainer."""

    def step(self, step: int) -> dict[str, Tensor]:
        """Take one optimizer step and return scalars to report."""
        ...

    def content(self, step: int) -> dict[str, Any]:
        """Return everything that the next step depends on."""
        ...

    def restore(self, content: dict[str, Any] | None) -> int:
        """Restore a checkpoint and return the step to continue from."""
        ...

    def validate(self) -> dict[str, float]:
        """Return the values of held-out data, or nothing if there are none. All processes call it."""
        ...

    def export(self, folder: Path) -> None:
        """Write the present model. All processes of a sharded run call it, otherwise the first alone."""
        ...

    def log_samples(self, run: RunFolder, step: int) -> None:
        """Log what the model makes, such as audio."""
        ...


def train(trainer: Trainer, config: Schedule, folder: str | Path, resume: bool, what: str) -> None:
    """Take all remaining steps.

    Args:
        trainer: What trains.
        config: Its configuration, written to the folder.
        folder: The run's folder.
        resume: Whether to continue the run in the folder.
        what: Name of the run in progress reports.

    Raises:
        UserError: If the folder holds a run and `resume` is False, if another process trains in it, if its checkpoints
            are damaged or do not fit the configuration, or if a gradient is not finite.
    """
    run = RunFolder(folder, resume)
    validation = Validation(config.validation, trainer, run, what)
    with run.locked():
        first = _restore(trainer, run, validation)
        run.begin(config, first)
        guard = GradientGuard(trainer, run)
        if not first and config.validation.every:
            validation.evaluate(0)
        if validation.has_ended:
            validation.say_end(first)
            return
        with Reporter(config, run, what, first) as reporter:
            for step in range(first, config.steps):
                guard.step = step
                reporter.add(step, trainer.step(step))  # before the step is saved, so that a killed run lacks no report
                if validation.is_due(step + 1, config.steps):
                    validation.evaluate(step + 1)
                if (step + 1) % config.save_every == 0 or step + 1 == config.steps or validation.has_ended:
                    _save(trainer, run, step + 1, validation)
                if validation.has_ended:
                    validation.say_end(step + 1)
                    break


def _save(trainer: Trainer, run: RunFolder, step: int, validation: Validation) -> None:
    if not takes_part(trainer):
        return
    state = {"validation": validation.content()}
    if isinstance(trainer, Sharded) and getattr(trainer, "is_sharded", False):
        run.checkpoints.save_shards(trainer.shards(), trainer.progress(step) | state)
    else:
        run.checkpoints.save(trainer.content(step) | state)
    trainer.export(run.folder)
    if run.leads:
        trainer.log_samples(run, step)


def _restore(trainer: Trainer, run: RunFolder, validation: Validation) -> int:
    """Restore the run's last checkpoint, if there is one. Returns the step to continue from."""
    try:
        content = run.checkpoints.load(trainer)
        validation.restore((content or {}).get("validation"))
        return trainer.restore(content)
    except UserError:
        raise
    except (RuntimeError, KeyError, ValueError) as error:
        reason = " ".join(str(error).split())[:160]
        raise UserError(
            f"{run.checkpoints.found[0]} does not fit this configuration ({reason}); choose another --out, or the "
            "run's own sizes"
        ) from None


class GradientGuard:
    """Stops a run before an optimizer takes a step on gradients that are not finite."""

    def __init__(self, trainer: Trainer, run: RunFolder):
        self.run, self.step = run, 0
        for part in vars(trainer).values():
            if isinstance(part, torch.optim.Optimizer):
                part.register_step_pre_hook(self._check)

    def _check(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        if gradients and not bool(distributed.whole(get_total_norm(gradients)).isfinite()):
            raise UserError(
                f"step {self.step + 1}: the gradient is not finite, so the step is not taken; "
                f"{self.run.checkpoints.last_good()}. "
                "Lower peak_lr or look for damaged data, and go on with --resume"
            )


class RunFolder:
    """The folder of one training run. Of several processes only the first writes."""

    def __init__(self, folder: str | Path, resume: bool):
        """Raise `UserError` if the folder holds a run and `resume` is False."""
        self.folder = Path(folder)
        self.checkpoints = Checkpoints(self.folder)
        if self.checkpoints.found and not resume:
            raise UserError(f"{folder} already holds a run; continue it with --resume or choose another --out")
        self.leads, self.writer = distributed.rank() == 0, None

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other runs out of the folder. The lock ends with the process, however it ends.

        Raises:
            UserError: If another process trains in the folder.
        """
        if not self.leads:
            yield
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "lock").open("a") as file:
            try:
                import fcntl

                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except ImportError:  # Windows has no such locks
                pass
            except OSError:
                raise UserError(f"another process trains in {self.folder}; choose another --out") from None
            yield

    def begin(self, config: Any, step: int) -> None:
        """Write the configuration, and say what differs from that of the run so far."""
        if not self.leads:
            return
        path = self.folder / "config.yaml"
        if step and path.exists():
            before, now = configs.read(path), configs.to_dict(config)
            for key in sorted(now):
                old = before.get(key, "unset") if isinstance(before, dict) else "unset"
                if _plain(old) != _plain(now[key]):
                    print(f"from step {step} on, {key} is {now[key]} (it was {old})", file=sys.stderr)
        configs.dump(config, path)
        self.writer = _summary_writer(self.folder)

    def report(self, step: int, values: dict[str, float]) -> None:
        """Log scalars of one step."""
        with (self.folder / "log.jsonl").open("a", encoding="utf-8") as log:
            log.write(json.dumps({"step": step, **{k: round(v, 6) for k, v in values.items()}}) + "\n")
        if self.writer:
            for name, value in values.items():
                self.writer.add_scalar(name, value, step)

    def sample(self, step: int, name: str, pcm: Tensor, rate: int) -> None:
        """Log an audio sample `pcm [N]`."""
        if self.writer:
            self.writer.add_audio(name, pcm.clamp(-1, 1)[None], step, sample_rate=rate)


class Means:
    """Means of scalars since the last report, kept on the device until they are read."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}

    def add(self, values: dict[str, Tensor]) -> None:
        """Add the scalars of one step."""
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0) + value.detach().float()
            self.counts[name] = self.counts.get(name, 0) + 1

    def take(self) -> dict[str, float]:
        """Return the means and start anew."""
        means = {name: (total / self.counts[name]).item() for name, total in self.sums.items()}
        self.sums, self.counts = {}, {}
        return means


class Reporter:
    """Shows the progress of a run, and reports the means of its scalars regularly.

    Args:
        config: The schedule.
        run: Where scalars are logged.
        what: Name of the run.
        first: Its first step.
    """

    def __init__(self, config: Schedule, run: RunFolder, what: str, first: int):
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self.config, self.run, self.what, self.means = config, run, what, Means()
        self.console = Console(stderr=True, quiet=not run.leads)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        line = TextColumn("{task.fields[line]}")
        self.bar = Progress(*columns, line, console=self.console, disable=not self.console.is_terminal)
        self.task = self.bar.add_task(what, total=config.steps, completed=first, line="")

    def __enter__(self) -> Reporter:
        self.bar.__enter__()
        self.since = time.perf_counter()
        return self

    def __exit__(self, *error: Any) -> None:
        self.bar.__exit__(*error)

    def add(self, step: int, values: dict[str, Tensor]) -> None:
        """Add the scalars of a step."""
        self.means.add(values)
        self.bar.advance(self.task)
        if self.run.leads and ((step + 1) % self.config.report_every == 0 or step + 1 == self.config.steps):
            self._report(step + 1)

    def _report(self, step: int) -> None:
        values, now = self.means.take(), time.perf_counter()
        values["steps_per_second"], self.since = self.config.report_every / (now - self.since), now
        self.run.report(step, values)
        line = " ".join(f"{name} {value:.3f}" for name, value in values.items())
        self.bar.update(self.task, line=line)
        if not self.console.is_terminal:
            print(f"{self.what} {step}/{self.config.steps} {line}", file=sys.stderr, flush=True)


def learning_rate(step: int, total: int, peak: float, warmup: int, floor: float = 0.05) -> float:
    """Return the learning rate of a step: linear warm-up, then a cosine down to `floor` times the peak."""
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = min((step - warmup) / max(total - warmup, 1), 1.0)
    return peak * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress)))


def descend(loss: Tensor, optimizer: torch.optim.Optimizer, clip: float) -> Tensor:
    """Take a step of an optimizer with one group of parameters.

    Args:
        loss: This process's loss. The module that it comes from averages gradients over all processes by itself
            (`distributed.overlapped`).
        optimizer: The optimizer.
        clip: The largest norm of the gradient.

    Returns:
        The norm of the gradient, before it was clipped.
    """
    parameters = optimizer.param_groups[0]["params"]
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(parameters, clip)
    optimizer.step()
    return norm


def shared_generator(seed: int, step: int) -> torch.Generator:
    """Return a generator of one step that is the same in all processes of a run."""
    return torch.Generator().manual_seed(int(np.random.default_rng((seed, step)).integers(1 << 62)))


def step_random(seed: int, step: int, rank: int) -> np.random.Generator:
    """Return the generator from which a process draws the data of a step."""
    random = np.random.default_rng((seed, step, rank))
    random.integers(1 << 62)  # the number that `seed_step` takes
    return random


def seed_step(seed: int, step: int) -> None:
    """Seed torch's global generator for one step, which stochastic depth uses."""
    torch.manual_seed(int(np.random.default_rng((seed, step, distributed.rank())).integers(1 << 62)))


class WeightAverage:
    """Exponential moving average of parameters, by name. The decay warms up with the steps."""

    def __init__(self, trained: Mapping[str, Tensor] | torch.nn.Module, decay: float):
        self.decay = decay
        self.values = {name: p.detach().clone() for name, p in _named(trained).items()}

    @torch.no_grad()
    def update(self, trained: Mapping[str, Tensor] | torch.nn.Module, step: int) -> None:
        """Move the average towards the parameters."""
        decay = min(self.decay, (step + 1) / (step + 10))
        mine = list(self.values.values())
        torch._foreach_lerp_(mine, [p.detach() for p in _named(trained).values()], 1 - decay)

    @contextmanager
    def in_place_of(self, trained: Mapping[str, Tensor] | torch.nn.Module) -> Iterator[None]:
        """Put the average in place of the parameters. Afterwards both are bit for bit what they were."""
        self._swap(trained)
        try:
            yield
        finally:
            self._swap(trained)

    @torch.no_grad()
    def _swap(self, trained: Mapping[str, Tensor] | torch.nn.Module) -> None:
        for name, parameter in _named(trained).items():  # one by one, so that no second model is in memory
            before = parameter.detach().clone()
            parameter.copy_(self.values[name])
            self.values[name].copy_(before)

    @torch.no_grad()
    def copy_to(self, module: torch.nn.Module) -> None:
        """Copy the average into `module`."""
        for name, parameter in module.named_parameters():
            parameter.copy_(self.values[name])


def _named(trained: Mapping[str, Tensor] | torch.nn.Module) -> Mapping[str, Tensor]:
    return dict(trained.named_parameters()) if isinstance(trained, torch.nn.Module) else trained


def _plain(value: Any) -> Any:
    """Return a value as it reads back from YAML: tuples are lists."""
    return json.loads(json.dumps(value, default=str))


def _summary_writer(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None  # log.jsonl has the scalars as well
    return SummaryWriter(str(folder))
