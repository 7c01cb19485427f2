"""What `wan train` is asked for, as plain values, and the TOML file that may hold them."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from wan_core.errors import ConfigError, RequestError
from wan_core.files import read_text
from wan_core.training.datasets import DATASET_TABLES
from wan_core.training.lora import DEFAULT_TARGETS, LoRASettings
from wan_core.training.objective import NoiseLevels

OPTIMIZERS = ("adamw", "adamw8bit", "muon")
TIMESTEPS = ("uniform", "logit-normal", "shifted")
EXPERTS = ("high", "low", "both")
_DEFAULT_RATES = {"adamw": 1e-4, "adamw8bit": 1e-4, "muon": 5e-3}
_LORA_RATES = {"adamw": 1e-3, "adamw8bit": 1e-3, "muon": 1e-2}


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """Everything that determines a training run, but for the data, the model's weights and the machine.

    ``rate`` None takes 1e-4 (1e-3 for a LoRA; Muon 5e-3 and 1e-2). ``lora_rank`` None trains all weights.
    ``timesteps``: how noise levels are drawn; ``shifted`` is uniform, then shifted by ``shift`` (None: the model's).
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
    clean_frames: int = 0
    clean_share: float = 0.5
    caption_dropout: float = 0.1
    ema: float | None = None
    held_out: int | None = None
    checkpointing: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        _one_of("optimizer", self.optimizer, OPTIMIZERS)
        _one_of("timesteps", self.timesteps, TIMESTEPS)
        if self.rate is not None and not 0 < self.rate < 100:
            raise ConfigError(f"lr must be above 0 and below 100, got {self.rate:g}; 1e-4 is usual")
        if self.batch < 1:
            raise ConfigError(f"batch-size must be at least 1, got {self.batch}")
        is_decay = 0 <= self.weight_decay < float("inf")
        if self.clean_frames < 0 or (self.held_out or 0) < 0 or not is_decay or self.seed < 0:
            least = f"{self.clean_frames}, {self.held_out}, {self.weight_decay:g} and {self.seed}"
            raise ConfigError(f"clean-frames, held-out, weight-decay and seed must be at least 0, got {least}")
        for name in ("clean_share", "caption_dropout"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name.replace('_', '-')} must be in 0..1, got {getattr(self, name):g}")
        if self.ema is not None and not 0 < self.ema < 1:
            raise ConfigError(f"ema must be between 0 and 1, got {self.ema:g}; 0.999 is usual")
        if self.lora_rank is None and self.lora_alpha is not None:
            raise ConfigError("lora-alpha needs a LoRA; give --lora-rank too")
        self.lora()

    def lora(self) -> LoRASettings | None:
        """The adapters to train; None when all weights are trained."""
        if self.lora_rank is None:
            return None
        return LoRASettings(rank=self.lora_rank, alpha=self.lora_alpha, targets=tuple(self.lora_targets))

    def base_rate(self) -> float:
        """The learning rate after the warm-up."""
        if self.rate is not None:
            return self.rate
        return (_DEFAULT_RATES if self.lora_rank is None else _LORA_RATES)[self.optimizer]

    def levels(self, flow_shift: float) -> NoiseLevels:
        """The noise levels to train; ``flow_shift`` is the model's own."""
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


def read_config(path: str | Path, known: Iterable[str]) -> dict[str, Any]:
    """The settings of a TOML file by option name (``_`` for ``-``), as text, as a command line would have them.

    A list stays a list; ``[[datasets]]`` are the entries of ``data``. Raises RequestError for a file that is missing or
    no TOML, and for a name that is not in ``known``, with the nearest one that is.
    """
    path, names = Path(path), sorted(known)
    text = read_text(path)
    try:
        values = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise RequestError(f"the config {path} is no TOML: {error}") from error
    read: dict[str, Any] = {}
    for key, value in values.items():
        name = key.replace("-", "_")
        if "data" in names and key in ("data", *DATASET_TABLES) and _has_tables(value):
            read["data"] = [*read.get("data", []), *value]
            continue
        if name not in names:
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


def _one_of(name: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise ConfigError(f"{name} must be one of {', '.join(known)}, got {value!r}")
