"""One pass over a video: some frames as pictures, and how it moves."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from wan_core import MediaError
from wan_core.files import plain_text
from wan_core.metrics import Flow, farneback, mean_of, pair_error, visible_pixels
from wan_core.runtime import optional_package

if TYPE_CHECKING:
    from PIL.Image import Image

Pixels = NDArray[np.uint8]
_COLUMNS = 16


@dataclass(frozen=True)
class VideoMotion:
    """How a video moves, each None for a single frame.

    ``amplitude`` is OpenS2V-Eval's: the mean over time of Farneback's flow, averaged by areas to 16 columns, then over
    both directions and all places, with its sign; of that the size, in pixels. Motions against each other cancel.
    ``magnitude`` is the mean length of flow from frame to frame, in percent of the diagonal; ``warp_error`` that of
    :func:`wan_core.metrics.pair_error`, over neighbours.
    """

    amplitude: float | None
    magnitude: float | None
    warp_error: float | None

    def values(self) -> dict[str, float | None]:
        """By the names of measures."""
        return {
            "motion_amplitude": self.amplitude,
            "flow_magnitude": self.magnitude,
            "warp_error": self.warp_error,
        }


@dataclass(frozen=True)
class WatchedVideo:
    """A video that was read: ``num_frames`` of ``width`` x ``height``, ``frames`` as pictures by index, ``motion``."""

    num_frames: int
    width: int
    height: int
    frames: dict[int, Image]
    motion: VideoMotion


def chosen_frames(num_frames: int, wanted: int) -> list[int]:
    """``wanted`` indices from the first frame to the last, evenly, rounded down; of a short video some twice."""
    return [int(each) for each in np.linspace(0, num_frames - 1, wanted).astype(int)]


def look_through(path: Path, wanted: int) -> WatchedVideo:
    """Read a video with ``wanted`` frames of it. Raises RequestError, MediaError, BackendError without OpenCV."""
    from PIL import Image

    from wan_core.media import count_frames, stream_video

    num_frames = count_frames(path)
    indices = set(chosen_frames(num_frames, wanted))
    frames: dict[int, Image.Image] = {}
    pairs = _Pairs()
    before: Pixels | None = None
    for index, frame in enumerate(stream_video(path)):
        pixels: Pixels = frame.permute(1, 2, 0).contiguous().numpy()
        if before is not None:
            if before.shape != pixels.shape:
                raise MediaError(f"video {plain_text(path)} changes its frame size midway; encode it again at one size")
            pairs.add(before, pixels)
        if index in indices:
            frames[index] = Image.fromarray(pixels)
        before = pixels
    if before is None:
        raise MediaError(f"video {plain_text(path)} has no frame")
    return WatchedVideo(num_frames, before.shape[1], before.shape[0], frames, pairs.motion())


def frames_of(path: Path, indices: Collection[int], size: tuple[int, int]) -> list[Image]:
    """The frames of ``indices``, in their order, no larger than ``size``. Raises RequestError or MediaError."""
    from wan_core.media import stream_video, tensor_to_image

    found = []
    for index, frame in enumerate(stream_video(path, max_frames=max(indices) + 1)):
        if index in indices:
            image = tensor_to_image(frame)
            image.thumbnail(size)
            found.append(image)
    return found


class _Pairs:
    """Sums over pairs of neighbours."""

    def __init__(self) -> None:
        self._mean_flows: list[float] = []
        self._lengths: list[float] = []
        self._errors: list[float | None] = []

    def add(self, first: Pixels, second: Pixels) -> None:
        # The benchmark hands red, green, blue to a conversion to grey that expects blue, green, red.
        a, b = (np.ascontiguousarray(each[:, :, ::-1]) for each in (first, second))
        forward, backward = farneback(a, b), farneback(b, a)
        height, width = first.shape[:2]
        if (mean := _coarse_mean(forward)) is not None:
            self._mean_flows.append(mean)
        self._lengths.append(100 * float(np.linalg.norm(forward, axis=2).mean()) / float(np.hypot(width, height)))
        self._errors.append(pair_error(first, second, forward, visible_pixels(forward, backward)))

    def motion(self) -> VideoMotion:
        signed = mean_of(self._mean_flows)
        return VideoMotion(None if signed is None else abs(signed), mean_of(self._lengths), mean_of(self._errors))


def _coarse_mean(flow: Flow) -> float | None:
    """The mean of a flow averaged by areas to 16 columns; None for a frame so wide that no row is left."""
    rows = int(flow.shape[0] * (_COLUMNS / flow.shape[1]))
    if rows < 1:
        return None
    cv2 = optional_package("cv2", "opencv-python-headless", what="Measures of motion", extra="bindweave[evaluate]")
    return float(np.mean(cv2.resize(flow, (_COLUMNS, rows), interpolation=cv2.INTER_AREA), dtype=np.float64))


def in_order(frames: dict[int, Image]) -> Sequence[Image]:
    """The pictures by their indices."""
    return [frames[index] for index in sorted(frames)]
