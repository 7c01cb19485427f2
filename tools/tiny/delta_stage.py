"""Stages "i2v", "high", "low": DiTs that are stored as a small change of the text-to-video one.

A change is a low-rank update of the matrices inside blocks, and for image-to-video a whole new patch embedding, whose
weights for the additional channels start at zero.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tools.tiny.family import load_bundled
from wan_core.models import WanDiT, WanDiTConfig
from wan_core.training import LoRASettings, attach_lora, lora_tensors

RANK = 8
_EXPERT_RANK = 4


def build(config: WanDiTConfig, base: WanDiT | None = None) -> WanDiT:
    """The DiT of ``config`` with the weights of ``base`` (the bundled one) and fresh adapters, ready to train."""
    tensors = (base or load_bundled("dit")).state_dict()
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


def tensors(dit: WanDiT) -> dict[str, Tensor]:
    """The change: adapters under their public names, and the patch embedding where it was trained."""
    change = lora_tensors(dit)
    if dit.patch_embedding.weight.requires_grad:
        change |= {f"patch_embedding.{name}": value for name, value in dit.patch_embedding.state_dict().items()}
    return change
