"""What a run leaves for others: a LoRA file, or a whole model in the official layout."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from wan_core.checkpoints import CheckpointLayout, MemorySource, official_config, write_file, write_json, write_shards
from wan_core.files import write_error
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

    What the network keeps in float32 stays so. With several ``ranks`` all must call it; the first writes. Raises
    MediaError when the disk refuses.
    """
    ranks, folder = ranks or Ranks(), Path(folder)
    tensors = _gathered(network, ranks)
    if ranks.is_first:
        source = MemorySource(tensors)
        kept = set(network.float32_modules)
        dtypes = {name: dtype for name in tensors if not any(f".{part}." in f".{name}." for part in kept)}
        write_shards(source, folder, dtypes=dtypes, metadata={"format": "pt", **(metadata or {})})
        write_json(folder / "config.json", official_config(network.config))
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

    Files are linked where the disk can, else copied, as those of the installed package always are; parts that have a
    place of their own stay there. Raises CheckpointError for a part that is missing, MediaError.
    """
    put = shutil.copy2 if preset.bundled else _link_file
    layout = CheckpointLayout(source, preset.name)
    for part in (each for each in preset.parts if each.source is None and not Path(each.file).is_absolute()):
        found = layout.find(part)
        place = target / found.relative_to(layout.folder)
        if not place.exists():
            _put(found.resolve(), place, put)
    return target


def _put(source: Path, place: Path, put: Callable[[str, str], object]) -> None:
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, place, copy_function=put, dirs_exist_ok=True)
        else:
            put(str(source), str(place))
    except OSError as error:
        raise write_error(place, error) from error


def _link_file(source: str, place: str) -> None:
    real = os.path.realpath(source)
    try:
        os.link(real, place)
    except OSError:
        shutil.copy2(real, place)
