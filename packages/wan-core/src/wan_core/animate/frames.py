"""Which frames of a driving video are looked at."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from wan_core.errors import RequestError

_HALF = 0.5
_TRUSTED = 0.1
"""Share by which the number of frames and the duration may disagree."""


def frame_indices(num_frames: int, fps: float, length: int, target_fps: float) -> NDArray[np.int64]:
    """The frames [length] that are nearest in time to those of a video of ``target_fps``, halves to the even one.

    ``fps`` is the rate of the ``num_frames`` there are; behind the last one that repeats. Raises RequestError for
    numbers below 1 and rates that are not above 0.
    """
    if min(num_frames, length) < 1 or not 0 < min(fps, target_fps) < np.inf:
        raise RequestError(
            f"frames and rates must be above 0, got {length} of {num_frames} frames, at {target_fps:g} from {fps:g}"
        )
    nearest = np.round(np.arange(length) / target_fps * fps).astype(np.int64)
    return np.asarray(nearest.clip(0, num_frames - 1))


def are_even(times: NDArray[np.float64], fps: float) -> bool:
    """Whether frames that are shown at ``times`` [n], in seconds, are within half of one of where ``fps`` puts them."""
    return bool((np.abs(times - times[0] - np.arange(len(times)) / fps) * fps <= _HALF).all())


def nearest_frames(times: NDArray[np.float64], target_fps: float, seconds: float) -> NDArray[np.int64]:
    """Indices [n] of the frames that are nearest in time to those of a video of ``target_fps`` and this length.

    ``times`` [n], rising, are those at which the frames are shown, in seconds; of two as near the later. Raises
    RequestError when no frame is left.
    """
    length = int(seconds * target_fps)
    if length < 1:
        raise RequestError(f"a video of {seconds:.2f} s has no frame at {target_fps:g} a second; ask for more")
    middles = (times[1:] + times[:-1]) / 2
    wanted = times[0] + np.arange(length) / target_fps
    return np.asarray(np.searchsorted(middles, wanted, side="right"), dtype=np.int64)


def select_frames(
    num_frames: int, fps: float, target_fps: float = -1, *, duration: float | None = None
) -> NDArray[np.int64]:
    """Indices [n] of the frames for a video of ``target_fps``, or of its own ``fps`` where that is -1.

    ``duration`` is when the last frame ends, in seconds: where it tells a number of frames that differs by more than a
    tenth, it counts, as in the release; what lies behind the ``num_frames`` that are there is the last one. Raises
    RequestError when no frame is left.
    """
    rate = fps if target_fps == -1 else target_fps
    counted = num_frames
    if duration is not None and num_frames > 0:
        expected = int(duration * fps + 0.5)
        if abs((num_frames - expected) / num_frames) > _TRUSTED:
            counted = expected
    length = int(counted / fps * rate) if fps > 0 and rate > 0 else 0
    return np.minimum(frame_indices(counted, fps, length, rate), num_frames - 1)
