"""Reference pictures: fitted into the frame on black, as CLIP tokens and as latent frames with a mask.

The sizes and numbers are those of the original's inference: pictures shrink and never grow, CLIP sees the whole
letterboxed frame squashed to its square, and the mask says where in the frame the picture is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from wan_core import RequestError
from wan_core.media import LatentSpec, VideoGeometry, resize_by_rows

if TYPE_CHECKING:
    import torch
    from PIL import Image
    from torch import Tensor

    from wan_core.models import CLIPVision, VideoVAE

MASK_CHANNELS = 4
"""Channels before those of the latents: the mask, and three that stay zero."""


class Box(NamedTuple):
    """Where a picture lies in the frame, in pixels."""

    left: int
    top: int
    width: int
    height: int


@dataclass(frozen=True, kw_only=True)
class Reference:
    """A picture in the frame: ``pixels`` [3, H, W] in [0, 1], black outside of its ``box``.

    ``shown`` [H, W], bool, is where a subject is that does not fill its box.
    """

    pixels: Tensor
    box: Box
    shown: Tensor | None = None

    def mask(self, spec: LatentSpec) -> Tensor:
        """[h, w] on the latent grid: 1 where the pixel at the corner of the latent one is the picture's."""
        import torch

        mask = torch.zeros(self.pixels.shape[1:])
        left, top, width, height = self.box
        mask[top : top + height, left : left + width] = 1
        if self.shown is not None:
            mask = self.shown.to(mask)
        return mask[:: spec.spatial_stride, :: spec.spatial_stride]


def fitted_box(image_width: int, image_height: int, width: int, height: int) -> Box:
    """The box of a picture in a frame: centred, shrunk where it is larger, sides cut down to whole pixels.

    Raises RequestError for a picture so long and narrow that a side would vanish.
    """
    ratio = min(width / image_width, height / image_height, 1)
    own_width, own_height = int(image_width * ratio), int(image_height * ratio)
    if min(own_width, own_height) < 1:
        raise RequestError(
            f"a picture of {image_width}x{image_height} is too long and narrow for {width}x{height}; crop it first"
        )
    return Box((width - own_width) // 2, (height - own_height) // 2, own_width, own_height)


def letterbox(image: Image.Image, width: int, height: int) -> Reference:
    """An RGB picture in a frame of that size. Raises RequestError as :func:`fitted_box` does."""
    from PIL import Image

    box = fitted_box(image.width, image.height, width, height)
    return placed(resize_by_rows(image, (box.width, box.height), Image.Resampling.LANCZOS), box, width, height)


def placed(image: Image.Image, box: Box, width: int, height: int, alpha: Image.Image | None = None) -> Reference:
    """An RGB picture of the size of its box in a frame; of one with an ``alpha`` (``L``) that is shown above 127."""
    import numpy as np
    import torch
    from PIL import Image

    def tensor(source: Image.Image) -> Tensor:
        frame = Image.new(source.mode, (width, height))
        frame.paste(source, (box.left, box.top))
        return torch.from_numpy(np.array(frame))

    pixels = tensor(image).permute(2, 0, 1).contiguous().float().div(255)
    return Reference(pixels=pixels, box=box, shown=None if alpha is None else tensor(alpha) > 127)


def clip_input(pixels: Tensor, size: int) -> Tensor:
    """Frames [B, 3, H, W] in [0, 1] as CLIP takes them: squashed bilinearly to the square, antialiased, normalised."""
    from torch.nn import functional

    from wan_core.models import CLIP_MEAN, CLIP_STD

    squashed = functional.interpolate(pixels, (size, size), mode="bilinear", align_corners=False, antialias=True)
    mean, std = (squashed.new_tensor(values).view(3, 1, 1) for values in (CLIP_MEAN, CLIP_STD))
    return (squashed - mean) / std


def clip_tokens(
    references: Sequence[Reference], encoder: CLIPVision, count: int, device: torch.device | None = None
) -> Tensor:
    """CLIP states of the references, one after the other, then zeros as if there were ``count``: [1, 257 * count, dim].

    The states are those before the last block.
    """
    import torch
    from torch.nn import functional

    config = encoder.config
    pixels = torch.stack([clip_input(each.pixels[None].to(device), config.image_size)[0] for each in references])
    states = encoder.hidden_states(pixels, config.num_layers - 1)
    missing = count - len(references)
    return functional.pad(states, (0, 0, 0, 0, 0, missing)).flatten(0, 1)[None]


def reference_frames(
    references: Sequence[Reference], vae: VideoVAE, spec: LatentSpec, count: int, device: torch.device | None = None
) -> Tensor:
    """Channels [1, 4 + C, count, h, w] of the reference frames: mask, zeros, latents; missing frames are all zero."""
    import torch
    from torch.nn import functional

    frames = []
    for each in references:
        latents = vae.encode((each.pixels.to(device) * 2 - 1)[None, :, None])
        mask = each.mask(spec).to(latents)[None, None, None]
        frames.append(torch.cat([functional.pad(mask, (0, 0, 0, 0, 0, 0, 0, MASK_CHANNELS - 1)), latents], dim=1))
    return functional.pad(torch.cat(frames, dim=2), (0, 0, 0, 0, 0, count - len(frames)))


def blank_video(vae: VideoVAE, geometry: VideoGeometry, device: torch.device | None = None) -> Tensor:
    """Channels [1, 4 + C, T, h, w] of the video itself: no mask, and the latents of a mid-grey video."""
    import torch
    from torch.nn import functional

    video = torch.zeros(1, 3, geometry.num_frames, geometry.height, geometry.width, device=device)
    return functional.pad(vae.encode(video), (0, 0, 0, 0, 0, 0, MASK_CHANNELS, 0))
