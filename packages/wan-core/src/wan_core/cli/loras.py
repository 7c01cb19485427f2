"""``--lora [high=|low=]PATH[:STRENGTH]`` and ``--force-lora``, for every command that reads a transformer."""

import math
import re
from pathlib import Path

import click

from wan_core.checkpoints import LoRA
from wan_core.cli.options import ParsedType
from wan_core.errors import RequestError

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
    return LoRA(Path(rest), strength, "high" if expert == "high" else "low" if expert == "low" else None)


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
            ["--force-lora", "--force_lora", "force_lora"],
            is_flag=True,
            help="Merge LoRAs made for another model; what has no place is left out.",
        ),
    ]
