"""A text-to-video network made one that also takes a picture, and that is the same until it has learned to."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn

from selfforcing_unianimate.causal_dit import CausalDiT
from selfforcing_unianimate.config import CausalDiTConfig
from wan_core import ConfigError


def widened(network: CausalDiT, channels: int, image_dim: int | None = None, *, seed: int = 0) -> CausalDiT:
    """The network with ``channels`` more input channels, and where ``image_dim`` is given a branch for CLIP states.

    Its other tensors are those of ``network``, not copies. The weights of new channels are zero, as are the values that
    the branch adds; its keys begin as those of the text, and ``seed`` draws what embeds the states. So both are without
    effect at first, and learn from the first step on. Raises ConfigError for a network that has such a branch, and for
    channels below 1.
    """
    if channels < 1 or network.config.image_dim is not None:
        raise ConfigError(
            f"a text-to-video network is widened by 1 channel or more, got {channels} for a network of "
            f"{network.config.in_dim} channels {'without' if network.config.image_dim is None else 'with'} image branch"
        )
    config = replace(network.config, in_dim=network.config.in_dim + channels, image_dim=image_dim)
    with torch.device("meta"):
        wide = CausalDiT(cast(CausalDiTConfig, config))
    tensors = network.state_dict(keep_vars=True)
    old = tensors["patch_embedding.weight"]
    wider = torch.cat([old, old.new_zeros(old.shape[0], channels, *old.shape[2:])], dim=1).detach()
    tensors["patch_embedding.weight"] = nn.Parameter(wider, requires_grad=old.requires_grad)
    if image_dim is not None:
        tensors.update(_image_branch(wide, network, seed))
    wide.load_state_dict(tensors, assign=True)
    for theirs, ours in zip(wide.blocks, network.blocks, strict=True):
        for kind in ("self_attn", "cross_attn"):  # the kernels that were chosen for the network
            theirs.get_submodule(kind).inner_attention = ours.get_submodule(kind).inner_attention
    return wide.train(network.training)


def _image_branch(wide: CausalDiT, network: CausalDiT, seed: int) -> dict[str, Tensor]:
    """What the branch adds to the names of a network: none of it changes what the network does."""
    tensors: dict[str, Tensor] = {}
    for name, _ in wide.named_parameters():
        if "_img." in name:
            own = network.get_parameter(name.replace("_img", "")).detach()
            made = torch.zeros_like(own) if ".v_img." in name else own.clone()
            tensors[name] = nn.Parameter(made)
    embedding = wide.img_emb.to_empty(device=network.device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for layer in embedding.proj:
            if isinstance(layer, nn.Linear):
                drawn = nn.init.xavier_uniform_(torch.empty(layer.weight.shape))
                layer.weight.data.copy_(drawn)
                nn.init.zeros_(layer.bias)
                layer.to(network.dtype)
            elif isinstance(layer, nn.LayerNorm):
                layer.reset_parameters()
    tensors.update({f"img_emb.{name}": parameter for name, parameter in embedding.named_parameters()})
    return tensors
