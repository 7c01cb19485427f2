"""A picture as conditions of the transformer: channels beside the latents, to which its skeleton may be added.

As in Wan2.1's image to video (arXiv 2503.20314, section 5.1) and UniAnimate-DiT: a mask, and the latents of a video
that is the picture and then grey. For UniAnimate it shows who moves, and need not be a frame of the video.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from wan_core.media import VideoGeometry
from wan_core.models import WAN21_VAE
from wan_core.tasks import Components, encode_channels, first_frame_mask, first_frame_video

if TYPE_CHECKING:
    from torch import Tensor

SETTLED = WAN21_VAE.settled_latents
"""So many latent frames are held of a longer video: from the last of them on all see grey alone."""


def picture_channels(image: Tensor, geometry: VideoGeometry, latent_frames: int, components: Components) -> Tensor:
    """Mask and latents [1, stride + C, T, h, w] of a picture [3, H, W], for a video's first T ``latent_frames``."""
    clip = replace(geometry, num_frames=geometry.spec.temporal_stride * (latent_frames - 1) + 1)
    return encode_channels(first_frame_video(image, clip), first_frame_mask(clip), components)


def no_picture(geometry: VideoGeometry, components: Components) -> Tensor:
    """What a network sees where no picture is given: channels [1, C, 1, h, w] that are zero."""
    import torch

    network, sides = components.configs["dit"], (geometry.latent_height, geometry.latent_width)
    return torch.zeros(1, network.in_dim - network.out_dim, 1, *sides, device=components.device)


def channels_at(channels: Tensor, start: int, stop: int) -> Tensor:
    """Channels [1, C, f, h, w] of latent frames ``start`` to ``stop``; those behind the last one are as it is."""
    last = channels.shape[2] - 1
    return channels[:, :, [min(frame, last) for frame in range(start, stop)]]


def with_reference(channels: Tensor, reference: Tensor) -> Tensor:
    """Channels [B, C, T, h, w] with the picture's skeleton [B, C, 1, h, w] added to all of them, mask included."""
    return channels + reference.to(channels)
