"""Joining Pi3 features to the latents instead of the text: the later ways of the reference project.

A stitching layer turns features into one latent frame; it joins the picture's latent by channel, frame, width or
height. A recovering layer turns the features' half of denoised latents back into hidden states of Pi3. Both start as
the identity on the first channels, as in the reference, which never trains them either.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from pi3 import Pi3, Pi3Latents, Pi3Output
from wan_core.models import DiTInputs, WanDiT
from wan_core.sampling import Anchors
from wan_core.tasks import Conditioning, DecodePlan

DOUBLED = {"height": 3, "width": 4}
"""Fusions that double an axis of the latents, and which."""


def _identity(in_dim: int, out_dim: int) -> nn.Conv3d:
    """A 1x1x1 convolution that passes the first channels on and makes zeros of the others."""
    layer = nn.Conv3d(in_dim, out_dim, 1)
    shared = min(in_dim, out_dim)
    with torch.no_grad():
        layer.weight.zero_()
        layer.weight[:shared, :shared, 0, 0, 0] = torch.eye(shared)
        if layer.bias is not None:
            layer.bias.zero_()
    return layer


class Stitch(nn.Module):
    """Pi3's patch tokens to a latent frame: trilinear resizing, then a 1x1x1 convolution, at first the identity."""

    def __init__(self, in_dim: int, channels: int) -> None:
        super().__init__()
        self.proj = _identity(in_dim, channels)

    def forward(self, latents: Pi3Latents, height: int, width: int) -> Tensor:
        """One latent frame [B, channels, 1, height, width] of the features of all views."""
        rows, columns = latents.grid
        tokens = latents.patch_hidden.float()  # [B, N, h * w, C]
        volume = torch.unflatten(tokens.permute(0, 3, 1, 2), -1, (rows, columns))
        resized = functional.interpolate(volume, size=(1, height, width), mode="trilinear", align_corners=False)
        frame: Tensor = self.proj(resized)
        return frame


class Recover(nn.Module):
    """The features' half of denoised latents to Pi3's hidden states: trilinear resizing, then a 1x1x1 convolution."""

    def __init__(self, channels: int, out_dim: int) -> None:
        super().__init__()
        self.proj = _identity(channels, out_dim)

    def forward(self, latents: Tensor, num_frames: int, grid: tuple[int, int]) -> Tensor:
        """Patch tokens [B, num_frames, h * w, out_dim] of latents [B, channels, T, height, width]."""
        resized = functional.interpolate(
            latents.float(), size=(num_frames, *grid), mode="trilinear", align_corners=False
        )
        tokens: Tensor = self.proj(resized)
        return tokens.flatten(3).permute(0, 2, 3, 1)


@torch.no_grad()
def recovered(pi3: Pi3, hidden: Tensor, height: int, width: int) -> tuple[Pi3Latents, Pi3Output]:
    """Pi3's token decoders and heads on patch tokens [B, N, h * w, C] of ``height`` x ``width`` pixels, view by view.

    The register tokens in front are the learnt ones, once for each of the two blocks that hidden states join.
    """
    batch, count = hidden.shape[:2]
    registers = torch.cat([pi3.register_token[0], pi3.register_token[0]], dim=-1)
    tokens = torch.cat([registers.expand(batch * count, -1, -1), hidden.flatten(0, 1).to(registers)], dim=1)
    shape = hidden.new_empty(()).expand(batch, count, 3, height, width)
    latents = pi3.decode_tokens(tokens, shape)
    return latents, pi3.decode(latents)


def features_half(latents: Tensor, fusion: str) -> Tensor:
    """The second half of latents [B, C, T, h, w], or of a chunk of frames, along the doubled axis."""
    return latents.chunk(2, dim=DOUBLED[fusion] - 5)[1]


def picture_half(latents: Tensor, fusion: str) -> Tensor:
    """The first half; see :func:`features_half`."""
    return latents.chunk(2, dim=DOUBLED[fusion] - 5)[0]


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
    axis = DOUBLED[fusion]
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
