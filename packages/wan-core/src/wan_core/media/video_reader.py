"""Videos in: frame by frame, upright, any part, at any frame rate."""

import itertools
import math
import os
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from wan_core.errors import MediaError, RequestError
from wan_core.files import existing_file, plain_text, read_error
from wan_core.media.containers import open_container

if TYPE_CHECKING:
    import av
    from av.container import InputContainer

_DECODE_ERRORS = (OSError, ValueError, LookupError, MemoryError)
# swscale flags: bicubic, exact rounding, full chroma. Its default is 4 dB further from the encoded colours.
_SWSCALE = 0x4 | 0x40000 | 0x2000
_MICROSECONDS = 1_000_000
_TOLERANCE = 1e-3  # seconds: containers round times to milliseconds


@dataclass(frozen=True)
class VideoInfo:
    """What a file says about its video. Sizes in pixels as shown, i.e. after rotation; ``seconds`` and ``num_frames``
    are ``None`` where the file does not tell."""

    width: int
    height: int
    fps: float
    seconds: float | None
    num_frames: int | None
    has_audio: bool


@dataclass(frozen=True)
class Video:
    """A clip in memory: ``frames`` [T, 3, H, W], uint8 or float32 in [-1, 1], and its ``fps``."""

    frames: Tensor
    fps: float


def probe_video(path: str | os.PathLike[str]) -> VideoInfo:
    """Size, rate and length of a video; only its first frame is decoded.

    Raises ``RequestError`` when there is no such file, ``MediaError`` when it is no video.
    """
    file = existing_file(path, "video")
    with open_container(file, "video") as container:
        stream = _video_stream(container, file)
        try:
            first = next(container.decode(stream), None)
        except _DECODE_ERRORS as error:
            raise read_error(file, "video", error) from error
        if first is None:
            raise MediaError(f"video {plain_text(file)} has no frame that can be decoded")
        width, height = first.width, first.height
        if _quarter_turns(first) % 2:
            width, height = height, width
        return VideoInfo(
            width=width,
            height=height,
            fps=_rate(stream),
            seconds=_length(container, stream),
            num_frames=stream.frames or None,
            has_audio=bool(container.streams.audio),
        )


def stream_video(
    path: str | os.PathLike[str],
    *,
    start: float = 0.0,
    end: float | None = None,
    fps: float | None = None,
    max_frames: int | None = None,
) -> Iterator[Tensor]:
    """The frames of a video one by one, [3, H, W] uint8, rotated upright.

    ``start`` and ``end`` are seconds from the beginning, ``end`` itself left out. With ``fps`` the frames are those
    nearest in time to ``start + k / fps``: some repeat or are left out, none is blended. Raises, at the first frame,
    ``RequestError`` for an impossible range or a missing file, and ``MediaError`` for no video or a damaged one.
    """
    for frame in _chosen_frames(path, start, end, fps, max_frames):
        yield _pixels(frame)


def count_frames(
    path: str | os.PathLike[str],
    *,
    start: float = 0.0,
    end: float | None = None,
    fps: float | None = None,
    max_frames: int | None = None,
) -> int:
    """How many frames :func:`read_video` gives for these arguments: the same are decoded, none is converted.

    Raises what :func:`stream_video` raises.
    """
    return sum(1 for _ in _chosen_frames(path, start, end, fps, max_frames))


def read_video(
    path: str | os.PathLike[str],
    *,
    start: float = 0.0,
    end: float | None = None,
    fps: float | None = None,
    max_frames: int | None = None,
    as_float: bool = False,
) -> Video:
    """A whole part of a video in memory; arguments and errors as in :func:`stream_video`.

    ``as_float`` gives float32 in [-1, 1] instead of bytes. Frames that change size midway raise ``MediaError``.
    """
    rate = fps if fps is not None else probe_video(path).fps
    frames = list(stream_video(path, start=start, end=end, fps=fps, max_frames=max_frames))
    if any(one.shape != other.shape for one, other in itertools.pairwise(frames)):
        raise MediaError(f"video {plain_text(path)} changes its frame size midway; encode it again at one size")
    pixels = torch.stack(frames)
    return Video(pixels.float().div(255).sub(0.5).div(0.5) if as_float else pixels, rate)


