"""What a run leaves for others: a LoRA file, or a whole model in the official layout."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch

from wan_core.checkpoints import CheckpointLayout, MemorySource, write_shards
from wan_core.drafts import write_text
from wan_core.errors import MediaError
from wan_core.loading import parts_of
from wan_core.models import WanDiT
from wan_core.presets import Preset
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
    tensors = {}
    for name, tensor in network.state_dict().items():
        whole = ranks.whole(tensor)
        if ranks.is_first:  # the others, and every GPU, hold one gathered weight at a time
            tensors[name] = whole.cpu()
    if ranks.is_first:
        source = MemorySource(tensors)
        kept = set(network.float32_modules)
        dtypes = {name: dtype for name in tensors if not any(f".{part}." in f".{name}." for part in kept)}
        write_shards(source, folder, dtypes=dtypes, metadata={"format": "pt", **(metadata or {})})
        config = {name: value for name, value in asdict(network.config).items() if name not in ("image_tokens",)}
        write_text(folder / "config.json", json.dumps(config, indent=2) + "\n")
    return folder


def complete_model(preset: Preset, source: Path, target: Path) -> Path:
    """Put the parts that were not trained beside a trained network, so that ``target`` is a whole model; returns it.

    Files are linked where the disk can, else copied. Raises CheckpointError for a part that is missing, MediaError.
    """
    layout = CheckpointLayout(source, preset.name)
    for part, name in parts_of(preset):
        found = layout.find(part, name)
        place = target / found.relative_to(layout.folder)
        if not place.exists():
            _link(found.resolve(), place)
    return target


def _link(source: Path, place: Path) -> None:
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, place, copy_function=_link_file, dirs_exist_ok=True)
        else:
            _link_file(str(source), str(place))
    except OSError as error:
        raise MediaError(f"cannot write {place}: {error.strerror or error}") from error


def _link_file(source: str, place: str) -> None:
    real = os.path.realpath(source)
    try:
        os.link(real, place)
    except OSError:
        shutil.copy2(real, place)
