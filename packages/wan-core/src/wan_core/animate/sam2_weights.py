"""SAM 2's weights: the original ``sam2_hiera_*.pt`` files, or a folder of transformers, checked and loaded."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from wan_core.checkpoints import SAM2, SAM2_MODEL_TYPE, check_network, load_model, native_weights, read_weights
from wan_core.hub import folder_kind, load_pretrained

if TYPE_CHECKING:
    import torch

WEIGHTS = "sam2_hiera_large.pt"
"""The file that the release of Wan-Animate brings."""


def check_sam2(place: Path) -> None:
    """Compare the names and shapes of weights with those of the network; none is read. Raises CheckpointError."""
    if place.is_dir():
        folder_kind(place, {SAM2_MODEL_TYPE}, what=SAM2.title)
        read_weights(place / "model.safetensors")  # looks whether the file is whole
        return
    native = native_weights(read_weights(place), SAM2)
    check_network(SAM2.read_config(place, native), native, SAM2)


def load_sam2(place: Path, device: torch.device | str = "cpu", dtype: torch.dtype | None = None) -> Any:
    """transformers' ``Sam2VideoModel`` in eval mode, from an original ``.pt`` file or a folder of transformers.

    ``dtype`` None is float32. Every tensor of the file must have its place, and every weight of the network a tensor.
    Raises CheckpointError.
    """
    import torch

    dtype = dtype or torch.float32
    if place.is_dir():
        return load_pretrained(str(place), {SAM2_MODEL_TYPE: "Sam2VideoModel"}, what=SAM2.title).to(device, dtype)
    native = native_weights(read_weights(place), SAM2)
    return load_model(SAM2.read_config(place, native), native, family=SAM2, dtype=dtype, device=device)
