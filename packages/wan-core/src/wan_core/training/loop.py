"""The training loop: one explicit function around a loss, optimizers and a checkpoint folder.

Everything random at a step comes from (seed, step, rank), and the loss gets the step's number to choose its data by, so
a resumed run repeats the uninterrupted one exactly.
"""

from __future__ import annotations

import json
import math
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from wan_core.errors import ConfigError, RequestError
from wan_core.training.state import AveragedWeights, CheckpointFolder, TrainingState

Loss = Callable[[int, int], Tensor]
"""(step, accumulation index) -> scalar loss; it draws data by these numbers and noise from torch's generator."""


@dataclass(frozen=True, kw_only=True)
class LoopSettings:
    """How long and how carefully to train.

    The rate rises over ``warmup_steps``, stays, and falls linearly to ``final_rate`` (a share of it) over the last
    ``decay_share`` of the steps, so ``steps`` may be changed when a run goes on. ``save_seconds`` is the time between
    checkpoints, ``log_steps`` between log lines. Raises ConfigError for values that cannot work.
    """

    steps: int
    warmup_steps: int = 100
    decay_share: float = 0.3
    final_rate: float = 0.0
    accumulation: int = 1
    clip_norm: float | None = 1.0
    seed: int = 0
    save_seconds: float = 60.0
    log_steps: int = 50

    def __post_init__(self) -> None:
        if self.steps < 1 or self.accumulation < 1 or self.log_steps < 1:
            least = {"steps": self.steps, "accumulation": self.accumulation, "log_steps": self.log_steps}
            raise ConfigError(f"steps, accumulation and log_steps must be at least 1, got {least}")
        if self.warmup_steps < 0 or not 0 <= self.decay_share <= 1 or self.save_seconds < 0:
            raise ConfigError(
                f"warmup_steps and save_seconds must not be negative and decay_share must be in 0..1, got "
                f"{self.warmup_steps}, {self.save_seconds} and {self.decay_share}"
            )

    def rate_factor(self, step: int) -> float:
        """Share of the base learning rate at a step (from 0)."""
        rising = min(1.0, (step + 1) / max(1, self.warmup_steps))
        left = (self.steps - step) / max(1.0, self.decay_share * self.steps)
        return rising * (self.final_rate + (1 - self.final_rate) * min(1.0, left))

    def identity(self) -> dict[str, Any]:
        """The settings that a resumed run must share: not how long it runs, how often it saves or logs."""
        return {
            name: value for name, value in asdict(self).items() if name not in ("steps", "save_seconds", "log_steps")
        }


@dataclass(frozen=True)
class TrainingResult:
    """Where a run ended: ``step`` done, mean ``loss`` of the last logged steps, whether a signal ended it."""

    step: int
    loss: float
    was_interrupted: bool


def seed_step(seed: int, step: int, rank: int = 0) -> None:
    """Seed torch's generators for one step of one rank, the same for a resumed and an uninterrupted run."""
    torch.manual_seed((seed * 1_000_003 + step) * 4099 + rank)


@contextmanager
def noted_signals() -> Iterator[list[int]]:
    """Collect SIGTERM and SIGINT in a list instead of dying, so that the loop can save and leave."""
    noted: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        noted.append(number)

    previous = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield noted
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def train(
    model: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    loss_of: Loss,
    settings: LoopSettings,
    *,
    checkpoints: CheckpointFolder,
    average: AveragedWeights | None = None,
    recipe: dict[str, Any] | None = None,
    log_path: Path | None = None,
    report: Callable[[dict[str, Any]], None] | None = None,
    rank: int = 0,
) -> TrainingResult:
    """Train to ``settings.steps``, going on from the newest checkpoint, and save at the end.

    ``recipe`` (plain values) is stored and must be equal when a run goes on. ``log_path`` gets one JSON line per
    ``log_steps``, ``report`` the same as a dict. SIGTERM and SIGINT save and return. Raises RequestError when the loss
    is not finite (the last checkpoint stays), and what `CheckpointFolder` raises.
    """
    identity = {"loop": settings.identity(), "recipe": recipe or {}}
    state = TrainingState(model, optimizers, average, identity)
    step = checkpoints.restore(state)
    base_rates = [[group.setdefault("base_lr", group["lr"]) for group in each.param_groups] for each in optimizers]
    losses: list[float] = []
    loss, last_save, last_log = math.nan, time.monotonic(), time.monotonic()
    with noted_signals() as signals:
        while step < settings.steps and not signals:
            seed_step(settings.seed, step, rank)
            factor = settings.rate_factor(step)
            _set_rates(optimizers, base_rates, factor)
            losses.append(_one_step(model, optimizers, loss_of, settings, step, checkpoints))
            if average is not None:
                average.update(model)
            step += 1
            if step % settings.log_steps == 0 or step == settings.steps:
                loss = sum(losses) / len(losses)
                seconds = (time.monotonic() - last_log) / len(losses)
                losses, last_log = [], time.monotonic()
                line = {"step": step, "loss": loss, "rate": factor, "seconds_per_step": round(seconds, 4)}
                _log(line, log_path, report)
            if time.monotonic() - last_save >= settings.save_seconds and step < settings.steps:
                checkpoints.save(state, step)
                last_save = time.monotonic()
    checkpoints.save(state, step)
    return TrainingResult(step, loss, bool(signals))


def _one_step(
    model: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    loss_of: Loss,
    settings: LoopSettings,
    step: int,
    checkpoints: CheckpointFolder,
) -> float:
    total = 0.0
    for index in range(settings.accumulation):
        loss = loss_of(step, index) / settings.accumulation
        if not torch.isfinite(loss):
            steps = checkpoints.steps()
            kept = f"the last good checkpoint is {checkpoints.path(steps[-1])}" if steps else "nothing was saved yet"
            raise RequestError(f"the loss became {loss.item()} at step {step}; {kept}; try a lower learning rate")
        loss.backward()  # type: ignore[no-untyped-call]
        total += loss.item()
    if settings.clip_norm is not None:
        nn.utils.clip_grad_norm_([p for p in model.parameters() if p.grad is not None], settings.clip_norm)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()
    return total


def _set_rates(optimizers: Sequence[torch.optim.Optimizer], base_rates: list[list[float]], factor: float) -> None:
    for optimizer, rates in zip(optimizers, base_rates, strict=True):
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * factor


def _log(line: dict[str, Any], path: Path | None, report: Callable[[dict[str, Any]], None] | None) -> None:
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:
            file.write(json.dumps(line) + "\n")
    if report is not None:
        report(line)
