"""LoRA files of any naming, merged into weights while those are read: in float32, one tensor at a time.

A merged source is a source like any other, so loading, converting and writing know nothing of LoRA. Low-rank updates:
Hu et al. 2021; names and factors: peft, diffusers, kohya's sd-scripts and musubi-tuner, ComfyUI, lightx2v.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from wan_core.checkpoints.convert import native_weights
from wan_core.checkpoints.families import DIT, Expert, Family
from wan_core.checkpoints.lora.fit import Misfits, refuse_other_models
from wan_core.checkpoints.lora.names import LayerNames, Role, other_kind, part_of
from wan_core.checkpoints.lora.scale import ScaleSettings, scale_settings, stored_alpha
from wan_core.checkpoints.lora.updates import AddedUpdate, NewValue, Update
from wan_core.checkpoints.readers.reader import read_weights
from wan_core.checkpoints.readers.sources import DerivedSource, Recipe, TensorInfo, TensorSource
from wan_core.errors import CheckpointError, RequestError

_FOLDER_FILES = ("pytorch_lora_weights.safetensors", "adapter_model.safetensors", "adapter_model.bin")


@dataclass(frozen=True)
class LoRA:
    """A LoRA file (or a folder of peft or diffusers) to merge; ``expert`` None means every expert of the model."""

    path: Path
    strength: float = 1.0
    expert: Expert | None = None

    def __str__(self) -> str:
        """As written on the command line."""
        strength = "" if self.strength == 1.0 else f":{self.strength:g}"
        return f"{self.expert}={self.path}{strength}" if self.expert else f"{self.path}{strength}"


class LoRAFile:
    """A LoRA file, recognised but not yet matched to a network: layers in its own spelling, with what they hold."""

    def __init__(self, source: TensorSource) -> None:
        self.source = source
        self.layers: dict[str, dict[Role, str]] = {}
        self.others: list[str] = []
        for name in source:
            part = part_of(name)
            if part is None:
                self.others.append(name)
            elif part.role in self.layers.setdefault(part.layer, {}):
                first = self.layers[part.layer][part.role]
                raise CheckpointError(f"{source.path}: {first} and {name} are the same tensor of {part.layer}")
            else:
                self.layers[part.layer][part.role] = name


class MergedWeights(DerivedSource):
    """Native weights with LoRA files merged in; ``left_out`` names the tensors of those that ``force`` passed over."""

    def __init__(
        self,
        base: TensorSource,
        recipes: Mapping[str, Recipe],
        *,
        left_out: Mapping[Path, Sequence[str]] | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(base, recipes, metadata=metadata)
        self.left_out = {path: tuple(names) for path, names in (left_out or {}).items() if names}

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences about what was left out."""
        return tuple(
            f"note: {len(names)} tensors of {path.name} have no place in this model and are left out: {names[0]}, ..."
            for path, names in self.left_out.items()
        )


def read_lora(path: str | Path) -> LoRAFile:
    """The LoRA in a file, or in a folder as peft and diffusers save it.

    Raises CheckpointError when it cannot be read, is another kind of adapter, or is no LoRA at all.
    """
    path = Path(path)
    found = next((path / name for name in _FOLDER_FILES if (path / name).is_file()), path)
    file = LoRAFile(read_weights(found))
    other = other_kind(file.source)
    if other is not None:
        raise CheckpointError(f"{found} is {other[0]} ({other[1]}), which cannot be merged; get it as a plain LoRA")
    if not file.layers:
        names = ", ".join(file.others[:3])
        raise CheckpointError(f"{found} is not a LoRA: none of its {len(file.others)} tensors is an update ({names})")
    return file


def loras_for(loras: Sequence[LoRA], expert: Expert | None) -> list[LoRA]:
    """Those of ``loras`` for one of two experts, or, with ``expert`` None, for the only network there is.

    Raises RequestError when one of them is for an expert and there is only one network.
    """
    chosen = next((lora for lora in loras if lora.expert is not None), None)
    if expert is None and chosen is not None:
        raise RequestError(
            f"this model has one network, no {chosen.expert}-noise expert; give the LoRA as --lora {chosen.path}"
        )
    return [lora for lora in loras if lora.expert in (None, expert)]


def with_loras(
    source: TensorSource,
    loras: Sequence[LoRA],
    *,
    force: bool = False,
    dtype: torch.dtype | None = None,
    family: Family = DIT,
) -> MergedWeights:
    """The weights of ``source`` under native names with ``loras`` merged in: sums of strength x alpha / rank x B A.

    Tensors keep their dtype, or the wider of it and ``dtype``. Which expert a LoRA is for is the caller's matter.
    ``force`` allows LoRAs that were made for another model: what has no place is left out. Raises one CheckpointError
    for all LoRAs that cannot be read or do not fit, before any weight is read.
    """
    native = native_weights(source, family)
    updates: list[tuple[Update, float]] = []
    left_out: dict[Path, list[str]] = {}
    for lora in loras:
        file = read_lora(lora.path)
        if not force:
            refuse_other_models(file.source, native)
        matched = _Matching(file, native, family)
        matched.misfits.check(force=force)
        left_out[file.source.path] = matched.misfits.unmatched
        updates += [(update, lora.strength) for update in matched.updates]
    return MergedWeights(native, _recipes(native, updates, dtype), left_out=left_out)


def with_delta(base: TensorSource, delta: TensorSource, *, family: Family = DIT) -> MergedWeights:
    """The native tensors of ``base`` as ``delta`` has them: its updates added, its plain tensors put in place.

    This is how the bundled tiny models share one network. Raises CheckpointError for what has no place in ``base``.
    """
    matched = _Matching(LoRAFile(delta), base, family, plain_tensors=True)
    matched.misfits.check(force=False)
    return MergedWeights(
        base, _recipes(base, [(update, 1.0) for update in matched.updates], None), metadata=delta.metadata
    )


