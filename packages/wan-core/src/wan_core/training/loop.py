"""The training loop: one explicit function around a stage and a checkpoint folder.

Everything random at a step comes from (seed, step, rank), and the loss gets the step's number to choose its data by, so
a resumed run repeats the uninterrupted one exactly.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from wan_core.errors import RequestError
from wan_core.files import write_error
from wan_core.training.average import averaged
from wan_core.training.settings import LoopSettings
from wan_core.training.signals import AbandonedError, Signals
from wan_core.training.stage import Stage, WeightUpdate
from wan_core.training.state import CheckpointFolder, TrainingState

Reduce = Callable[[Sequence[float]], list[float]]
"""Means over all ranks of some numbers, the same list on every rank."""


@dataclass(frozen=True)
class TrainingResult:
    """Where a run ended: ``step`` done, mean ``loss`` of the last logged steps, the ``signal`` that ended it early.

    A run that was complete before has the loss that its log recorded; without a log that is NaN.
    """

    step: int
    loss: float
    signal: int | None = None

    @property
    def was_interrupted(self) -> bool:
        """Whether a signal ended the run."""
        return self.signal is not None


def seed_step(seed: int, step: int, rank: int = 0) -> None:
    """Seed torch's generators for one step of one rank, the same for a resumed and an uninterrupted run."""
    torch.manual_seed((seed * 1_000_003 + step) * 4099 + rank)


def this_rank_only(values: Sequence[float]) -> list[float]:
    """The `Reduce` of a single process."""
    return list(values)


def run_identity(settings: LoopSettings, recipe: Mapping[str, Any]) -> dict[str, Any]:
    """What a run that goes on must share with the one it goes on from."""
    return {"loop": settings.identity(), "recipe": dict(recipe)}


def find_nothing(step: int) -> dict[str, Any]:
    """The validation of a run without one."""
    return {}


def train(
    stage: Stage,
    settings: LoopSettings,
    *,
    checkpoints: CheckpointFolder,
    recipe: Mapping[str, Any] | None = None,
    log_path: Path | None = None,
    report: Callable[[dict[str, Any]], None] | None = None,
    validate: Callable[[int], Mapping[str, Any]] = find_nothing,
    rank: int = 0,
    reduce: Reduce = this_rank_only,
) -> TrainingResult:
    """Train to ``settings.steps``, going on from the newest checkpoint, and save at the end.

    ``recipe`` (plain values) is stored and must be equal when a run goes on. ``log_path`` gets one JSON line per
    ``log_steps`` from rank 0, ``report`` the same as a dict. ``validate`` is called with the step at the start, every
    ``validate_steps`` and at the end, on every rank, with the averaged weights in place, and may not change the model;
    what it returns is logged. With several ranks ``reduce`` averages losses and makes all of them stop and save
    together. SIGTERM and SIGINT save and return, a second one ends at once; a validation that they cut short is made
    when the run goes on. Raises RequestError when a loss or a gradient is not finite (the last checkpoint stays),
    MediaError when the log cannot be written, and what `CheckpointFolder` raises.
    """
    optimizers = stage.optimizers
    state = TrainingState(stage.model, optimizers, stage.average, run_identity(settings, recipe or {}))
    step = checkpoints.restore(state)
    log = _Log(log_path if rank == 0 else None, report if rank == 0 else None)
    base_rates = _base_rates(optimizers)
    clock = _Clock(settings.save_seconds)
    told = False
    with _ending(lambda: step, checkpoints), Signals(is_alone=reduce is this_rank_only) as signals:

        def look() -> None:
            with averaged(stage.model, stage.average), signals.abandoning():
                found = validate(step)
            log.validation(step, found)

        try:
            if step == 0 or reduce([float(log.lacks_validation(step, settings))])[0] > 0:
                look()
            while step < settings.steps and not told:
                seed_step(settings.seed, step, rank)
                _set_rates(optimizers, base_rates, settings.rate_factor(step))
                numbers = _change(stage, settings, step, reduce, checkpoints, signals)
                stops, waits = reduce([float(bool(signals.noted)), float(clock.is_late())])
                step, told = step + 1, stops > 0
                log.add(step, numbers, optimizers, settings)
                if not told and _is_due(step, settings.validate_steps, settings.steps):
                    look()
                if not told and _is_save_due(step, settings, waits > 0):
                    checkpoints.save(state, step)
                    clock.restart()
        except AbandonedError:
            told = True
        if step not in checkpoints.steps():
            checkpoints.save(state, step)
    return TrainingResult(step, log.loss, signals.first() if told else None)


