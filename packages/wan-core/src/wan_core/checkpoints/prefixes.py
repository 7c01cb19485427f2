"""What programs put before the names of a network: containers, trainers, wrappers. It is found, not listed.

A prefix is whatever stands before the place where a name that the network has begins. Checkpoints look for the family's
signature, LoRA files for the layers of the family's tables.
"""

import re
from collections.abc import Iterable, Sequence

from wan_core.checkpoints.formats import CheckpointFormat

# Segments that wrappers put anywhere into a name, such as _fsdp_wrapped_module; a network's own never look so.
_INNER = re.compile(r"(?<![^.])_\w*mod(?:ule)?\.")


def unwrapped(name: str) -> str:
    """A name without the segments of wrappers: FSDP's, activation checkpointing's, ``torch.compile``'s and the like."""
    return _INNER.sub("", name)


def known_layers(
    formats: Sequence[CheckpointFormat], *, further: Iterable[str] = (), joined: bool = False
) -> re.Pattern[str]:
    """A pattern that finds where a layer of these tables, or a ``further`` one, begins, in native or foreign spelling.

    ``joined`` also finds layers that are written with underscores in place of dots.
    """
    layers = {side for each in formats for rule in each.renames for side in rule if side is not None} | set(further)
    gap = "[._]" if joined else r"\."
    written = "|".join(re.escape(layer).replace(r"\{\}", r"\d+") for layer in sorted(layers, key=len, reverse=True))
    return re.compile(rf"(?:^|{gap})(?:{written.replace(re.escape('.'), gap)})(?={gap}|$)")


def prefix_of(name: str, known: re.Pattern[str]) -> str | None:
    """What stands before the first place in ``name`` where ``known`` matches; None where it does nowhere.

    ``known`` may match the separator in front of it, which then belongs to the prefix.
    """
    match = known.search(name)
    if match is None:
        return None
    return name[: match.start() + (match[0][:1] in (".", "_") and match.start() > 0)]


def by_prefix(names: Iterable[str], known: re.Pattern[str]) -> dict[str, list[str]]:
    """The names by their prefix, in the order in which those occur; names that ``known`` does not match are left out.

    A file of one network has one prefix; of several, one each.
    """
    found: dict[str, list[str]] = {}
    for name in names:
        prefix = prefix_of(name, known)
        if prefix is not None:
            found.setdefault(prefix, []).append(name)
    return found
