"""Joining Pi3 features to the latents instead of the text: the later ways of the reference project.

A stitching layer turns features into one latent frame; it joins the picture's latent by channel, frame, width or
height. Its start is the identity on the first channels, as in the reference, which never trains it either.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from pi3 import Pi3Latents
from wan_core.models import DiTInputs, WanDiT
from wan_core.sampling import Anchors
from wan_core.tasks import Conditioning, DecodePlan

_AXES = {"height": 3, "width": 4}


class Stitch(nn.Module):
    """Pi3's patch tokens to a latent frame: trilinear resizing, then a 1x1x1 convolution, at first the identity."""

    def __init__(self, in_dim: int, channels: int) -> None:
        super().__init__()
        self.proj = nn.Conv3d(in_dim, channels, 1)
        nn.init.zeros_(self.proj.weight)
        if self.proj.bias is not None:
            nn.init.zeros_(self.proj.bias)
        with torch.no_grad():
            for channel in range(min(in_dim, channels)):
                self.proj.weight[channel, channel] = 1

    def forward(self, latents: Pi3Latents, height: int, width: int) -> Tensor:
        """One latent frame [B, channels, 1, height, width] of the features of all views."""
        rows, columns = latents.grid
        tokens = latents.patch_hidden.float()  # [B, N, h * w, C]
        volume = torch.unflatten(tokens.permute(0, 3, 1, 2), -1, (rows, columns))
        resized = functional.interpolate(volume, size=(1, height, width), mode="trilinear", align_corners=False)
        frame: Tensor = self.proj(resized)
        return frame


def fuse(base: Conditioning, condition: Tensor, fusion: str) -> Conditioning:
    """Conditions with the latent frame ``condition`` [1, C, 1, h, w] joined to the anchored first frame.

    ``channel``: more input channels (see :func:`widen_input`); ``frame``: a second clean latent frame, which is not
    decoded; ``width`` and ``height``: a picture of twice the size, whose second half is the condition.
    """
    anchors = base.anchors
    if anchors is None:
        raise ValueError("fusion needs the picture as an anchor")
    batch, channels, frames, height, width = base.latent_shape
    condition = condition.to(anchors.latents)
    first = anchors.latents[:, :, :1]
    if fusion == "channel":
        concat = torch.zeros(batch, channels, frames, height, width).to(condition)
        concat[:, :, :1] = condition
        return replace(base, positive=_with_channels(base.positive, concat), negative=_maybe(base.negative, concat))
    if fusion == "frame":
        both = torch.cat([first, condition], dim=2)
        return replace(
            base,
            latent_shape=(batch, channels, frames + 1, height, width),
            anchors=Anchors.leading(both, frames + 1),
            decode=DecodePlan(prefix=first, drop_latent_frames=2),
        )
    axis = _AXES[fusion]
    shape = list(base.latent_shape)
    shape[axis] *= 2
    joined = torch.cat([first, condition], dim=axis)
    return replace(base, latent_shape=tuple(shape), anchors=Anchors.leading(joined, frames))


def widen_input(dit: WanDiT) -> WanDiT:
    """The network with twice the input channels, in place; it ignores the new ones until it is trained.

    A network that has them already stays as it is.
    """
    config = dit.config
    if config.in_dim != config.out_dim:
        return dit
    narrow = dit.patch_embedding
    wide = nn.Conv3d(2 * config.in_dim, config.dim, config.patch_size, config.patch_size).to(narrow.weight)
    with torch.no_grad():
        wide.weight.zero_()
        wide.weight[:, : config.in_dim] = narrow.weight
        if wide.bias is not None and narrow.bias is not None:
            wide.bias.copy_(narrow.bias)
    dit.patch_embedding = wide.requires_grad_(narrow.weight.requires_grad)
    dit.config = replace(config, in_dim=2 * config.in_dim)
    return dit


def _with_channels(inputs: DiTInputs, concat: Tensor) -> DiTInputs:
    return replace(inputs, channel_concat=concat)


def _maybe(inputs: DiTInputs | None, concat: Tensor) -> DiTInputs | None:
    return None if inputs is None else _with_channels(inputs, concat)
