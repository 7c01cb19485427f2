"""Skeletons into conditions: the two stacks of convolutions that UniAnimate-DiT trains beside its LoRA.

UniAnimate-DiT (Wang et al. 2025, built on UniAnimate, arXiv 2406.01188). The names of weights are those of its
checkpoint; the code is our own.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import torch
from torch import Tensor, nn

from selfforcing_unianimate.pose_config import PoseConfig
from wan_core import RequestError

TEMPORAL_STRIDE = 4
MOTION_STRIDE = 16
REFERENCE_STRIDE = 8

_REPEATS = TEMPORAL_STRIDE - 1
"""How often the first frame is repeated in front: the VAE's first latent frame stands for one pixel frame."""
_BEFORE, _AFTER = 2, 1
"""Latent frames before and behind on which one depends: the kernels reach 7 pixel frames to either side."""


class PoseEncoder(nn.Module):
    """Skeleton pictures, 0..255, as conditions: the motion as tokens, the reference as channels beside the latents.

    Everything is computed in float32, whatever the dtype of a run; who uses the results casts them.
    """

    float32_modules: ClassVar[tuple[str, ...]] = ("dwpose_embedding", "randomref_embedding_pose")

    def __init__(self, config: PoseConfig) -> None:
        super().__init__()
        self.config = config
        width = config.hidden
        self.dwpose_embedding = nn.Sequential(
            *_activated(
                nn.Conv3d(3, width, 3, padding=1),
                nn.Conv3d(width, width, 3, padding=1),
                nn.Conv3d(width, width, 3, padding=1),
                nn.Conv3d(width, width, 3, stride=(1, 2, 2), padding=1),
                nn.Conv3d(width, width, 3, stride=2, padding=1),
                nn.Conv3d(width, width, 3, stride=2, padding=1),
                nn.Conv3d(width, config.token_dim, (1, 2, 2), stride=(1, 2, 2)),
            )
        )
        self.randomref_embedding_pose = nn.Sequential(
            *_activated(
                nn.Conv2d(3, width, 3, padding=1),
                nn.Conv2d(width, width, 3, padding=1),
                nn.Conv2d(width, width, 3, padding=1),
                nn.Conv2d(width, width, 3, stride=2, padding=1),
                nn.Conv2d(width, width, 3, stride=2, padding=1),
                nn.Conv2d(width, config.reference_channels, 3, stride=2, padding=1),
            )
        )

    def forward(self, skeletons: Tensor, reference: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """What :meth:`embed_motion` makes of ``skeletons`` and :meth:`embed_reference` of ``reference``, if any."""
        return self.embed_motion(skeletons), None if reference is None else self.embed_reference(reference)

    def embed_motion(self, skeletons: Tensor) -> Tensor:
        """Driving skeletons [B, 3, T, H, W] in 0..255 as [B, token_dim, (T + 3) / 4, H / 16, W / 16].

        Raises RequestError unless T is 4k+1 and the sides are multiples of 16.
        """
        _check_skeletons(skeletons)
        first = skeletons[:, :, :1].expand(-1, -1, _REPEATS, -1, -1)
        return self._motion(torch.cat([first, skeletons], dim=2))

    def embed_reference(self, skeleton: Tensor) -> Tensor:
        """Reference skeletons [B, H, W, 3] in 0..255 as [B, reference_channels, 1, H / 8, W / 8], to be added to ``y``.

        Raises RequestError unless the sides are multiples of 8.
        """
        if skeleton.ndim != 4 or skeleton.shape[3] != 3:
            raise RequestError(f"a reference skeleton is [B, H, W, 3], got {list(skeleton.shape)}")
        _check_sides(skeleton.shape[1], skeleton.shape[2], REFERENCE_STRIDE)
        pixels = self._pixels(skeleton.permute(0, 3, 1, 2))
        embedded: Tensor = self.randomref_embedding_pose(pixels)
        return embedded.unsqueeze(2)

    def motion_parts(self, skeletons: Tensor, latent_frames: int) -> Iterator[Tensor]:
        """What :meth:`embed_motion` gives, at most ``latent_frames`` frames at a time: the same values, less memory.

        Its activations take 64 bytes a pixel and frame, 2 GB for 81 frames of 832x480. Raises as `embed_motion`.
        """
        _check_skeletons(skeletons)
        count = (skeletons.shape[2] + _REPEATS) // TEMPORAL_STRIDE
        for start in range(0, count, latent_frames):
            yield self.motion_part(skeletons, start, min(start + latent_frames, count))

    def motion_part(self, skeletons: Tensor, start: int, stop: int) -> Tensor:
        """Latent frames ``start`` to ``stop`` of what :meth:`embed_motion` gives. Raises as that does."""
        _check_skeletons(skeletons)
        reach = motion_reach(start, stop, skeletons.shape[2])
        return self.motion_window(skeletons[:, :, reach.start : reach.stop], start, stop)

    def motion_window(self, skeletons: Tensor, start: int, stop: int) -> Tensor:
        """The same, from the skeletons of `motion_reach` alone. Raises RequestError for sides as `embed_motion`."""
        _check_sides(skeletons.shape[3], skeletons.shape[4], MOTION_STRIDE)
        low = max(0, start - _BEFORE)
        if low == 0:
            skeletons = torch.cat([skeletons[:, :, :1].expand(-1, -1, _REPEATS, -1, -1), skeletons], dim=2)
        return self._motion(skeletons)[:, :, start - low : stop - low]

    def _motion(self, padded: Tensor) -> Tensor:
        embedded: Tensor = self.dwpose_embedding(self._pixels(padded))
        return embedded

    def _pixels(self, skeletons: Tensor) -> Tensor:
        weight = next(self.parameters())
        return (skeletons.to(weight.device, torch.float32) / 255).to(weight.dtype)


def motion_reach(start: int, stop: int, num_frames: int) -> range:
    """The skeletons, of ``num_frames``, on which latent frames ``start`` to ``stop`` depend."""
    low, high = max(0, start - _BEFORE), min((num_frames + _REPEATS) // TEMPORAL_STRIDE, stop + _AFTER)
    return range(max(0, low * TEMPORAL_STRIDE - _REPEATS), high * TEMPORAL_STRIDE - _REPEATS)


def pose_tokens(motion: Tensor) -> Tensor:
    """Embedded motion [B, C, F, h, w] as tokens [B, F, h*w, C] in the order of patches: ``DiTInputs.add_condition``."""
    return motion.flatten(3).permute(0, 2, 3, 1)  # b c f (h w) -> b f (h w) c


def _activated(*layers: nn.Module) -> Iterator[nn.Module]:
    """The layers with SiLU between them."""
    for index, layer in enumerate(layers):
        if index:
            yield nn.SiLU()
        yield layer


def _check_skeletons(skeletons: Tensor) -> None:
    if skeletons.ndim != 5 or skeletons.shape[1] != 3:
        raise RequestError(f"driving skeletons are [B, 3, T, H, W], got {list(skeletons.shape)}")
    if skeletons.shape[2] % TEMPORAL_STRIDE != 1:
        raise RequestError(f"driving skeletons must be 4k+1 frames, got {skeletons.shape[2]}")
    _check_sides(skeletons.shape[3], skeletons.shape[4], MOTION_STRIDE)


def _check_sides(height: int, width: int, multiple: int) -> None:
    if height % multiple or width % multiple or min(height, width) < multiple:
        raise RequestError(f"sides of skeletons must be multiples of {multiple} pixels, got {width}x{height}")
