"""The networks inside one file: parts of a whole model, a trainer's copies of a network, two experts.

A network is found by names that only its family has (its signature); what stands in front of them tells where it lies.
State of an optimizer is never taken for a network.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from wan_core.checkpoints.families import Expert, Family, families
from wan_core.checkpoints.lora.names import is_lora
from wan_core.checkpoints.prefixes import by_prefix, unwrapped
from wan_core.errors import CheckpointError

if TYPE_CHECKING:
    from wan_core.checkpoints.readers.sources import TensorSource

_STATE = re.compile(
    r"(?:^|\.)(?:optim\w*|opt|opt_state\w*|exp_avg\w*|adam\w*|momentum\w*|\w*scheduler\w*|\w*grad(?:s|ients?|_\w+)?|muon\w*|\w*moments?|master_param\w*)(?:\.|$)",
    re.IGNORECASE,
)
# Adam's, where a whole network's names stand behind them: alone they are also names of layers.
_MOMENT = re.compile(r"(?:^|\.)(?:[mv]\d?|mu|nu)\.$")
# Single numbers beside averaged weights: those of LitEma, ema-pytorch and torch.
_COUNT = re.compile(r"(?:^|\.)(?:decay|num_updates|initted|step|n_averaged)$")
_AVERAGED = re.compile(r"(?:^|[._-])(?:ema|averaged?|swa|shadow)(?![a-z])", re.IGNORECASE)
_HELPER = re.compile(
    r"(?:^|[._-])(?:critic|discriminator|teacher|fake|real_score|guidance|reward|ref|reference|target|lora)(?![a-z])",
    re.IGNORECASE,
)
_EXPERT = {"high": re.compile(r"(?:^|[._])high", re.IGNORECASE), "low": re.compile(r"(?:^|[._])low", re.IGNORECASE)}


@dataclass(frozen=True)
class FoundNetwork:
    """One network of a file: what stands before its names, the families that know them, the most particular one first.

    ``names`` are the names without prefix and wrappers, with the file's own.
    """

    prefix: str
    families: tuple[str, ...]
    names: Mapping[str, str]

    @property
    def rank(self) -> int:
        """Which of several copies is taken: averaged weights (0), others (1), networks that only help training (2)."""
        return 2 if _HELPER.search(self.prefix) else 0 if _AVERAGED.search(self.prefix) else 1


def is_state(name: str) -> bool:
    """Whether a tensor belongs to an optimizer or schedule that a trainer saved beside its model."""
    return _STATE.search(name) is not None


def members_of(source: TensorSource, *also: Family) -> list[FoundNetwork]:
    """The networks in a file, those to be taken first. ``also`` are families that are looked for besides the known.

    Raises CheckpointError when two of its names are one without wrappers.
    """
    plain = plain_names(source, [name for name in source if not (is_state(name) or _is_count(source, name))])
    found: dict[str, list[str]] = {}
    owned: list[FoundNetwork] = []
    # What a project adds is more particular than what it builds on, and is looked at first.
    for family in [*also, *(family for family in reversed(families()) if family not in also)]:
        if family.owns:
            owned += _owned(family, plain)
        elif family.signature:
            for prefix in by_prefix(plain, re.compile(family.signature)):
                found.setdefault(prefix, []).append(family.name)
    inside = {prefix: names for prefix, names in _by_longest(plain, found).items() if not is_lora(names)}
    members = [FoundNetwork(each, tuple(found[each]), inside[each]) for each in inside if not _MOMENT.search(each)]
    return sorted([*members, *owned], key=lambda member: (member.rank, member.prefix))


def _owned(family: Family, plain: Mapping[str, str]) -> list[FoundNetwork]:
    """The networks of a family whose names alone tell what is its own."""
    return [
        FoundNetwork(prefix, (family.name,), {name.removeprefix(prefix): plain[name] for name in names})
        for prefix, names in by_prefix(plain, re.compile(family.owns)).items()
    ]


def _is_count(source: TensorSource, name: str) -> bool:
    return _COUNT.search(name) is not None and source.info(name).numel == 1


def _by_longest(plain: Mapping[str, str], prefixes: Collection[str]) -> dict[str, dict[str, str]]:
    """Names without their prefix, under the longest that they have; those without any are left out."""
    inside: dict[str, dict[str, str]] = {prefix: {} for prefix in prefixes}
    longest_first = sorted(prefixes, key=len, reverse=True)
    for name, own in plain.items():
        prefix = next((prefix for prefix in longest_first if name.startswith(prefix)), None)
        if prefix is not None:
            inside[prefix][name.removeprefix(prefix)] = own
    return inside


def family_of(source: TensorSource) -> str:
    """The name of the family whose weights these are, ``lora``, or ``""`` where that is not known."""
    members = members_of(source)
    if members:
        return members[0].families[0]
    return "lora" if is_lora(source) else ""


def plain_names(source: TensorSource, names: Collection[str]) -> dict[str, str]:
    """Names without the segments of wrappers, with the file's own. Raises CheckpointError when two are one."""
    plain: dict[str, str] = {}
    for own in names:
        name = unwrapped(own)
        if name in plain:
            raise CheckpointError(f"{source.path}: {own} and {plain[name]} are both {name}; the file mixes two layouts")
        plain[name] = own
    return plain


def labels(members: Sequence[FoundNetwork]) -> list[str]:
    """What to call the networks of a file: their prefixes without what all have in common at the end."""
    parts = [member.prefix.rstrip(".").split(".") for member in members]
    while len(parts) > 1 and all(len(each) > 1 and each[-1] == parts[0][-1] for each in parts):
        parts = [each[:-1] for each in parts]
    return [".".join(each) or "the file's own level" for each in parts]


def experts_of(members: Sequence[FoundNetwork]) -> dict[str, Expert]:
    """The prefixes of two experts, where the best of ``members`` are that; empty where they are not.

    Their names tell: ``high`` and ``low``, or one name and the same with a 2 behind it (``transformer_2``, ``dit2``),
    which is the low-noise expert in diffusers and DiffSynth.
    """
    best = [member.prefix for member in members if member.rank == members[0].rank]
    if len(best) != 2:
        return {}
    high, low = ([prefix for prefix in best if pattern.search(prefix)] for pattern in _EXPERT.values())
    if len(high) == len(low) == 1 and high != low:
        return {high[0]: "high", low[0]: "low"}
    first, second = sorted(best, key=len)
    parts = first.split(".")
    for index, part in enumerate(parts[:-1]):
        for end in ("2", "_2"):
            if second == ".".join([*parts[:index], part + end, *parts[index + 1 :]]):
                return {first: "high", second: "low"}
    return {}


def chosen_member(
    source: TensorSource, members: Sequence[FoundNetwork], group: str | None, expert: Expert | None
) -> FoundNetwork:
    """The network to take: that of a group or expert, else the best. Raises CheckpointError for none or several."""
    names = dict(zip(labels(members), members, strict=True))
    listed = ", ".join(names) or "one network"
    if group is not None:
        inside = [each for label, each in names.items() if group == label or each.prefix.startswith(f"{group}.")]
        if not inside:
            raise CheckpointError(f"{source.path} holds no group {group!r}; it holds {listed}")
        members = inside
    best = [member for member in members if member.rank == members[0].rank]
    experts = experts_of(members)
    if expert is not None and experts:
        return next(member for member in best if experts[member.prefix] == expert)
    if len(best) > 1:
        raise CheckpointError(
            f"{source.path} holds several networks of one kind ({listed}) and does not say which is the one to use; "
            f"take it out with 'wan convert {source.path.name} OUT.safetensors --group NAME'"
        )
    return best[0]
