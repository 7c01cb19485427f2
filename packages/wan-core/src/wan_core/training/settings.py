"""What `wan train` is asked for, as plain values, and the TOML file that may hold them."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from wan_core.errors import ConfigError, RequestError
from wan_core.files import read_toml

if TYPE_CHECKING:
    from wan_core.training.objective import NoiseLevels

OPTIMIZERS = ("adamw", "adamw8bit", "muon")
TIMESTEPS = ("uniform", "logit-normal", "shifted")
LOSS_WEIGHTINGS = ("none", "bell")
DATASET_TABLES = ("datasets", "directory")
"""What lists of data folders may be called in a TOML file."""

EXPERTS = ("high", "low", "both")
SCHEDULES = ("linear", "cosine", "constant")
DEFAULT_TARGETS = ("blocks.*.self_attn.[qkvo]", "blocks.*.cross_attn.[qkvo]", "blocks.*.ffn.[02]")
SEEDS = 2**31
"""How many seeds there are: each is multiplied with a number of steps into the 64 bits that torch takes."""

_FREE = ("steps", "save_seconds", "save_steps", "log_steps", "validate_steps")
_DEFAULT_RATES = {"adamw": 1e-4, "adamw8bit": 1e-4, "muon": 5e-3}
_LORA_RATES = {"adamw": 1e-3, "adamw8bit": 1e-3, "muon": 1e-2}


@dataclass(frozen=True, kw_only=True)
class LoRASettings:
    """Size and place of adapters: updates are ``alpha / rank * B @ A`` on the linear layers that ``targets`` match.

    Targets are shell patterns over layer names. ``alpha`` None means ``rank``. Raises ConfigError for a rank below 1,
    an alpha that is not positive, or no targets.
    """

    rank: int = 16
    alpha: float | None = None
    targets: Sequence[str] = DEFAULT_TARGETS

    def __post_init__(self) -> None:
        if self.rank < 1 or (self.alpha is not None and self.alpha <= 0):
            raise ConfigError(f"a LoRA needs rank >= 1 and alpha > 0, got rank {self.rank} and alpha {self.alpha}")
        if not self.targets:
            raise ConfigError("a LoRA needs at least one pattern of layer names")

    @property
    def scale(self) -> float:
        """Factor of the low-rank product."""
        return (self.rank if self.alpha is None else self.alpha) / self.rank


@dataclass(frozen=True, kw_only=True)
class LoopSettings:
    """How long and how carefully to train.

    The rate rises over ``warmup_steps``, stays, and falls to ``final_rate`` (a share of it) over the last
    ``decay_share`` of the steps, on a line or half a ``cosine``; ``constant`` never falls. ``steps`` may change when a
    run goes on. Checkpoints come every ``save_steps``, or every ``save_seconds`` when that is None; log lines every
    ``log_steps``, validations every ``validate_steps``. Raises ConfigError for values that cannot work.
    """

    steps: int
    warmup_steps: int = 100
    schedule: str = "linear"
    decay_share: float = 0.3
    final_rate: float = 0.0
    accumulation: int = 1
    clip_norm: float | None = 1.0
    seed: int = 0
    save_seconds: float = 60.0
    save_steps: int | None = None
    log_steps: int = 50
    validate_steps: int | None = None

    def __post_init__(self) -> None:
        _finite(self)
        _check_seed(self.seed)
        if self.steps < 1 or self.accumulation < 1 or self.log_steps < 1:
            least = {"steps": self.steps, "accumulation": self.accumulation, "log_steps": self.log_steps}
            raise ConfigError(f"steps, accumulation and log_steps must be at least 1, got {least}")
        for name in ("save_steps", "validate_steps"):
            every = getattr(self, name)
            if every is not None and every < 1:
                raise ConfigError(f"{name} must be at least 1, got {every}; leave it out for the default")
        if self.schedule not in SCHEDULES:
            raise ConfigError(f"schedule must be one of {', '.join(SCHEDULES)}, got {self.schedule!r}")
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise ConfigError(f"clip_norm must be positive, got {self.clip_norm}; None does not clip")
        if self.warmup_steps < 0 or not 0 <= self.decay_share <= 1 or self.save_seconds < 0:
            raise ConfigError(
                f"warmup_steps and save_seconds must not be negative and decay_share must be in 0..1, got "
                f"{self.warmup_steps}, {self.save_seconds} and {self.decay_share}"
            )

    def rate_factor(self, step: int) -> float:
        """Share of the base learning rate at a step (from 0)."""
        rising = min(1.0, (step + 1) / max(1, self.warmup_steps))
        if self.schedule == "constant":
            return rising
        left = min(1.0, (self.steps - step) / max(1.0, self.decay_share * self.steps))
        if self.schedule == "cosine":
            left = (1 - math.cos(math.pi * left)) / 2
        return rising * (self.final_rate + (1 - self.final_rate) * left)

    def identity(self) -> dict[str, Any]:
        """The settings that a resumed run must share: not how long it runs, how often it saves or logs."""
        kept = {name: value for name, value in asdict(self).items() if name not in _FREE}
        if self.schedule == SCHEDULES[0]:
            del kept["schedule"]  # runs from before there was a choice go on
        return kept


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """Everything that determines a training run, but for the data, the model's weights and the machine.

    ``rate`` None takes 1e-4 (1e-3 for a LoRA; Muon 5e-3 and 1e-2). ``lora_rank`` None trains all weights.
    ``timesteps``: how noise levels are drawn; ``shifted`` is uniform, then shifted by ``shift`` (None: the model's).
    ``loss_weighting``: how much errors count at each; ``bell`` is that of `FlowTable` under the same shift.
    ``clean_frames``: up to so many leading latent frames are clean, in ``clean_share`` of the samples.
    ``caption_dropout`` is the share of samples that see the empty caption, which guidance needs. ``held_out`` examples
    (None: one in five, at most 16) are never trained on. Raises ConfigError for values that cannot work.
    """

    rate: float | None = None
    batch: int = 1
    optimizer: str = "adamw"
    weight_decay: float = 0.0
    lora_rank: int | None = None
    lora_alpha: float | None = None
    lora_targets: Sequence[str] = DEFAULT_TARGETS
    timesteps: str = "logit-normal"
    shift: float | None = None
    loss_weighting: str = "none"
    clean_frames: int = 0
    clean_share: float = 0.5
    caption_dropout: float = 0.1
    ema: float | None = None
    held_out: int | None = None
    checkpointing: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        _finite(self)
        _check_seed(self.seed)
        _one_of("optimizer", self.optimizer, OPTIMIZERS)
        _one_of("timesteps", self.timesteps, TIMESTEPS)
        _one_of("loss-weighting", self.loss_weighting, LOSS_WEIGHTINGS)
        if self.rate is not None and not 0 < self.rate < 100:
            raise ConfigError(f"lr must be above 0 and below 100, got {self.rate:g}; 1e-4 is usual")
        for name, least in (("batch", 1), ("clean_frames", 0), ("held_out", 0), ("weight_decay", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigError(f"{_shown(name)} must be at least {least}, got {value:g}")
        if self.shift is not None and self.shift <= 0:
            raise ConfigError(f"shift must be above 0, got {self.shift:g}; 1 shifts nothing")
        for name in ("clean_share", "caption_dropout"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{_shown(name)} must be in 0..1, got {getattr(self, name):g}")
        if self.ema is not None and not 0 < self.ema < 1:
            raise ConfigError(f"ema must be between 0 and 1, got {self.ema:g}; 0.999 is usual")
        self.lora()

    def lora(self) -> LoRASettings | None:
        """The adapters to train; None when all weights are trained. Raises ConfigError as `LoRASettings` does, and for
        settings of a LoRA without a rank."""
        if self.lora_rank is None:
            idle = ["alpha"] * (self.lora_alpha is not None)
            idle += ["targets"] * (tuple(self.lora_targets) != DEFAULT_TARGETS)
            if idle:
                raise ConfigError(f"lora-{idle[0]} needs a LoRA; give --lora-rank too")
            return None
        return LoRASettings(rank=self.lora_rank, alpha=self.lora_alpha, targets=tuple(self.lora_targets))

    def base_rate(self) -> float:
        """The learning rate after the warm-up."""
        if self.rate is not None:
            return self.rate
        return (_DEFAULT_RATES if self.lora_rank is None else _LORA_RATES)[self.optimizer]

    def levels(self, flow_shift: float) -> NoiseLevels:
        """The noise levels to train; ``flow_shift`` is the model's own."""
        from wan_core.training.objective import NoiseLevels

        shift = self.shift
        if shift is None:
            shift = flow_shift if self.timesteps == "shifted" else 1.0
        kind: Literal["uniform", "logit_normal"] = "logit_normal" if self.timesteps == "logit-normal" else "uniform"
        return NoiseLevels(kind=kind, shift=shift)

    def held_out_of(self, count: int) -> int:
        """How many of ``count`` examples are kept for validation. Raises ConfigError when none would be left."""
        if self.held_out is None:
            return min(16, count // 5)
        if self.held_out >= count:
            raise ConfigError(f"held-out must leave examples to train on, got {self.held_out} of {count}")
        return self.held_out


def read_config(path: str | Path, known: Iterable[str], *, also: Iterable[str] = ()) -> dict[str, Any]:
    """The settings of a TOML file by option name (``_`` for ``-``), as text, as a command line would have them.

    A list stays a list; ``[[datasets]]`` are the entries of ``data``. Raises RequestError for a file that is missing or
    no TOML, and for a name that is not in ``known``, with the nearest one that is; those in ``also`` are taken and not
    told of.
    """
    path, names = Path(path), sorted(known)
    accepted = {*names, *also}
    values = read_toml(path, f"the config {path}")
    read: dict[str, Any] = {}
    for key, value in values.items():
        name = key.replace("-", "_")
        if "data" in names and key in ("data", *DATASET_TABLES) and _has_tables(value):
            read["data"] = [*read.get("data", []), *value]
            continue
        if name not in accepted:
            near = difflib.get_close_matches(name, names, 1)
            hint = f"; did you mean {near[0]}?" if near else f"; known are {', '.join(names)}"
            raise RequestError(f"the config {path} has an unknown setting {key!r}{hint}")
        if isinstance(value, dict):
            raise RequestError(f"the config {path} has a table {key!r}; settings stand at the top, as name = value")
        read[name] = [_text(item) for item in value] if isinstance(value, list) else _text(value)
    return read


def _has_tables(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(each, dict) for each in value)


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _finite(settings: LoopSettings | TrainSettings) -> None:
    for field in fields(settings):
        value = getattr(settings, field.name)
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"{_shown(field.name)} must be a finite number, got {value}")


def _shown(name: str) -> str:
    """What the option of a setting is called."""
    return {"rate": "lr", "clip_norm": "clip", "batch": "batch-size"}.get(name, name).replace("_", "-")


def _check_seed(seed: int) -> None:
    if not 0 <= seed < SEEDS:
        raise ConfigError(f"seed must be from 0 to {SEEDS - 1}, got {seed}")


def _one_of(name: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise ConfigError(f"{name} must be one of {', '.join(known)}, got {value!r}")
