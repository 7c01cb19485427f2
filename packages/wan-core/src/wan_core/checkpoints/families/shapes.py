"""Network configs from what a checkpoint tells: shapes of tensors, and the JSON in its files.

What shapes cannot tell comes from a JSON object under the key ``config`` of the file's metadata, where it has one (our
own tiny models do), and otherwise is that of the released models.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from wan_core.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from wan_core.checkpoints.readers.sources import TensorSource

ConfigT = TypeVar("ConfigT")

_MAX_LAYERS = 512


def heads_of(source: TensorSource, dim: int, head_dim: int) -> int:
    """Heads of the released width. Raises CheckpointError where they do not fit: a wrong count would load, and lie."""
    if dim % head_dim:
        raise CheckpointError(
            f"{source.path} does not say how many heads it has (width {dim} is no multiple of {head_dim}); "
            f"put num_heads into a config.json beside it"
        )
    return dim // head_dim


class Shapes:
    """Shapes and counts of a source, with errors that name the network they should be of."""

    def __init__(self, source: TensorSource, what: str) -> None:
        self.source = source
        self.what = what

    def of(self, name: str, ndim: int) -> tuple[int, ...]:
        """The shape of a tensor. Raises CheckpointError when it is missing or has another number of dimensions."""
        if name not in self.source:
            raise CheckpointError(f"{self.source.path} holds no {self.what} that we know: it has no tensor {name}")
        shape = self.source.info(name).shape
        if len(shape) != ndim or min(shape) < 1:
            raise CheckpointError(f"{self.source.path}: {name} must have {ndim} dimensions, its shape is {list(shape)}")
        return shape

    def count(self, pattern: str) -> int:
        """One more than the highest number that the pattern's group finds at the beginning of names.

        Raises CheckpointError for none or too many.
        """
        count = max((int(match[1]) for name in self.source if (match := re.match(pattern, name))), default=-1) + 1
        if not 1 <= count <= _MAX_LAYERS:
            raise CheckpointError(f"{self.source.path}: a {self.what} has 1 to {_MAX_LAYERS} layers, this has {count}")
        return count


def stated(source: TensorSource, names: tuple[str, ...]) -> dict[str, Any]:
    """What the file itself says about its config: those of ``names`` that the JSON in its metadata has."""
    text = source.metadata.get("config", "")
    try:
        content = json.loads(text) if text else {}
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{source.path}: the config in its metadata is no JSON") from error
    return {name: content[name] for name in names if name in content} if isinstance(content, dict) else {}


def build_config(config: type[ConfigT], values: Mapping[str, Any], origin: Path) -> ConfigT:
    """The config with these values of a file, whose types are checked. Raises CheckpointError naming the wrong one."""
    whole = {field.name for field in fields(cast(Any, config)) if field.type in (int, "int")}
    wrong = [n for n, value in values.items() if not _is_sane(value) or (n in whole and type(value) is not int)]
    if wrong:
        raise CheckpointError(f"{origin}: {wrong[0]} is {str(values[wrong[0]])[:60]!r}, which makes no sense")
    try:
        return config(**values)
    except (ConfigError, TypeError, ValueError, ZeroDivisionError) as error:
        raise CheckpointError(f"{origin}: {str(error)[:200]}") from error


def _is_sane(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return len(value) <= 4096 and all(_is_sane(item) and not isinstance(item, list | tuple) for item in value)
    return value is None or isinstance(value, str | bool) or (isinstance(value, int | float) and abs(value) <= 2**24)