@contextmanager
def _ending(step: Callable[[], int], checkpoints: CheckpointFolder) -> Iterator[None]:
    """Let an interruption at once say where the run ended and what is left of it."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        interrupt.args = (f"ended at once after step {step()}; {_kept(checkpoints)}",)
        raise


def _kept(checkpoints: CheckpointFolder) -> str:
    steps = checkpoints.steps()
    return f"the last good checkpoint is {checkpoints.path(steps[-1])}" if steps else "nothing was saved yet"


def _change(
    stage: Stage, settings: LoopSettings, step: int, reduce: Reduce, checkpoints: CheckpointFolder, signals: Signals
) -> dict[str, float]:
    """Make every change that is due at a step; what is told of them. Until the first one a signal abandons the step."""
    numbers: dict[str, float] = {}
    for index, update in enumerate(each for each in stage.updates if step % each.every == 0):
        with signals.abandoning() if index == 0 else nullcontext():
            found = _backward(update, settings, step)
        numbers |= _run(update, found, stage.optimizers, settings, step, reduce, checkpoints)
    if stage.average is not None:
        stage.average.update(stage.model)
    return numbers


def _run(
    update: WeightUpdate,
    found: Mapping[str, float],
    optimizers: Sequence[torch.optim.Optimizer],
    settings: LoopSettings,
    step: int,
    reduce: Reduce,
    checkpoints: CheckpointFolder,
) -> dict[str, float]:
    """Make one change by the gradients that are there; the means of what was ``found`` and the norm, over all ranks."""
    prefix = f"{update.name}_" if update.name else ""
    means = dict(zip(found, reduce(list(found.values())), strict=True))
    _check(means["loss"], f"{update.name} loss".strip(), step, checkpoints)
    norm = _clip(update.weights(), settings.clip_norm)
    _check(norm, f"{update.name} gradient".strip(), step, checkpoints)
    for optimizer in update.optimizers:
        optimizer.step()
    for optimizer in optimizers:  # a loss may reach the weights of others
        optimizer.zero_grad()
    return {f"{prefix}{name}": value for name, value in {**means, "norm": norm}.items()}


class _Clock:
    """Time since the last checkpoint."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self.restart()

    def restart(self) -> None:
        self._since = time.monotonic()

    def is_late(self) -> bool:
        return time.monotonic() - self._since >= self._seconds


def _is_due(step: int, every: int | None, last: int) -> bool:
    return step == last or (every is not None and step % every == 0)


def _is_save_due(step: int, settings: LoopSettings, is_late: bool) -> bool:
    """Whether a checkpoint is due; the last one is saved behind the loop."""
    if step == settings.steps:
        return False
    return is_late if settings.save_steps is None else step % settings.save_steps == 0


def _backward(update: WeightUpdate, settings: LoopSettings, step: int) -> dict[str, float]:
    """Gradients of one update; the means over its parts of the loss and what else is told.

    A loss that is not finite is no reason to leave early: other ranks may wait for this one's gradients.
    """
    totals: dict[str, float] = {}
    for index in range(settings.accumulation):
        found = update.loss(step, index)
        losses = {"loss": found} if isinstance(found, Tensor) else found
        for name, value in losses.items():
            totals[name] = totals.get(name, 0.0) + value.item() / settings.accumulation
        (losses["loss"] / settings.accumulation).backward()  # type: ignore[no-untyped-call]
    return totals


def _check(value: float, what: str, step: int, checkpoints: CheckpointFolder) -> None:
    if math.isfinite(value):
        return
    remedy = "try a lower learning rate, in another output folder"
    raise RequestError(f"the {what} became {value} at step {step}; {_kept(checkpoints)}; {remedy}")


