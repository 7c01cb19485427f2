"""The driving video: its chosen frames, one by one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from wan_core.animate.frames import are_even, nearest_frames, select_frames
from wan_core.animate.resize import resize_to_area, size_of_area
from wan_core.errors import MediaError
from wan_core.files import plain_text
from wan_core.media import FrameSize, VideoFrames, frame_times, probe_video

Pixels = NDArray[np.uint8]
ItemT = TypeVar("ItemT")
_UNEVEN = (
    "does not show its frames at even times; --fps -1 takes them as if it did, so give --fps 30 to keep its motion"
)


@dataclass(frozen=True)
class Counted(Generic[ItemT]):
    """A stream of known ``length``, so that progress has an end."""

    items: Iterable[ItemT]
    length: int

    def __iter__(self) -> Iterator[ItemT]:
        return iter(self.items)

    def __len__(self) -> int:
        return self.length


@dataclass(frozen=True)
class DrivingVideo:
    """A video at another rate, and with ``area`` at that many pixels; ``indices`` are the frames that are taken.

    ``fps`` is the rate of what is taken, ``size`` that of its frames; ``notes`` are sentences about how it is read.
    """

    path: Path
    indices: NDArray[np.int64]
    fps: float
    size: FrameSize
    area: int | None
    notes: tuple[str, ...] = ()

    @classmethod
    def open(cls, path: Path, fps: float, area: int | None) -> DrivingVideo:
        """The video of a file by the times of its frames; ``fps`` -1 takes all. Raises RequestError, MediaError."""
        info = probe_video(path)
        times, notes = np.asarray(frame_times(path)), info.notes
        if are_even(times, info.fps):
            indices = select_frames(len(times), info.fps, fps, duration=info.seconds)
        elif fps == -1:
            indices, notes = np.arange(len(times)), (*notes, _UNEVEN)
        else:
            indices = nearest_frames(times, fps, info.seconds or times[-1] - times[0] + 1 / info.fps)
        size = FrameSize(info.width, info.height) if area is None else size_of_area(info.width, info.height, area)
        return cls(path, indices, info.fps if fps == -1 else fps, size, area, notes)

    def __len__(self) -> int:
        return len(self.indices)

    def frames(
        self, places: Sequence[int] | range | None = None, *, read_on: VideoFrames | None = None
    ) -> Iterator[Pixels]:
        """The taken frames [H, W, 3], RGB, or those at some ``places`` (counted from 0, rising) among them.

        ``read_on`` is the file as an earlier call has left it, whose places were before these. Raises MediaError for a
        video that is damaged, shorter than its packets say, or changes its size.
        """
        wanted = (self.indices if places is None else self.indices[list(places)]).tolist()
        shape, given = None, 0
        for frame in (read_on or VideoFrames(self.path)).frames(wanted):
            if shape not in (None, frame.shape):
                raise MediaError(
                    f"video {plain_text(self.path)} changes its frame size midway; encode it again at one size"
                )
            shape, given = frame.shape, given + 1
            pixels = np.ascontiguousarray(frame.permute(1, 2, 0).numpy())
            yield pixels if self.area is None else resize_to_area(pixels, self.area)
        if given < len(wanted):
            raise MediaError(f"video {plain_text(self.path)} ends before its frame {wanted[given]}; encode it again")
