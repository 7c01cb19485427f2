"""LoRA files of any naming, merged into weights while those are read: in float32, one tensor at a time.

A merged source is a source like any other, so loading, converting and writing know nothing of LoRA. Names and factors:
peft, diffusers, kohya's sd-scripts and musubi-tuner, lycoris, ComfyUI, lightx2v.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from wan_core.checkpoints.convert import NativeWeights, native_weights
from wan_core.checkpoints.families import DIT, Expert, Family
from wan_core.checkpoints.lora.file import LoRAFile
from wan_core.checkpoints.lora.fit import refuse_other_models
from wan_core.checkpoints.lora.matching import Matching
from wan_core.checkpoints.lora.scale import adapter_settings
from wan_core.checkpoints.lora.updates import NewValue, Update
from wan_core.checkpoints.readers.quantized import dequantized
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


class MergedWeights(DerivedSource):
    """Native weights with LoRA files merged in; ``left_out`` names the tensors of those that ``force`` passed over."""

    def __init__(
        self,
        base: TensorSource,
        recipes: Mapping[str, Recipe],
        *,
        left_out: Mapping[Path, Sequence[str]] | None = None,
        remarks: Sequence[str] = (),
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(base, recipes, metadata=metadata)
        self.left_out = {path: tuple(names) for path, names in (left_out or {}).items() if names}
        self._remarks = tuple(remarks)

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences about what was left out."""
        forced = (
            f"note: {len(names)} tensors of {path.name} have no place in this model and are left out: {names[0]}, ..."
            for path, names in self.left_out.items()
        )
        return (*self._remarks, *forced)


def read_lora(path: str | Path, family: Family = DIT, names: Collection[str] = ()) -> LoRAFile:
    """The LoRA in a file, or in a folder as peft and diffusers save it; ``names`` are the tensors of its network.

    Raises CheckpointError when it cannot be read, is an adapter that is not merged, or is no LoRA at all.
    """
    path = Path(path)
    found = next((path / name for name in _FOLDER_FILES if (path / name).is_file()), path)
    adapter_settings(source := dequantized(read_weights(found)))  # a kind of adapter may have no names of its own
    file = LoRAFile(source, family.formats, names)
    if not file.layers:
        names = file.others or list(source)  # others are none where all are of a network that LoRAs may come with
        shown = ", ".join(names[:3]) or "it has none"
        raise CheckpointError(f"{found} is not a LoRA: none of its {len(names)} tensors is an update ({shown})")
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
    family: Family | None = None,
    expert: Expert | None = None,
    device: torch.device | None = None,
) -> MergedWeights:
    """The weights of ``source`` under native names with ``loras`` merged in: sums of strength x alpha / rank x B A.

    They are of ``family``, by default the one of which they are native weights already, else of Wan's transformer.
    Tensors keep their dtype, or the wider of it and ``dtype``. ``expert`` says which of two experts ``source`` is: of a
    file with two halves its own is taken; which files are for it is the caller's matter. ``force`` allows LoRAs that
    were made for another model: what has no place is left out. Sums are made on ``device``, by default the CPU, where
    they are handed out in any case. Raises one CheckpointError for all LoRAs that cannot be
    read or do not fit, before any weight is read.
    """
    family = family or (source.family if isinstance(source, NativeWeights) else DIT)
    native = native_weights(source, family)
    updates: list[tuple[Update, float]] = []
    left_out: dict[Path, list[str]] = {}
    remarks: list[str] = []
    for lora in loras:
        file = read_lora(lora.path, family, native.keys())
        if not force:
            refuse_other_models(file.source, native)
        remarks += file.notes
        layers = file.layers_for(expert, lora.expert)
        if not layers:
            remarks.append(f"note: {file.source.path.name} is for the other expert alone: {file.layers[0].prefix}...")
            continue
        matched = Matching(file, layers, native, family)
        branch = matched.misfits.without_image_branch()
        if branch:
            remarks.append(
                f"note: {len(branch)} tensors of {file.source.path.name} are for Wan2.1's image branch, which this "
                f"model does not have, and are left out: {branch[0]}, ..."
            )
        matched.misfits.check(force=force)
        remarks += matched.notes
        left_out[file.source.path] = matched.misfits.unmatched
        updates += [(update, lora.strength) for update in matched.updates]
    return MergedWeights(native, _recipes(native, updates, dtype, device), left_out=left_out, remarks=remarks)


def with_delta(base: TensorSource, delta: TensorSource, *, family: Family = DIT) -> MergedWeights:
    """The native tensors of ``base`` as ``delta`` has them: its updates added, its plain tensors put in place.

    This is how the bundled tiny models share one network. Raises CheckpointError for what has no place in ``base``.
    """
    file = LoRAFile(delta, family.formats, base.keys())
    matched = Matching(file, file.layers, base, family, plain_tensors=True)
    matched.misfits.check(force=False)
    return MergedWeights(
        base, _recipes(base, [(update, 1.0) for update in matched.updates], None), metadata=delta.metadata
    )


def _recipes(
    native: TensorSource,
    updates: Sequence[tuple[Update, float]],
    dtype: torch.dtype | None,
    device: torch.device | None = None,
) -> dict[str, Recipe]:
    by_target: dict[str, list[tuple[Update, float]]] = {}
    for update, strength in updates:
        by_target.setdefault(update.target, []).append((update, strength))
    recipes = {name: Recipe((name,), native.info(name)) for name in native}
    for target, chosen in by_target.items():
        info = native.info(target)
        replaced = next((update.info for update, _ in chosen if isinstance(update, NewValue) and update.reshapes), None)
        result = replaced or TensorInfo(info.shape, _merged_dtype(info.dtype, dtype))
        recipes[target] = Recipe(() if replaced else (target,), result, partial(_merged, chosen, result.dtype, device))
    return recipes


def _merged(
    updates: Sequence[tuple[Update, float]], dtype: torch.dtype, device: torch.device | None, inputs: Sequence[Tensor]
) -> Tensor:
    # A copy: what was read may be a mapped file.
    start = inputs[0].to(torch.float32, copy=True).contiguous() if inputs else torch.empty(0)
    weight = start.to(device)
    for update, strength in updates:
        if strength:
            weight = update.add(weight, strength)
            update.release()
    return weight.to(dtype).cpu()


def _merged_dtype(stored: torch.dtype, wanted: torch.dtype | None) -> torch.dtype:
    """The stored dtype, or the wider one wanted; 8-bit floats are too coarse for most updates."""
    stored = torch.bfloat16 if stored.itemsize == 1 or not stored.is_floating_point else stored
    return stored if wanted is None else torch.promote_types(stored, wanted)
