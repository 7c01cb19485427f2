"""A video beside what it was made of: the picture, the motion, the result."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from wan_core import media

if TYPE_CHECKING:
    from torch import Tensor


def with_sources(
    frames: Iterator[Tensor], image: Tensor, skeletons: Tensor | None, path: Path, fps: float
) -> Iterator[Tensor]:
    """Chunks of frames [3, t, H, W] in [-1, 1] unchanged; when the last one is out, ``path`` is written.

    It shows ``image`` [3, H, W], the ``skeletons`` [3, T, H, W] uint8 where there are some, and the frames, which are
    kept as bytes until then.
    """
    kept = []
    for chunk in frames:
        kept.append(media.to_uint8(chunk).cpu())
        yield chunk
    media.write_video(_joined(kept, media.to_uint8(image), skeletons), path, fps=fps)


def _joined(kept: list[Tensor], image: Tensor, skeletons: Tensor | None) -> Iterator[Tensor]:
    import torch

    start = 0
    for chunk in kept:
        stop = start + chunk.shape[1]
        shown = [] if skeletons is None else [_fitted(skeletons[:, start:stop], chunk.shape[2], chunk.shape[3])]
        columns = [image[:, None].expand_as(chunk), *shown, chunk]
        yield torch.cat(columns, dim=3).float() / 127.5 - 1
        start = stop


def _fitted(skeletons: Tensor, height: int, width: int) -> Tensor:
    """Skeletons [3, t, H, W] uint8 at the size of a video; networks with small tokens see larger ones."""
    from torch.nn import functional

    if skeletons.shape[2:] == (height, width):
        return skeletons
    scaled = functional.interpolate(skeletons.transpose(0, 1).float(), (height, width), mode="area")
    return scaled.round().byte().transpose(0, 1)