def _clip(weights: Sequence[Tensor], limit: float | None) -> float:
    """Limit the norm of all gradients together; the norm before."""
    with_gradient = [weight for weight in weights if weight.grad is not None]
    norm = nn.utils.clip_grad_norm_(with_gradient, math.inf if limit is None else limit)
    full: Callable[[], Tensor] | None = getattr(norm, "full_tensor", None)  # sharded weights have a sharded norm
    return float(norm if full is None else full())


def _base_rates(optimizers: Sequence[torch.optim.Optimizer]) -> list[list[float]]:
    return [[group.setdefault("base_lr", group["lr"]) for group in each.param_groups] for each in optimizers]


def _set_rates(optimizers: Sequence[torch.optim.Optimizer], base_rates: list[list[float]], factor: float) -> None:
    for optimizer, rates in zip(optimizers, base_rates, strict=True):
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * factor


class _Log:
    """JSON lines in a file and to a listener."""

    def __init__(self, path: Path | None, report: Callable[[dict[str, Any]], None] | None) -> None:
        self._path = path
        self._report = report
        self._numbers: list[Mapping[str, float]] = []
        self._since = time.monotonic()
        self.loss = self._last_loss()
        """Of the last line; NaN without any."""

    def add(
        self,
        step: int,
        numbers: Mapping[str, float],
        optimizers: Sequence[torch.optim.Optimizer],
        settings: LoopSettings,
    ) -> None:
        """Note what ``step`` steps found, and write a line when one is due."""
        self._numbers.append(numbers)
        if _is_due(step, settings.log_steps, settings.steps):
            self.loss = self._line(step, optimizers, settings.rate_factor(step - 1))

    def _lines(self) -> Iterator[dict[str, Any]]:
        """What an earlier part of the run wrote; half a line, which a killed one may leave, is none."""
        if self._path is not None and self._path.is_file():
            for text in self._path.read_text(errors="replace").splitlines():
                with suppress(ValueError, RecursionError):
                    line = json.loads(text)
                    if isinstance(line, dict):
                        yield line

    def _last_loss(self) -> float:
        """The first loss of the last line that an earlier part of the run wrote; NaN without one."""
        last = math.nan
        for line in self._lines():
            with suppress(ValueError, TypeError, StopIteration):
                last = float(next(line[name] for name in line if name != "step")) if "rate" in line else last
        return last

    def lacks_validation(self, step: int, settings: LoopSettings) -> bool:
        """Whether a step that was to be validated has no line of it."""
        if self._path is None or not _is_due(step, settings.validate_steps, settings.steps):
            return False
        return not any(line.get("step") == step and "rate" not in line for line in self._lines())

    def _line(self, step: int, optimizers: Sequence[torch.optim.Optimizer], factor: float) -> float:
        """Write the means since the last line, the last norms and the learning rate; return the mean of the first loss.

        ``schedule`` is the rate's ``factor``; lines without it are older and have the factor as their ``rate``.
        """
        count, seconds = len(self._numbers), time.monotonic() - self._since
        found: dict[str, list[float]] = {}
        for numbers in self._numbers:
            for name, value in numbers.items():
                found.setdefault(name, []).append(value)
        norms = {name: round(values[-1], 4) for name, values in found.items() if name.endswith("norm")}
        means = {name: sum(values) / len(values) for name, values in found.items() if name not in norms}
        self._numbers, self._since = [], time.monotonic()
        times = {"steps": count, "seconds_per_step": round(seconds / count, 4)}
        rates = {"rate": optimizers[0].param_groups[0]["lr"], "schedule": factor}
        self._write({"step": step, **means, **rates, **norms, **times})
        return next(iter(means.values()))

    def validation(self, step: int, values: Mapping[str, Any]) -> None:
        """Write what a validation found; its time counts for no step."""
        if values:
            self._write({"step": step, **values})
        self._since = time.monotonic() if not self._numbers else self._since

    def _write(self, line: dict[str, Any]) -> None:
        if self._path is not None:
            try:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                with self._path.open("a") as file:
                    file.write(json.dumps(line) + "\n")
            except OSError as error:
                raise write_error(self._path, error) from error
        if self._report is not None:
            self._report(line)