class _Matching:
    """The updates of one file for the tensors of one network, and what does not fit."""

    def __init__(self, file: LoRAFile, native: TensorSource, family: Family, *, plain_tensors: bool = False) -> None:
        self.updates: list[Update] = []
        self.misfits = Misfits(file.source, native)
        self._source = file.source
        self._native = native
        self._names = LayerNames(file.layers, native.keys(), family.formats)
        self._settings: ScaleSettings = scale_settings(file.source)
        for layer, names in file.layers.items():
            self._add_layer(layer, names)
        for name in file.others:
            if plain_tensors and name in native:
                self._add(NewValue(target=name, names=(name,), source=self._source, reshapes=True))
            else:
                self.misfits.unmatched.append(name)

    def _add_layer(self, layer: str, names: Mapping[Role, str]) -> None:
        is_pair = "down" in names and "up" in names
        if ("down" in names) != ("up" in names) or (not is_pair and {"bias", "alpha"} >= set(names)):
            self.misfits.incomplete += names.values()
            return
        fused = self._parts(layer, names)
        if fused is None:
            self.misfits.unmatched += names.values()
            return
        scale = self._scale(layer, names) if is_pair else 1.0
        if scale is None:
            return
        for index, target in enumerate(fused):
            self._add_parts(target, names, scale, index, len(fused))

    def _parts(self, layer: str, names: Mapping[Role, str]) -> list[str] | None:
        """The native layers of a layer: several of one that diffusers fuses, None for what networks leave out."""
        split = self._names.format.split
        first = self._source.info(names.get("up") or next(iter(names.values())))
        parts = split(f"{layer}.weight", first.like()) if split is not None and first.shape else None
        if parts is not None:
            return [name.removesuffix(".weight") for name in parts]
        native = self._names.native(layer)
        return None if native is None else [native]

    def _scale(self, layer: str, names: Mapping[Role, str]) -> float | None:
        down, up = (self._source.info(names[half]).shape for half in ("down", "up"))
        if len(down) < 2 or len(up) < 2 or down[0] != up[1] or min(*down, *up) < 1:
            self.misfits.misshaped.append(f"{names['down']} {list(down)} and {names['up']} {list(up)} are no pair")
            return None
        alpha = stored_alpha(self._source, names["alpha"]) if "alpha" in names else None
        return self._settings.factor(layer, down[0], alpha)

    def _add_parts(self, layer: str, names: Mapping[Role, str], scale: float, part: int, parts: int) -> None:
        weight = layer if layer in self._native else f"{layer}.weight"  # a modulation is a tensor without a layer
        modulation = layer if layer.endswith(".modulation") else f"{layer}.modulation"
        source = self._source
        added: tuple[tuple[tuple[Role, ...], str, float], ...] = (
            (("down", "up"), weight, scale),
            (("bias",), f"{layer}.bias", scale),
            (("diff",), weight, 1.0),
            (("diff_b",), f"{layer}.bias", 1.0),
            (("diff_m",), modulation, 1.0),
        )
        for roles, target, factor in added:
            if roles[0] in names:
                used = tuple(names[role] for role in roles)
                self._add(AddedUpdate(target=target, names=used, source=source, scale=factor, part=part, parts=parts))
        new: tuple[tuple[Role, str], ...] = (("whole", weight), ("whole_b", f"{layer}.bias"))
        for role, target in new:
            if role in names:
                self._add(NewValue(target=target, names=(names[role],), source=source))

    def _add(self, update: Update) -> None:
        if update.target not in self._native:
            self.misfits.unmatched += [name for name in update.names if name not in self.misfits.unmatched]
            return
        wanted = self._native.info(update.target).shape
        shape = update.shape(wanted)
        if shape != wanted:
            self.misfits.misshaped.append(f"{update.names[-1]} for {list(shape)} instead of {list(wanted)}")
            return
        self.updates.append(update)


def _recipes(
    native: TensorSource, updates: Sequence[tuple[Update, float]], dtype: torch.dtype | None
) -> dict[str, Recipe]:
    by_target: dict[str, list[tuple[Update, float]]] = {}
    for update, strength in updates:
        by_target.setdefault(update.target, []).append((update, strength))
    recipes = {name: Recipe((name,), native.info(name)) for name in native}
    for target, chosen in by_target.items():
        info = native.info(target)
        replaced = next((update.info for update, _ in chosen if isinstance(update, NewValue) and update.reshapes), None)
        result = replaced or TensorInfo(info.shape, _merged_dtype(info.dtype, dtype))
        recipes[target] = Recipe(() if replaced else (target,), result, partial(_merged, chosen, result.dtype))
    return recipes


def _merged(updates: Sequence[tuple[Update, float]], dtype: torch.dtype, inputs: Sequence[Tensor]) -> Tensor:
    # A copy: what was read may be a mapped file.
    weight = inputs[0].to(torch.float32, copy=True).contiguous() if inputs else torch.empty(0)
    for update, strength in updates:
        weight = update.add(weight, strength)
        update.release()
    return weight.to(dtype)


def _merged_dtype(stored: torch.dtype, wanted: torch.dtype | None) -> torch.dtype:
    """The stored dtype, or the wider one wanted; 8-bit floats are too coarse for most updates."""
    stored = torch.bfloat16 if stored.itemsize == 1 or not stored.is_floating_point else stored
    return stored if wanted is None else torch.promote_types(stored, wanted)
