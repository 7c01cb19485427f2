"""Stages "i2v", "high", "low": DiTs that are stored as a small change of the text-to-video one.

A change is a low-rank update of the matrices inside blocks, and for image-to-video a whole new patch embedding, whose
weights for the additional channels start at zero.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from tools.tiny.weights import read_tensors
from wan_core.models import WanDiT, WanDiTConfig
from wan_core.training import LoRASettings, attach_lora, lora_tensors, trained_tensors

RANK = 8
_EXPERT_RANK = 4


def build(base: Path, config: WanDiTConfig) -> WanDiT:
    """The DiT of ``config`` with the weights in the folder ``base`` and fresh adapters, ready to train."""
    tensors = read_tensors(base / "model.safetensors")
    patch = tensors["patch_embedding.weight"]
    more = config.in_dim - patch.shape[1]
    tensors["patch_embedding.weight"] = torch.cat(
        [patch, patch.new_zeros(patch.shape[0], more, *patch.shape[2:])], dim=1
    )
    dit = WanDiT(config)
    dit.load_state_dict(tensors)
    attach_lora(dit, LoRASettings(rank=RANK if more else _EXPERT_RANK))
    if more:
        dit.patch_embedding.requires_grad_(True)
    return dit


def trained(dit: nn.Module) -> list[Tensor]:
    """What the optimizer changes."""
    return list(trained_tensors(dit).values())


def tensors(dit: WanDiT) -> dict[str, Tensor]:
    """The change: adapters under their public names, and the patch embedding where it was trained."""
    change = lora_tensors(dit)
    if dit.patch_embedding.weight.requires_grad:
        change |= {f"patch_embedding.{name}": value for name, value in dit.patch_embedding.state_dict().items()}
    return change