def _chosen_frames(
    path: str | os.PathLike[str], start: float, end: float | None, fps: float | None, max_frames: int | None
) -> Iterator["av.VideoFrame"]:
    """The decoded frames that a reader gives, as often as it gives them: the one rule of what a part holds."""
    if start < 0 or (end is not None and end <= start):
        raise RequestError(f"a part of a video needs 0 <= start < end, got {start} to {end}")
    if fps is not None and not 0 < fps <= 1000:
        raise RequestError(f"fps must be above 0 and at most 1000, got {fps}")
    if max_frames is not None and max_frames < 1:
        raise RequestError(f"max_frames must be at least 1, got {max_frames}")
    file = existing_file(path, "video")
    timed = _timed_frames(file, start)
    count = 0
    for frame in _within(timed, start, end) if fps is None else _resampled(timed, start, end, fps):
        yield frame
        count += 1
        if count == max_frames:
            return
    if not count:
        length = probe_video(file).seconds
        until = "its end" if end is None else f"{end:g} s"
        lasts = "" if length is None else f"; it lasts {length:.2f} s"
        raise RequestError(f"video {plain_text(file)} has no frame from {start:g} s to {until}{lasts}")


def _video_stream(container: "InputContainer", file: Path) -> Any:
    if not container.streams.video:
        raise MediaError(f"{plain_text(file)} has no video; give a file with pictures in it")
    stream = container.streams.video[0]
    stream.thread_type = "AUTO"
    return stream


def _rate(stream: Any) -> float:
    rate = stream.average_rate or stream.guessed_rate or stream.base_rate
    return float(rate) if rate else 25.0


def _length(container: "InputContainer", stream: Any) -> float | None:
    if stream.duration is not None and stream.time_base is not None:
        return float(stream.duration * stream.time_base)
    return None if container.duration is None else container.duration / _MICROSECONDS


def _timed_frames(file: Path, start: float) -> Iterator[tuple[float, "av.VideoFrame"]]:
    """Decoded frames and their seconds from the beginning of the stream, from a key frame before ``start`` on."""
    if start > 0:
        frames = _decoded(file, start)
        first = next(frames, None)
        if first is not None and first[0] <= start + _TOLERANCE:
            yield first
            yield from frames
            return
        frames.close()  # some containers seek to a place behind the key frame: begin again without
    yield from _decoded(file, 0.0)


def _decoded(file: Path, seek_to: float) -> Generator[tuple[float, "av.VideoFrame"], None, None]:
    with open_container(file, "video") as container:
        stream = _video_stream(container, file)
        step = 1 / _rate(stream)
        begin = float((stream.start_time or 0) * (stream.time_base or 0))
        time = -step
        try:
            if seek_to > step:
                container.seek(int((seek_to + begin) * _MICROSECONDS), backward=True)
            for frame in container.decode(stream):
                time = time + step if frame.time is None else frame.time - begin
                yield time, frame
        except _DECODE_ERRORS as error:
            raise read_error(file, "video", error) from error


def _within(
    timed: Iterator[tuple[float, "av.VideoFrame"]], start: float, end: float | None
) -> Iterator["av.VideoFrame"]:
    for time, frame in timed:
        if end is not None and time >= end - _TOLERANCE:
            return
        if time >= start - _TOLERANCE:
            yield frame


def _resampled(
    timed: Iterator[tuple[float, "av.VideoFrame"]], start: float, end: float | None, fps: float
) -> Iterator["av.VideoFrame"]:
    """For every target time the nearest frame (of two equally near ones the earlier)."""
    stop = math.inf if end is None else end - _TOLERANCE
    targets = itertools.takewhile(lambda target: target < stop, (start + n / fps for n in itertools.count()))
    target = next(targets, stop)
    before: tuple[float, av.VideoFrame] | None = None
    step = 0.0
    for time, frame in timed:
        if before is not None:
            step = time - before[0]
            while target < stop and target <= (before[0] + time) / 2 + _TOLERANCE:
                yield before[1]
                target = next(targets, stop)
        if target >= stop:
            return
        before = time, frame
    if before is None:
        return
    last = before[0] + (_duration(before[1]) or step or 1 / fps) - _TOLERANCE
    while target < min(last, stop):
        yield before[1]
        target = next(targets, stop)


def _duration(frame: "av.VideoFrame") -> float:
    """Seconds that the file shows a frame for; 0 where it does not say, then it is as long as the one before it."""
    return float((frame.duration or 0) * (frame.time_base or 0))


def _quarter_turns(frame: "av.VideoFrame") -> int:
    return round(frame.rotation / 90) % 4


def _pixels(frame: "av.VideoFrame") -> Tensor:
    """[3, H, W] uint8, turned as the file asks (counterclockwise quarter turns)."""
    # A named target makes every release of PyAV look at the colour matrix of the frame itself.
    image = frame.reformat(format="rgb24", dst_colorspace="DEFAULT", interpolation=_SWSCALE).to_ndarray()
    turned = np.rot90(image, _quarter_turns(frame))
    return torch.from_numpy(np.ascontiguousarray(turned)).permute(2, 0, 1).contiguous()
