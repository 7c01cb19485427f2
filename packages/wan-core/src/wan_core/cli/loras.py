"""``--lora [high=|low=]PATH[:STRENGTH]`` and ``--force-lora``, for every command that reads a transformer."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from wan_core import checkpoints
from wan_core.cli.options import ParsedType
from wan_core.errors import RequestError

if TYPE_CHECKING:
    import torch

    from wan_core.checkpoints import Expert, LoRA, TensorSource

_EXPERT = re.compile(r"(high|low)=(.*)", re.DOTALL)
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?|[+-]?(?:nan|inf(?:inity)?)", re.IGNORECASE)
_MAX_STRENGTH = 100.0


def parse_lora(text: str) -> LoRA:
    """``PATH``, ``PATH:0.8``, ``high=PATH``: a strength is a number after the last colon, unless a file is called so.

    Other colons and equals signs belong to the path. Raises RequestError for a file that is not there, or a strength
    that is no number from -100 to 100.
    """
    match = _EXPERT.fullmatch(text)
    expert, rest = (match.group(1), match.group(2)) if match and not Path(text).exists() else (None, text)
    name, colon, tail = rest.rpartition(":")
    strength = 1.0
    if colon and _NUMBER.fullmatch(tail) and not Path(rest).exists():
        strength, rest = float(tail), name
        if not math.isfinite(strength) or abs(strength) > _MAX_STRENGTH:
            raise RequestError(f"the strength of a LoRA is a number from -100 to 100, got {tail} in {text!r}")
    if not rest:
        raise RequestError(f"{text!r} names no LoRA file; write PATH or PATH:STRENGTH")
    if not Path(rest).exists():
        if colon and Path(name).exists():
            raise RequestError(f"the strength of a LoRA is a number, got {tail!r}; write {name}:0.8")
        raise RequestError(f"there is no LoRA file {rest}")
    return checkpoints.LoRA(Path(rest), strength, "high" if expert == "high" else "low" if expert == "low" else None)


def lora_options() -> list[click.Option]:
    """``--lora`` (``loras``, a tuple of :class:`LoRA`) and ``--force-lora`` (``force_lora``)."""
    return [
        click.Option(
            ["--lora", "loras"],
            type=ParsedType("lora", parse_lora),
            multiple=True,
            metavar="[high=|low=]PATH[:STRENGTH]",
            help="A LoRA to merge while reading; repeatable. high= and low= choose one of two experts.",
        ),
        click.Option(
            ["--force-lora", "force_lora"],
            is_flag=True,
            help="Merge LoRAs made for another model; what has no place is left out.",
        ),
    ]


class LoRAMerge:
    """Merges LoRAs into each transformer that is written; tensors keep their dtype or the wider ``dtype``.

    Sums are made on ``device``, by default the CPU.
    """

    def __init__(
        self, loras: Sequence[LoRA], *, force: bool, dtype: torch.dtype | None, device: torch.device | None = None
    ) -> None:
        self._loras = tuple(loras)
        self._force = force
        self._dtype = dtype
        self._device = device
        self._notes: list[str] = []
        self._count = 0

    def __call__(self, native: TensorSource, expert: Expert | None) -> TensorSource:
        """The native weights of a transformer with what is for it. Raises RequestError, CheckpointError."""
        loras = checkpoints.loras_for(self._loras, expert)
        merged = checkpoints.with_loras(
            native, loras, force=self._force, dtype=self._dtype, expert=expert, device=self._device
        )
        self._notes += [note for note in merged.notes if note not in self._notes]
        self._count += 1
        return merged

    def check_out(self, out: Path) -> None:
        """Raises RequestError when writing ``out`` would replace one of the LoRAs."""
        taken = next((lora.path for lora in self._loras if lora.path.resolve().is_relative_to(out.resolve())), None)
        if taken is not None:
            raise RequestError(f"{out} would replace the LoRA {taken}; choose another place")

    def report(self, source: Path, log: Callable[[str], None]) -> None:
        """Tell what was left out. Raises RequestError when ``source`` had no transformer at all."""
        if not self._count:
            raise RequestError(f"{source} holds no transformer, which is what a LoRA changes; name one that does")
        for note in self._notes:
            log(note)
