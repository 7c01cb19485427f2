"""Layers that compute faster than the plain ones of the models, for inference."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from wan_core.models import VideoVAE, WanDiT
from wan_core.models.dit.attention import CrossAttention, SelfAttention
from wan_core.models.dit.blocks import FeedForward
from wan_core.models.dit.modulation import GatedSum, ModulatedNorm
from wan_core.models.vae.causal import CausalConv3d
from wan_core.models.vae.layers import ChannelNorm, NearestConv2d, Sum
from wan_core.runtime.kernels.in_place import (
    FoldedCrossAttention,
    InPlaceChannelNorm,
    InPlaceFeedForward,
    InPlaceGatedSum,
    InPlaceModulatedNorm,
    InPlaceSiLU,
    InPlaceSum,
    TwoPassSelfAttention,
)
from wan_core.runtime.kernels.onednn import FusedCrossAttention, FusedFeedForward, can_be_fused
from wan_core.runtime.kernels.winograd import FilteredConv3d, TransposedConv2d

Choice = Callable[[Any], type[nn.Module]]
"""The class that a plain layer's place is given to, chosen once, by the device and the dtype that it has then."""


def _always(kind: type[nn.Module]) -> Choice:
    return lambda layer: kind


def _on_cpu(kind: type[nn.Module]) -> Choice:
    return lambda layer: kind if next(layer.parameters()).device.type == "cpu" else type(layer)


_KERNELS: Mapping[type[nn.Module], Mapping[type[nn.Module], Choice]] = {
    WanDiT: {
        ModulatedNorm: _always(InPlaceModulatedNorm),
        GatedSum: _always(InPlaceGatedSum),
        SelfAttention: _always(TwoPassSelfAttention),
        CrossAttention: lambda layer: FusedCrossAttention if can_be_fused(layer.o) else FoldedCrossAttention,
        FeedForward: lambda layer: FusedFeedForward if can_be_fused(layer[0]) else InPlaceFeedForward,
    },
    VideoVAE: {
        ChannelNorm: _always(InPlaceChannelNorm),
        nn.SiLU: _always(InPlaceSiLU),
        Sum: _always(InPlaceSum),
        CausalConv3d: _on_cpu(FilteredConv3d),
        NearestConv2d: _on_cpu(TransposedConv2d),
    },
}


_LAYOUTS = {4: torch.channels_last, 5: torch.channels_last_3d}


def apply_kernels(model: nn.Module) -> None:
    """Put the faster layers into every transformer and video autoencoder in ``model``, in place.

    Weights, their names and hooks stay, those of an autoencoder's convolutions in the order that its maps have; a layer
    of a subclass of its own stays plain. Weights no longer require gradients: what overwrites its input has none.
    """
    for network in list(model.modules()):
        for kind, kernels in _KERNELS.items():
            if isinstance(network, kind):
                network.requires_grad_(False)
                _replace(network, kernels)
        if isinstance(network, VideoVAE):
            lay_out_channels_last(network)


def lay_out_channels_last(network: nn.Module) -> None:
    """Order the weights of convolutions as their maps are, channels last, on devices whose kernels want both alike.

    Else each call would copy them so. The CPU's library reorders them in its own way whatever they are.
    """
    for parameter in network.parameters():
        layout = _LAYOUTS.get(parameter.ndim)
        if layout is not None and parameter.device.type == "cuda":
            parameter.data = parameter.data.contiguous(memory_format=layout)


def has_kernels(model: nn.Module) -> bool:
    """Whether :func:`apply_kernels` changed a part of ``model``."""
    return any(type(module).__module__.startswith(__name__) for module in model.modules())


def _replace(network: nn.Module, kernels: Mapping[type[nn.Module], Choice]) -> None:
    for parent in list(network.modules()):
        for name, layer in list(parent.named_children()):
            choose = kernels.get(type(layer))
            if choose is not None:
                setattr(parent, name, _in_place_of(layer, choose(layer)))


def _in_place_of(layer: nn.Module, kind: type[nn.Module]) -> nn.Module:
    """A layer of ``kind`` with all that ``layer`` has: weights, children, settings, hooks."""
    made: nn.Module = kind.__new__(kind)
    made.__dict__.update(layer.__dict__)
    return made
