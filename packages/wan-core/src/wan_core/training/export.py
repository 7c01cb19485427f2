"""What a run leaves for others: a LoRA file, or a whole model in the official layout."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor, nn

from wan_core.checkpoints import (
    CheckpointLayout,
    MemorySource,
    official_config,
    read_weights,
    stays_float32,
    write_file,
    write_json,
    write_shards,
)
from wan_core.drafts import merged_folder, replaced_file
from wan_core.errors import CheckpointError
from wan_core.models import WanDiT
from wan_core.presets import Preset
from wan_core.tasks import Companion
from wan_core.training.ranks import Ranks


def save_network(
    network: WanDiT,
    folder: str | Path,
    *,
    dtype: torch.dtype,
    metadata: Mapping[str, str] | None = None,
    ranks: Ranks | None = None,
) -> Path:
    """Write a DiT as an official checkpoint folder has it: sharded safetensors and ``config.json``; returns the folder.

    What the network keeps in float32 stays so. Its files come into the folder together. With several ``ranks`` all must
    call it; the first writes. Raises MediaError when the disk refuses.
    """
    ranks, folder = ranks or Ranks(), Path(folder)
    tensors = _gathered(network, ranks)
    if ranks.is_first:
        source = MemorySource(tensors)
        dtypes = {name: dtype for name in tensors if not stays_float32(network, name)}
        with merged_folder(folder) as draft:
            write_shards(source, draft, dtypes=dtypes, metadata={"format": "pt", **(metadata or {})})
            write_json(draft / "config.json", official_config(network.config))
    return folder


def save_companion(companion: Companion, path: Path, *, metadata: Mapping[str, str], ranks: Ranks) -> Path:
    """Write a network that was trained beside the transformer, with what its file has to say; returns the path.

    All ``ranks`` must call it; the first writes. Raises MediaError.
    """
    tensors = _gathered(companion.network, ranks)
    if ranks.is_first:
        write_file(MemorySource(tensors), path, metadata={"format": "pt", **companion.metadata, **metadata})
    return path


def _gathered(network: nn.Module, ranks: Ranks) -> dict[str, Tensor]:
    """The weights on the CPU of the first rank; the others, and every GPU, hold one gathered weight at a time."""
    tensors: dict[str, Tensor] = {}
    for name, tensor in network.state_dict().items():
        whole = ranks.whole(tensor)
        if ranks.is_first:
            tensors[name] = whole.cpu()
    return tensors


def complete_model(preset: Preset, source: Path, target: Path) -> Path:
    """Put the parts that were not trained beside a trained network, so that ``target`` is a whole model; returns it.

    Files are linked where the disk can, else copied, as those of the installed package always are; each appears whole
    or not at all, and one of another size than its source's is put again. Parts that come from elsewhere, and a trained
    network that ``target`` has, stay. Raises CheckpointError for a part that is missing, MediaError.
    """
    layout = CheckpointLayout(source, preset.name)
    for part in (each for each in preset.parts if each.source is None):
        if part.family.is_denoiser and _is_trained(target / part.place):
            continue
        if part.is_optional and not layout.has(part):
            continue
        found = layout.find(part)
        place = target / (part.place if Path(part.file).is_absolute() else found.relative_to(layout.folder))
        files = [each for each in sorted(found.rglob("*")) if each.is_file()] if found.is_dir() else [found]
        for file in files:
            _put(file, place / file.relative_to(found), may_link=not preset.bundled)
    return target


def _is_trained(folder: Path) -> bool:
    """Whether a network lies there that a run has written, this one or an earlier one of the other expert."""
    with suppress(CheckpointError):
        return "training" in read_weights(folder).metadata
    return False


def _put(source: Path, place: Path, *, may_link: bool) -> None:
    """A link to a file or a copy of it, unless ``place`` has one of its size."""
    source = source.resolve()
    if place.is_file() and place.stat().st_size == source.stat().st_size:
        return
    with replaced_file(place) as draft:
        if may_link:
            with suppress(OSError):
                os.link(source, draft)
                return
        shutil.copy2(source, draft)
