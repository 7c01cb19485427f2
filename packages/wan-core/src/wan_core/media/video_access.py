"""The frames of a video by their numbers: read forward once, and begun elsewhere where the file tells the place."""

import bisect
import os
from collections import deque
from collections.abc import Iterable, Iterator
from functools import cached_property
from itertools import chain

from torch import Tensor

from wan_core.files import existing_file
from wan_core.media.video_decoding import PacketTimes, TimedFrame, packet_times
from wan_core.media.video_reader import chosen_frames, converted, timed_frames

_NEAR = 32  # frames that are decoded before a nearer beginning is looked for
_BEFORE = 2  # frames that deinterlacing sees before one


class VideoFrames:
    """A video whose frames are asked for by number, mostly in rising order.

    Where numbers rise each frame is decoded once, and the ``kept`` ones asked for last can be had again. For others
    before them, and for those far ahead, decoding begins at the key frame before, where the file says exactly when its
    frames are shown (:func:`.packet_times`), else at the first frame.
    """

    def __init__(self, path: str | os.PathLike[str], *, kept: int = 1) -> None:
        self.path = path
        self._kept: deque[tuple[int, TimedFrame]] = deque(maxlen=kept)
        self._decoded: Iterator[TimedFrame] | None = None
        self._next = 0  # the number of the frame that is decoded next

    def frames(self, numbers: Iterable[int]) -> Iterator[Tensor]:
        """The frames of these ``numbers``, counted from 0, as :func:`.stream_video` gives them: [3, H, W] uint8.

        They end before the first number that the video does not have. Raises what that raises.
        """
        return converted(self.path, self._shown(numbers))

    def _shown(self, numbers: Iterable[int]) -> Iterator[TimedFrame]:
        for number in numbers:
            shown = next((frame for at, frame in self._kept if at == number), None)
            if shown is None:
                shown = self._read(number)
            if shown is None:
                return
            yield shown

    def _read(self, number: int) -> TimedFrame | None:
        decoded = self._toward(number)
        shown = None
        while self._next <= number:
            shown = next(decoded, None)
            if shown is None:
                return None
            self._next += 1
        if shown is not None:
            self._kept.append((number, shown))
        return shown

    def _toward(self, number: int) -> Iterator[TimedFrame]:
        """The frames on the way to ``number``: those that come next, or from a nearer beginning on."""
        is_ahead = self._decoded is not None and self._next <= number
        if self._decoded is None or not is_ahead or number > self._next + _NEAR:
            key = self._key_before(number)
            if self._decoded is None or not is_ahead or key > self._next:
                self._next, self._decoded = self._begun(number) if key else (0, self._from_start())
        return self._decoded

    def _key_before(self, number: int) -> int:
        """The frame before ``number`` that decoding can begin at."""
        keys = self._times.keys if number > _BEFORE and self._times is not None else [0]
        return keys[bisect.bisect_right(keys, max(0, number - _BEFORE)) - 1]

    def _begun(self, number: int) -> tuple[int, Iterator[TimedFrame]]:
        """The frames from a key frame before ``number`` on, and which one is the first."""
        times = self._times.times if self._times is not None else []
        if number < len(times):
            frames = timed_frames(existing_file(self.path, "video"), times[number - _BEFORE])
            found = next(frames, None)
            at = None if self._times is None or found is None else self._times.number_at(found.time)
            if found is not None and at is not None and at <= number:
                return at, chain([found], frames)
        return 0, self._from_start()

    def _from_start(self) -> Iterator[TimedFrame]:
        return chosen_frames(self.path, 0.0, None, None, None)

    @cached_property
    def _times(self) -> PacketTimes | None:
        return packet_times(existing_file(self.path, "video"))
