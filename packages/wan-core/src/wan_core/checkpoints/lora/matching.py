"""A LoRA file against a network: which tensors its layers change, how, and what does not fit."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from wan_core.checkpoints.families import Family
from wan_core.checkpoints.lora.changes import PLAIN, Change, change_in
from wan_core.checkpoints.lora.file import Layer, LoRAFile
from wan_core.checkpoints.lora.fit import Misfits
from wan_core.checkpoints.lora.names import LayerNames, LayerPart, Role, part_of, without_copy
from wan_core.checkpoints.lora.scale import AdapterSettings, adapter_settings, module_name, stored_alpha, told_alpha
from wan_core.checkpoints.lora.updates import AddedUpdate, DecomposedUpdate, NewValue, RowsUpdate, Update
from wan_core.checkpoints.prefixes import unwrapped
from wan_core.checkpoints.readers.sources import TensorSource
from wan_core.errors import CheckpointError
from wan_core.files import plain_text

_LENGTHS = {"magnitude", "dora_scale"}
_COMPANIONS = {"bias", "alpha", *_LENGTHS}  # which mean nothing alone


@dataclass(frozen=True)
class _Fused:
    """One native layer of those that a layer of the file stands for: ``part`` of ``parts``; or some ``rows`` of one."""

    layer: str
    part: int = 0
    parts: int = 1
    rows: tuple[int, int] | None = None


class Matching:
    """The updates of some layers of a file for the tensors of one network, and what does not fit."""

    def __init__(
        self,
        file: LoRAFile,
        layers: Sequence[Layer],
        native: TensorSource,
        family: Family,
        *,
        plain_tensors: bool = False,
    ) -> None:
        self.updates: list[Update] = []
        self.misfits = Misfits(file.source, native)
        self._source = file.source
        self._native = native
        self._names = LayerNames([layer.name for layer in layers], native.keys(), family.formats)
        self._rows = self._names.rows(native)
        self._settings = adapter_settings(file.source)
        self._owners: dict[tuple[str, tuple[int, int] | None], tuple[str, str]] = {}
        self._own_ranks: set[float] = set()  # of layers whose alpha nothing says
        self.notes: list[str] = []
        self._check_numbers([name for layer in layers for role, name in layer.tensors.items() if role != "alpha"])
        for layer in layers:
            self._add_layer(layer)
        for name in file.others:
            if plain_tensors and name in native:
                self._add(NewValue(target=name, names={"whole": name}, source=self._source, reshapes=True))
            else:
                self._check_numbers([name])
                self._add_saved_whole(name, file.prefix_of(name))
        self.misfits.nothing_fits = not self.updates
        told = told_alpha(file.source) if self._own_ranks and not self._settings else None
        if told is not None and {told[1]} != self._own_ranks:
            self.notes.append(
                f"note: {file.source.path.name} says {plain_text(told[0])[:60]} = {told[1]:g}, and its layers of rank "
                f"{min(self._own_ranks)} have no alpha beside them: it is taken to be the rank. If it was trained with "
                f"that alpha, give the strength {told[1] / min(self._own_ranks):g} behind the name"
            )

    def _check_numbers(self, names: Sequence[str]) -> None:
        self.misfits.whole += [name for name in names if not self._source.info(name).dtype.is_floating_point]

    def _settings_of(self, prefix: str) -> tuple[str, AdapterSettings]:
        """The settings for what stands behind a prefix, and the pipeline's component that they name."""
        component = prefix.removesuffix(".").rpartition(".")[2]
        if component in self._settings:
            return component, self._settings[component]
        return next(iter(self._settings.items()), ("", AdapterSettings()))

    def _add_layer(self, layer: Layer) -> None:
        names = dict(layer.tensors)
        component, settings = self._settings_of(layer.prefix)
        change = change_in(names)
        roles = _complete_roles(change, names, settings)
        if roles is None:
            self.misfits.incomplete += names.values()
            return
        targets = self._targets(layer.name)
        if targets is None:
            self.misfits.unmatched += names.values()
            return
        scale = 1.0
        if change is not None:
            stored = {role: names.pop(role) for role in roles}
            try:
                _, rank = change.shape({role: self._source.info(name).shape for role, name in stored.items()})
            except ValueError:
                self._misshaped(change.name, stored)
                return
            alpha = stored_alpha(self._source, names["alpha"]) if "alpha" in names else None
            if alpha is None and rank is not None:
                self._own_ranks.add(rank)
            scale = settings.factor(module_name(layer.own, layer.prefix, component), rank, alpha)
            update = AddedUpdate(target="", names=stored, source=self._source, change=change, scale=scale)
            for target in targets:
                self._add_change(update, target, names)
        for target in targets:
            self._add_rest(names, scale, target)

    def _misshaped(self, kind: str, stored: Mapping[Role, str]) -> None:
        shown = " and ".join(f"{name} {list(self._source.info(name).shape)}" for name in stored.values())
        self.misfits.misshaped.append(f"{shown} are no pair" if kind == "LoRA" else f"{shown} are no {kind}")

    def _targets(self, layer: str) -> list[_Fused] | None:
        """The native layers of a layer: several of one that diffusers fuses, None for what networks leave out."""
        split = self._names.format.split
        # Any shape that can be cut: the names of the parts are asked for, not the parts.
        parts = None if split is None else split(f"{layer}.weight", torch.empty(6, 1))
        if parts is not None:
            return [_Fused(name.removesuffix(".weight"), part, len(parts)) for part, name in enumerate(parts)]
        if layer in self._rows:
            native, rows = self._rows[layer]
            return [_Fused(native, rows=rows)]
        found = self._names.native(layer)
        return None if found is None else [_Fused(found)]

    def _weight(self, layer: str) -> str:
        return layer if layer in self._native else f"{layer}.weight"  # a modulation is a tensor without a layer

    def _add_change(self, update: AddedUpdate, fused: _Fused, names: Mapping[Role, str]) -> None:
        change = replace(update, target=self._weight(fused.layer), part=fused.part, parts=fused.parts)
        role = next((role for role in ("magnitude", "dora_scale") if role in names), None)
        if role is None or change.target not in self._native:
            self._add(change, fused.rows)
            return
        shape, length = self._native.info(change.target).shape, self._source.info(names[role]).shape
        shape = shape if fused.rows is None else (fused.rows[1] - fused.rows[0], *shape[1:])
        of_rows = role == "magnitude" or length[:1] != (1,)
        wanted = shape[0] * fused.parts if of_rows else shape[1] if len(shape) > 1 and fused.parts == 1 else 0
        if math.prod(length) != wanted:
            self.misfits.misshaped.append(f"{names[role]} {list(length)} for {list(shape)}")
            return
        self._add(
            DecomposedUpdate(
                target=change.target, names={"magnitude": names[role]}, source=self._source, change=change,
                of_rows=of_rows,
            ),
            fused.rows,
        )  # fmt: skip

    def _add_rest(self, names: Mapping[Role, str], scale: float, fused: _Fused) -> None:
        """What stands beside a pair, or alone: whole new values, then changes."""
        layer, source = fused.layer, self._source
        weight = self._weight(layer)
        modulation = layer if layer.endswith(".modulation") else f"{layer}.modulation"
        for role, target in (("whole", weight), ("whole_b", f"{layer}.bias")):
            if role in names:
                self._add(NewValue(target=target, names={"whole": names[role]}, source=source), fused.rows)
        added = (("bias", f"{layer}.bias", scale), ("diff", weight, 1.0), ("diff_b", f"{layer}.bias", 1.0),
                 ("diff_m", modulation, 1.0))  # fmt: skip
        for role, target, factor in added:
            if role in names:
                self._add(
                    AddedUpdate(
                        target=target, names={"diff": names[role]}, source=source, change=PLAIN, scale=factor,
                        part=fused.part, parts=fused.parts,
                    ),
                    fused.rows,
                )  # fmt: skip
        known = {"whole", "whole_b", *_COMPANIONS, *(role for role, *_ in added)}
        self.misfits.unmatched += [name for role, name in names.items() if role not in known and fused.part == 0]

    def _add_saved_whole(self, name: str, prefix: str) -> None:
        """A tensor of a module that peft saved whole, or one of the biases that it trained."""
        own = without_copy(unwrapped(name))
        component, settings = self._settings_of(prefix)
        module = module_name(own, prefix, component)
        target = self._names.native(own.removeprefix(prefix))
        is_bias = settings.has_biases and own.endswith(".bias")
        times = settings.times_whole(module.rpartition(".")[0])
        if times > 1:
            raise CheckpointError(
                f"{self._source.path}: {name} is in a module that peft saves whole, inside another that it does "
                f"({', '.join(settings.whole)}); it saves such ones without their training. Name one of them alone"
            )
        if target is None or not (is_bias or times or own != unwrapped(name)):
            self.misfits.unmatched.append(name)
            return
        self._add(NewValue(target=target, names={"whole": name}, source=self._source))

    def _add(self, update: Update, rows: tuple[int, int] | None = None) -> None:
        if rows is not None:
            update = RowsUpdate(target=update.target, names=update.names, source=update.source, inner=update, rows=rows)
        names = list(update.names.values())
        if update.target not in self._native:
            self.misfits.unmatched += [name for name in names if name not in self.misfits.unmatched]
            return
        wanted = self._native.info(update.target).shape
        shape = update.shape(wanted)
        if shape != wanted:
            self.misfits.misshaped.append(f"{names[-1]} for {list(shape)} instead of {list(wanted)}")
            return
        # A layer may change a tensor in several ways; another that does is the same layer in another spelling.
        layer = (part_of(names[0]) or LayerPart(unwrapped(names[0]).rpartition(".")[0], "whole")).layer
        first, name = self._owners.setdefault((update.target, rows), (layer, names[0]))
        if first != layer:
            raise CheckpointError(
                f"{self._source.path}: {name} and {names[0]} both change {update.target}; the file mixes two layouts"
            )
        self.updates.append(update)


def _complete_roles(
    change: Change | None, names: Mapping[Role, str], settings: AdapterSettings
) -> tuple[Role, ...] | None:
    """The roles that a layer's change is made of, none where it has none; None when something is missing."""
    if change is None:
        return None if set(names) <= _COMPANIONS else ()
    if settings.decomposed and not _LENGTHS & set(names):
        return None
    return change.roles(names)
