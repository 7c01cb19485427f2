"""Reading and writing the bundled weights: float16 safetensors with recipe, data version and scores as metadata."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from tools.tiny.world import WORLD_VERSION
from wan_core.drafts import replaced_file


def write_weights(
    path: Path, tensors: Mapping[str, Tensor], *, recipe: str, scores: Mapping[str, Any], base: str | None = None
) -> None:
    """Write ``tensors`` as float16 (8-bit ones as they are) in one step; the file is whole or the old one stays.

    ``base`` names the folder of the weights that they are a change of.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = {
        "format": "pt",
        "family": "wan tiny",
        "recipe": recipe,
        "world_version": WORLD_VERSION,
        "scores": json.dumps(dict(scores), sort_keys=True),
        "license": "Apache-2.0",
    }
    if base is not None:
        metadata["base"] = base
    stored = {
        name: (value.detach() if value.dtype is torch.int8 else value.detach().to(torch.float16)).contiguous()
        for name, value in tensors.items()
    }
    with replaced_file(path) as draft:
        save_file(stored, draft, metadata)
        draft.chmod(0o644)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read every tensor of a file as float32."""
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118 - not a dict


def in_8_bits(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same with block matrices as int8 and a scale per row (``X.weight_scale``) beside each, as the core reads."""
    stored: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if not (name.startswith("blocks.") and name.endswith(".weight") and tensor.ndim == 2):
            stored[name] = tensor
            continue
        scale = tensor.float().abs().amax(dim=1, keepdim=True).clamp_min(1e-8) / 127
        stored[name] = (tensor.float() / scale).round().to(torch.int8)
        stored[f"{name}_scale"] = scale
    return stored
