"""How one naming of a family's tensors is said: a table over the one converter.

A format is chosen once per file, by a name that only it has; every table leaves native names as they are.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from wan_core.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

Renames = tuple[tuple[str, str | None], ...]
"""Pairs of module-path prefixes, foreign then native; ``{}`` is one index, ``None`` means dropped on purpose."""

Split = Callable[[str, "Tensor"], "dict[str, Tensor] | None"]
"""A foreign tensor to its native ones where a prefix table cannot say it; ``None`` where it can."""

Made = tuple[tuple[str, ...], Callable[..., "Tensor"]]
"""A tensor that is made of several or reshaped: the names of those, and a function of them."""

Join = Callable[[Collection[str]], Mapping[str, Made]]
"""Of native names, those foreign tensors that are made of several or reshaped."""

Fuse = Callable[[Collection[str]], Mapping[str, Made]]
"""Of foreign names, those native tensors that are made of several."""


@dataclass(frozen=True, kw_only=True)
class CheckpointFormat:
    """One naming of one family of networks.

    ``marker`` is a regular expression that occurs only in names of this format. ``renames_for`` makes a table from the
    names at hand, where indices depend on their count. ``duplicates`` are native names that a file may hold twice; the
    first rule wins.
    """

    name: str
    marker: str = ""
    renames: Renames = ()
    renames_for: Callable[[Collection[str]], Renames] | None = None
    duplicates: frozenset[str] = frozenset()
    split: Split | None = None
    fuse: Fuse | None = None
    join: Join | None = None

    def table(self, names: Collection[str]) -> Renames:
        """The whole table for a set of names, in either naming."""
        return self.renames if self.renames_for is None else (*self.renames, *self.renames_for(names))


def rename(name: str, rules: Mapping[str, str | None]) -> str | None:
    """The name after the rule with the longest matching prefix of whole segments; unchanged without one."""
    segments = name.split(".")
    for length in range(len(segments), 0, -1):
        head = segments[:length]
        candidates: list[tuple[str, str | None]] = [(".".join(head), None)]
        for position, segment in enumerate(head):
            if segment.isdigit():
                candidates.append((".".join([*head[:position], "{}", *head[position + 1 :]]), segment))
        for pattern, index in candidates:
            if pattern in rules:
                target = rules[pattern]
                if target is None:
                    return None
                return ".".join([target if index is None else target.replace("{}", index), *segments[length:]])
    return name


def get_format(formats: Sequence[CheckpointFormat], name: str) -> CheckpointFormat:
    """The format called ``name``. Raises CheckpointError naming those there are."""
    for candidate in formats:
        if candidate.name == name:
            return candidate
    raise CheckpointError(f"there is no format {name!r} here; known: {', '.join(each.name for each in formats)}")


def detect_format(names: Collection[str], formats: Sequence[CheckpointFormat]) -> CheckpointFormat:
    """The format of a file with these names: the first whose marker occurs, else the last."""
    for candidate in formats[:-1]:
        if any(re.search(candidate.marker, name) for name in names):
            return candidate
    return formats[-1]
