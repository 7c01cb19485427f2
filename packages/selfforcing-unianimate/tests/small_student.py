"""A small student that knows poses, with weights of one seed, and tensors that their shapes determine."""

import torch
from torch import Tensor

from selfforcing_unianimate import CausalDiT, CausalDiTConfig


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def new_network(num_layers: int = 2) -> CausalDiT:
    torch.manual_seed(0)
    config = CausalDiTConfig(
        in_dim=4, out_dim=4, dim=24, ffn_dim=32, num_heads=2, num_layers=num_layers, freq_dim=16, text_dim=8,
        text_len=4, pose_dim=10,
    )  # fmt: skip
    made = CausalDiT(config)
    torch.nn.init.normal_(made.pose_proj.weight, std=0.3)
    return made
