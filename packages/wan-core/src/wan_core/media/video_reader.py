"""Videos in: frame by frame, upright, any part, at any frame rate."""

import itertools
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wan_core.errors import MediaError, RequestError
from wan_core.files import existing_file, plain_text, read_error
from wan_core.media.containers import ffmpeg_errors, open_container
from wan_core.media.tags import webp_durations
from wan_core.media.video_decoding import (
    TimedFrame,
    decoded_frames,
    frame_rate,
    packet_times,
    stream_frames,
    video_stream,
    webp_frames,
)
from wan_core.media.video_frames import notes_on, pixels

_MICROSECONDS = 1_000_000
_TOLERANCE = 1e-3  # seconds: containers round times to milliseconds


@dataclass(frozen=True)
class VideoInfo:
    """What a file says about its video. Sizes in pixels as shown, i.e. square ones, after rotation; ``seconds`` and
    ``num_frames`` are ``None`` where the file does not tell. ``notes`` are sentences, to be put behind its name, on
    what had to be chosen: a colour matrix that the file does not say, how HDR is shown."""

    width: int
    height: int
    fps: float
    seconds: float | None
    num_frames: int | None
    has_audio: bool
    notes: tuple[str, ...] = ()


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
    durations = webp_durations(file)
    if durations:
        seconds, count = sum(durations) / 1000, len(durations)
        first = next(webp_frames(file, durations))
        return VideoInfo(first.frame.width, first.frame.height, count / seconds, seconds, count, has_audio=False)
    with open_container(file, "video") as container:
        stream = video_stream(container, file)
        shown = next(stream_frames(container, stream, file), None)
        if shown is None:
            raise MediaError(f"video {plain_text(file)} has no frame that can be decoded")
        width, height = shown.look.size
        return VideoInfo(
            width=width,
            height=height,
            fps=frame_rate(stream),
            seconds=_length(container, stream),
            num_frames=_num_frames(container, stream),
            has_audio=bool(container.streams.audio),
            notes=tuple(notes_on(shown.frame, stream.sample_aspect_ratio)),
        )


def stream_video(
    path: str | os.PathLike[str],
    *,
    start: float = 0.0,
    end: float | None = None,
    fps: float | None = None,
    skip: int = 0,
    max_frames: int | None = None,
) -> Iterator[Tensor]:
    """The frames of a video one by one, [3, H, W] uint8, as a player shows them (see :func:`.video_frames.pixels`).

    ``start`` and ``end`` are seconds from the beginning, ``end`` itself left out. With ``fps`` the frames are those
    nearest in time to ``start + k / fps``: some repeat or are left out, none is blended. The first ``skip`` of them are
    decoded and left out, ``max_frames`` counts from there. Raises ``RequestError`` for an
    impossible range at once, and at the first frame for a missing file; ``MediaError`` for no video or a damaged one.
    """
    _check_part(start, end, fps, max_frames)
    until = None if max_frames is None else skip + max_frames
    return converted(path, itertools.islice(chosen_frames(path, start, end, fps, until), skip, None))


def converted(path: str | os.PathLike[str], chosen: Iterator[TimedFrame]) -> Iterator[Tensor]:
    """Decoded frames as a player shows them, [3, H, W] uint8. Raises ``MediaError``."""
    for shown in chosen:
        try:
            frame = pixels(shown.frame, shown.look)
        except ffmpeg_errors() as error:
            raise read_error(path, "video", error) from error
        yield frame


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
    return sum(1 for _ in chosen_frames(path, start, end, fps, max_frames))


def frame_times(path: str | os.PathLike[str]) -> list[float]:
    """When each frame of a video is shown, in seconds from its begin.

    Where the packets of the file say it exactly none is decoded, so that a damaged one may be counted; else all are.
    Raises what :func:`stream_video` raises.
    """
    said = packet_times(existing_file(path, "video"))
    return [frame.time for frame in chosen_frames(path, 0.0, None, None, None)] if said is None else list(said.times)


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


def chosen_frames(
    path: str | os.PathLike[str], start: float, end: float | None, fps: float | None, max_frames: int | None
) -> Iterator[TimedFrame]:
    """The decoded frames that a reader gives, as often as it gives them: the one rule of what a part holds."""
    _check_part(start, end, fps, max_frames)
    file = existing_file(path, "video")
    timed = timed_frames(file, start)
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


def _check_part(start: float, end: float | None, fps: float | None, max_frames: int | None) -> None:
    if start < 0 or (end is not None and end <= start):
        until = "its end" if end is None else f"{end:g} s"
        raise RequestError(f"a part of a video needs 0 <= start < end, got {start:g} s to {until}")
    if fps is not None and not 0 < fps <= 1000:
        raise RequestError(f"fps must be above 0 and at most 1000, got {fps}")
    if max_frames is not None and max_frames < 1:
        raise RequestError(f"max_frames must be at least 1, got {max_frames}")


def _num_frames(container: Any, stream: Any) -> int | None:
    """How many frames the file says that it shows: an mp4 with an edit list holds others, too."""
    entries = stream.index_entries if stream.frames and container.format.name.startswith("mov") else ()
    return sum(not entry.is_discard for entry in entries) or stream.frames or None


def _length(container: Any, stream: Any) -> float | None:
    if stream.duration is not None and stream.time_base is not None:
        return float(stream.duration * stream.time_base)
    if container.duration is None:
        return None
    # The duration of a Matroska segment is the time at which its last frame ends, others count from their start.
    late = (stream.start_time or 0) * (stream.time_base or 0) if "matroska" in container.format.name else 0
    return float(container.duration / _MICROSECONDS - late)


def timed_frames(file: Path, start: float) -> Iterator[TimedFrame]:
    """Decoded frames from a key frame before ``start`` on."""
    if start > 0:
        frames = decoded_frames(file, start)
        first = next(frames, None)
        if first is not None and first.time <= start + _TOLERANCE:
            yield first
            yield from frames
            return
        frames.close()  # some containers seek to a place behind the key frame: begin again without
    yield from decoded_frames(file)


def _within(timed: Iterator[TimedFrame], start: float, end: float | None) -> Iterator[TimedFrame]:
    for shown in timed:
        if end is not None and shown.time >= end - _TOLERANCE:
            return
        if shown.time >= start - _TOLERANCE:
            yield shown


def _resampled(timed: Iterator[TimedFrame], start: float, end: float | None, fps: float) -> Iterator[TimedFrame]:
    """For every target time the nearest frame (of two equally near ones the earlier)."""
    stop = math.inf if end is None else end - _TOLERANCE
    targets = itertools.takewhile(lambda target: target < stop, (start + n / fps for n in itertools.count()))
    target = next(targets, stop)
    before: TimedFrame | None = None
    step = 0.0
    for shown in timed:
        if before is not None:
            step = shown.time - before.time
            while target < stop and target <= (before.time + shown.time) / 2 + _TOLERANCE:
                yield before
                target = next(targets, stop)
        if target >= stop:
            return
        before = shown
    if before is None:
        return
    # Where the file does not say how long its last frame is shown, it is as long as the one before it.
    last = before.time + (before.duration or step or 1 / fps) - _TOLERANCE
    while target < min(last, stop):
        yield before
        target = next(targets, stop)
