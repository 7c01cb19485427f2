"""A long video in segments that overlap, from driving videos of any length; and which of a segment is known.

Source: the published inference settings of Wan2.2-Animate-14B; the code is our own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def extended_length(num_frames: int, clip_frames: int, overlap: int) -> int:
    """The frames that whole segments of ``clip_frames`` cover, of which each later one begins with ``overlap`` of
    those before it: ``num_frames`` or more."""
    step = clip_frames - overlap
    return num_frames + (overlap - num_frames) % step


def num_segments(num_frames: int, clip_frames: int, overlap: int) -> int:
    """How many segments make ``num_frames``; one for fewer than overlap."""
    return max(1, (extended_length(num_frames, clip_frames, overlap) - overlap) // (clip_frames - overlap))


def mirrored(index: int, num_frames: int) -> int:
    """Which of ``num_frames`` frames stands at ``index`` of a video that runs to its end, back to its start, and again;
    the frames at the turns are shown once."""
    period = max(1, 2 * (num_frames - 1))
    place = index % period
    return min(place, period - place) if num_frames > 1 else 0


def known_channels(shown: Tensor, known: int, stride: int = 4) -> Tensor:
    """What is known of each pixel frame, as channels of latent frames: [B, F, h, w] to [B, stride, T, h, w].

    1 is known. F = stride * (T - 1) + 1; the first ``known`` frames are so all over. A latent frame has a channel for
    each of its pixel frames, and the first one, which has one, has it in all.
    """
    import torch
    from einops import rearrange

    first, rest = shown.clone().tensor_split([1], dim=1)
    first[:, :known] = 1
    rest[:, : max(0, known - 1)] = 1
    return rearrange(torch.cat([first.repeat(1, stride, 1, 1), rest], dim=1), "b (t s) h w -> b s t h w", s=stride)
