"""Clouds as frames of a video: one look from the middle, or a swing around."""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pi3.splat import Orbit, draw_points
from wan_core import RequestError

Cloud = tuple[NDArray[np.float32], NDArray[np.uint8]]
"""Points [M, 3] and their colours [M, 3]."""

SECONDS = 5
_HEIGHT, _WIDTH, _DEGREES = 480, 640, 35.0
_MIN_CLOUD_FOR_SMALL_POINTS = 60_000


def check_max_points(count: int | None) -> None:
    """Raise RequestError for a limit below one point."""
    if count is not None and count < 1:
        raise RequestError(f"--max-points must be at least 1, got {count}")


def frame(cloud: Cloud, orbit: Orbit, degrees: float = 0.0) -> Tensor:
    """The cloud from a place on an orbit, [3, 1, H, W] in [-1, 1]; points of small clouds are drawn larger."""
    size = 2 if len(cloud[0]) > _MIN_CLOUD_FOR_SMALL_POINTS else 3
    image = draw_points(*cloud, orbit.viewpoint(degrees, _HEIGHT, _WIDTH), point_size=size)
    return torch.from_numpy(image).permute(2, 0, 1)[:, None].float() / 127.5 - 1


def swing(cloud: Cloud, orbit: Orbit, fps: float) -> Iterator[Tensor]:
    """Frames [3, 1, H, W] of a smooth loop to either side of the middle and back."""
    count = max(1, round(SECONDS * fps))
    for index in range(count):
        yield frame(cloud, orbit, _DEGREES * float(np.sin(2 * np.pi * (index / count))))
