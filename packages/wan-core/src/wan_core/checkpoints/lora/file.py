"""A LoRA file by its layers: which of several models in it is taken, and for which expert each half is."""

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from wan_core.checkpoints.families import Expert, families
from wan_core.checkpoints.formats import CheckpointFormat
from wan_core.checkpoints.lora.names import Role, is_copy, other_kind, part_of, prefixes_in, refuse_unmerged
from wan_core.checkpoints.members import FoundNetwork, experts_of, is_state, labels
from wan_core.checkpoints.prefixes import unwrapped
from wan_core.checkpoints.readers.sources import TensorSource
from wan_core.errors import CheckpointError

_LENGTHS = ("magnitude", "dora_scale")  # of a DoRA, in two spellings
_LORA = re.compile(r"_?lora")
_LOW = re.compile(r"(?:^|[._])low|(?:^|\.)(?:transformer|dit)_?2\.")
_HIGH = re.compile(r"(?:^|[._])high")


@dataclass(frozen=True)
class Layer:
    """A layer of a LoRA file: its ``name`` without ``prefix``, ``own`` as the file has it, its tensors by role."""

    name: str
    own: str
    prefix: str
    tensors: dict[Role, str] = field(default_factory=dict)


class LoRAFile:
    """A LoRA file, recognised but not yet matched to a network: its layers, and ``others``, which belong to none.

    ``names`` are the tensors of the network at hand, if there is one. ``notes`` say what was taken of several models.
    Raises CheckpointError for adapters of kinds that are not merged, and when two tensors are the same.
    """

    def __init__(self, source: TensorSource, formats: Sequence[CheckpointFormat], names: Collection[str] = ()) -> None:
        refuse_unmerged(source.path, source)
        self.source = source
        self.others: list[str] = []
        self.notes: list[str] = []
        every = [name for name in source if not is_copy(name, source.keys())]
        parts = {name: part for name in every if (part := part_of(name)) is not None}
        other = other_kind(name for name in every if name not in parts)
        if other is not None:
            raise CheckpointError(
                f"{source.path} is {other[0]} ({other[1]}), which cannot be merged; get it as a plain LoRA"
            )
        prefixes = prefixes_in({part.layer for part in parts.values()}, formats, names)
        taken = self._taken(prefixes)
        self._layers: dict[tuple[str, str], Layer] = {}
        for name in every:
            part = parts.get(name)
            if part is None:
                is_count = "." not in name and not source.info(name).shape  # a trainer's step, for instance
                self.others += [] if is_count or is_state(name) else [name]
            elif prefixes[part.layer] in taken:
                self._add(name, part.layer, prefixes[part.layer], part.role)
        self._leave_networks()
        self._check_twice()

    @property
    def layers(self) -> list[Layer]:
        """All layers, of both halves where the file has two."""
        return list(self._layers.values())

    def halves(self) -> dict[Expert, list[Layer]]:
        """The layers for each of two experts, where the names say it: both, or one, or none of them."""
        prefixes = {layer.prefix for layer in self.layers}
        experts = experts_of([_network(prefix) for prefix in prefixes])
        if not experts:
            experts = {each: "low" for each in prefixes if _LOW.search(each)}
            experts |= {each: "high" for each in prefixes if _HIGH.search(each)}
        found: dict[Expert, list[Layer]] = {"high": [], "low": []}
        for layer in self.layers:
            if layer.prefix in experts:
                found[experts[layer.prefix]].append(layer)
        return {expert: layers for expert, layers in found.items() if layers}

    def layers_for(self, expert: Expert | None, said: Expert | None) -> list[Layer]:
        """The layers for one of two experts, or, with ``expert`` None, for the only network there is.

        ``said`` is the expert that the user named, which counts more than the names of a single half. Raises
        CheckpointError for two halves where there is one network.
        """
        halves = self.halves()
        if expert is None and len(halves) == 2:
            starts = " and ".join(repr(layers[0].prefix) for layers in halves.values())
            raise CheckpointError(
                f"{self.source.path} holds a LoRA for each of two experts, {starts}; this model has one network. Use a "
                "LoRA that was made for it"
            )
        if expert is None or not halves or (len(halves) == 1 and said is not None):
            return self.layers
        return halves.get(expert, [])

    def prefix_of(self, name: str) -> str:
        """The longest prefix of a layer that another tensor's name begins with."""
        prefixes = {layer.prefix for layer in self.layers}
        return max((prefix for prefix in prefixes if name.startswith(prefix)), key=len, default="")

    def _taken(self, prefixes: Mapping[str, str]) -> set[str]:
        """The prefixes of the model that is taken where a trainer saved several."""
        every = list(dict.fromkeys(prefixes.values()))
        # That it is a LoRA says nothing of the network that it is for.
        ranks = {prefix: _network(_LORA.sub("", prefix)).rank for prefix in every}
        names = dict(zip(every, labels([_network(prefix) for prefix in every]), strict=True))
        best = min(ranks.values(), default=0)
        if best > 1:
            raise CheckpointError(
                f"{self.source.path} holds only {', '.join(names.values())}, for a network that helped to train; get "
                "the LoRA of the model itself (generator_lora)"
            )
        chosen = {prefix for prefix in every if ranks[prefix] == best}
        if len(chosen) < len(every):
            taken = ", ".join(names[prefix] for prefix in every if prefix in chosen)
            self.notes.append(f"note: {self.source.path.name} holds {', '.join(names.values())}; {taken} is taken")
        return chosen

    def _add(self, name: str, own: str, prefix: str, role: Role) -> None:
        layer = self._layers.setdefault((prefix, own), Layer(own.removeprefix(prefix), own, prefix))
        for same in {role, *(_LENGTHS if role in _LENGTHS else ())}:
            if same in layer.tensors:
                raise _same(self.source, layer.tensors[same], name, layer.name)
        layer.tensors[role] = name

    def _leave_networks(self) -> None:
        """Leave out, and tell of, networks that were trained along and know their names as their own."""
        owners = {name: owner for name in self.others if (owner := _owner(name)) is not None}
        self.others = [name for name in self.others if name not in owners]
        for title, count in Counter(owners.values()).items():
            self.notes.append(
                f"note: {self.source.path.name} also holds {title} ({count} tensors): no LoRA, so not merged"
            )

    def _check_twice(self) -> None:
        halves = self.halves()
        for layers in halves.values() if len(halves) == 2 else [self.layers]:
            seen: dict[tuple[str, Role], str] = {}
            for layer in layers:
                for role, name in layer.tensors.items():
                    if (layer.name, role) in seen:
                        raise _same(self.source, seen[layer.name, role], name, layer.name)
                    seen[layer.name, role] = name


def _owner(name: str) -> str | None:
    """The title of a family that has networks beside others and knows a name as its own."""
    plain = unwrapped(name)
    return next((each.title for each in families() if each.owns and re.search(each.owns, plain)), None)


def _network(prefix: str) -> FoundNetwork:
    return FoundNetwork(prefix, (), {})


def _same(source: TensorSource, one: str, other: str, layer: str) -> CheckpointError:
    return CheckpointError(f"{source.path}: {one} and {other} are the same tensor of {layer}")
