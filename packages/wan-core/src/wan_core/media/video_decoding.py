"""The frames that a video file holds, decoded, and when each is shown: with their transparency, deinterlaced."""

import bisect
import contextlib
import io
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image

from wan_core.errors import MediaError
from wan_core.files import DECODE_ERRORS, plain_text, read_error
from wan_core.media.colour import UNSAID
from wan_core.media.containers import ffmpeg_errors, open_container
from wan_core.media.images import to_rgb
from wan_core.media.profiles import colours_of
from wan_core.media.tags import webp_durations
from wan_core.media.video_frames import Look, kind, look_of, refusal

if TYPE_CHECKING:
    import av
    from av.container import InputContainer
    from av.filter import Graph

_MICROSECONDS = 1_000_000
# FFmpeg's own decoders drop the alpha that WebM keeps beside the pictures.
_BT601 = 5
_BI_RGB = "\0\0\0\0"  # uncompressed AVI, whose fourth byte Windows leaves unused
_PROGRESSIVE = 1  # FFmpeg's field orders: 0 is unknown, those above are interlaced
_NO_PROFILE = b"\0"
_MOST_FPS = 1000  # more is the clock of a file, not its rate
_ONE_BY_ONE = ("h264", "hevc")  # decoders that show a frame for each packet of an mp4
_PICTURES = ("png", "apng", "mjpeg")
_ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}


class TimedFrame(NamedTuple):
    """A frame, its seconds from the beginning and on the screen (0: not said), and how it is shown."""

    time: float
    duration: float
    frame: "av.VideoFrame"
    look: Look


@dataclass(frozen=True)
class PacketTimes:
    """What packets say of a video: the ``times`` of its frames, rising, in seconds from its begin, and which ones are
    ``keys``, that decoding can begin at; frame 0 is."""

    times: Sequence[float]
    keys: Sequence[int]

    @cached_property
    def _tolerance(self) -> float:
        return min((after - before for before, after in pairwise(self.times)), default=1.0) / 4

    def number_at(self, time: float) -> int | None:
        """The frame that is shown at a time; None where none begins there."""
        number = bisect.bisect_left(self.times, time - self._tolerance)
        is_there = number < len(self.times) and abs(self.times[number] - time) <= self._tolerance
        return number if is_there else None


def packet_times(file: Path) -> PacketTimes | None:
    """When the frames of a video are shown, by its packets, which are read and not decoded.

    None where they do not say it exactly: a frame for each packet, all with times of their own, the first one a key
    frame that no other is shown before. That is known of progressive H.264 and HEVC in mp4 and mov. Raises
    ``MediaError``.
    """
    if webp_durations(file):
        return None
    with open_container(file, "video") as container:
        stream = video_stream(container, file)
        context = stream.codec_context
        is_known = container.format.name.startswith("mov") and context.name in _ONE_BY_ONE
        if not is_known or context.field_order > _PROGRESSIVE:
            return None
        found = _shown_packets(container, stream)
        unit, begin = stream.time_base, _begin(stream)
    shown = sorted(found)
    if shown[:1] != found[:1] or not shown or not shown[0][1] or any(a[0] == b[0] for a, b in pairwise(shown)):
        return None
    times = [float(pts * unit) - begin for pts, _ in shown]
    return PacketTimes(times, [number for number, (_, is_key) in enumerate(shown) if is_key])


def _shown_packets(container: "InputContainer", stream: Any) -> list[tuple[int, bool]]:
    """When the packets of a stream are shown, as they come, and which are key frames; none if one is odd."""
    shown: list[tuple[int, bool]] = []
    with contextlib.suppress(*ffmpeg_errors()):
        for packet in container.demux(stream):
            is_end = packet.pts is None and packet.dts is None
            if packet.is_corrupt or (packet.pts is None and not is_end):
                return []
            if packet.pts is not None and not packet.is_discard:
                shown.append((packet.pts, packet.is_keyframe))
        return shown
    return []


def decoded_frames(file: Path, seek_to: float = 0.0) -> Generator[TimedFrame, None, None]:
    """All frames from a key frame before ``seek_to`` seconds on (or from the first). Raises ``MediaError``."""
    durations = webp_durations(file)
    if durations:
        yield from webp_frames(file, durations)
        return
    with open_container(file, "video") as container:
        stream = video_stream(container, file)
        step = 1 / frame_rate(stream)
        if stream.codec_context.field_order > _PROGRESSIVE:
            seek_to -= 2 * step  # deinterlacing looks at the frame before, so a part is as it is in the whole
        if seek_to > step:
            try:
                container.seek(int((seek_to + _begin(stream)) * _MICROSECONDS), backward=True)
            except ffmpeg_errors() as error:
                raise read_error(file, "video", error) from error
        yield from stream_frames(container, stream, file)


def stream_frames(container: "InputContainer", stream: Any, file: Path) -> Iterator[TimedFrame]:
    """The frames of an open container from where it stands. Raises ``MediaError``."""
    try:
        yield from deinterlaced(_timed(container, stream, file))
    except ffmpeg_errors() as error:
        raise read_error(file, "video", error) from error


def video_stream(container: "InputContainer", file: Path) -> Any:
    """The stream that is read. Raises ``MediaError`` when there is none."""
    if not container.streams.video:
        raise MediaError(f"{plain_text(file)} has no video; give a file with pictures in it")
    stream: Any = container.streams.video[0]
    if stream.codec_context is None:
        raise MediaError(f"video {plain_text(file)} is of a kind that has no decoder here; save it as mp4 (H.264)")
    stream.thread_type = "AUTO"
    return stream


def frame_rate(stream: Any) -> float:
    """Frames per second, 25 where the file does not say."""
    rate = stream.average_rate or stream.guessed_rate or stream.base_rate
    return float(rate) if rate and rate <= _MOST_FPS else 25.0


def _begin(stream: Any) -> float:
    return float((stream.start_time or 0) * (stream.time_base or 0))


def _timed(container: "InputContainer", stream: Any, file: Path) -> Iterator[TimedFrame]:
    begin, step = _begin(stream), 1 / frame_rate(stream)
    time, look, last = -step, None, None
    profile = _picture_profile(stream.codec_context.name, file)
    for frame in _decoded(container, stream):
        time = time + step if frame.time is None else frame.time - begin
        if look is None or kind(frame) != last:
            reason = refusal(frame, stream.codec_context.codec_tag)
            if reason is not None:
                raise MediaError(f"video {plain_text(file)} {reason}, which is not read here; convert it to BT.709")
            look, last = look_of(frame, stream.sample_aspect_ratio, profile, plain_text(file)), kind(frame)
        yield TimedFrame(time, float((frame.duration or 0) * (frame.time_base or 0)), frame, look)


def _picture_profile(codec: str, file: Path) -> bytes | None:
    """The ICC profile in the first picture of a video of PNG or JPEG files, `_NO_PROFILE` for one that is damaged.

    PyAV's side data are no way to it: they free the profile's name of a PNG twice, and EXIF in a JPEG hides all.
    """
    if codec not in _PICTURES:
        return None
    with contextlib.suppress(*ffmpeg_errors(), StopIteration), contextlib.ExitStack() as opened:
        source: Any = file
        if codec != "apng":
            container = opened.enter_context(open_container(file, "video"))
            source = io.BytesIO(bytes(next(container.demux(video_stream(container, file)))))
        with Image.open(source, formats=("PNG", "JPEG", "MPO")) as image:
            return image.info["icc_profile"] or _NO_PROFILE if "icc_profile" in image.info else None
    return None


def _decoded(container: "InputContainer", stream: Any) -> Iterator["av.VideoFrame"]:
    decoder = _ALPHA_DECODERS.get(stream.codec_context.codec.canonical_name)
    if decoder is None or ("alpha_mode", "1") not in {(key.lower(), value) for key, value in stream.metadata.items()}:
        has_unused_byte = container.format.name == "avi" and stream.codec_context.codec_tag == _BI_RGB
        for frame in container.decode(stream):
            yield frame.reformat(format="bgr0") if has_unused_byte and frame.format.name == "bgra" else frame
        return
    from av.codec import CodecContext

    context: Any = CodecContext.create(decoder, "r")
    for packet in container.demux(stream):
        for frame in context.decode(packet):
            for name in ("colorspace", "color_primaries", "color_trc"):
                if getattr(frame, name) in UNSAID:  # then the container may say it, and FFmpeg's decoder knows it
                    setattr(frame, name, getattr(stream.codec_context, name))
            if decoder == "libvpx" and frame.colorspace in UNSAID:
                frame.colorspace = _BT601  # VP8 has no other
            yield frame


def deinterlaced(frames: Iterator[TimedFrame]) -> Iterator[TimedFrame]:
    """The same frames at the same times; those that are flagged as interlaced have become whole (FFmpeg's bwdif)."""
    graph: Graph | None = None
    last: tuple[object, ...] | None = None
    waiting: deque[TimedFrame] = deque()
    for shown in frames:
        if graph is not None and kind(shown.frame) != last:
            yield from _whole(graph, None, waiting)
            graph = None
        if graph is None:
            if not shown.frame.interlaced_frame:
                yield shown
                continue
            graph, last = _bwdif(shown.frame), kind(shown.frame)
        waiting.append(shown)
        yield from _whole(graph, shown.frame, waiting)
    if graph is not None:
        yield from _whole(graph, None, waiting)


def _whole(graph: "Graph", frame: "av.VideoFrame | None", waiting: deque[TimedFrame]) -> Iterator[TimedFrame]:
    """What comes out for one frame more, or at the end: as many as went in, one later."""
    graph.vpush(frame)
    while waiting:
        try:
            done = graph.vpull()
        except (BlockingIOError, EOFError):
            return
        shown = waiting.popleft()
        yield shown._replace(frame=done)


def _bwdif(frame: "av.VideoFrame") -> "Graph":
    from av.filter import Graph

    graph = Graph()
    source = graph.add(
        "buffer",
        video_size=f"{frame.width}x{frame.height}",
        pix_fmt=frame.format.name,
        time_base=str(frame.time_base or Fraction(1, 25)),
        colorspace=str(int(frame.colorspace)),
        range=str(int(frame.color_range)),  # both stay as they are where bwdif needs another pixel format
    )
    graph.link_nodes(source, graph.add("bwdif", "send_frame:auto:interlaced"), graph.add("buffersink")).configure()
    return graph


def webp_frames(file: Path, durations: list[int]) -> Iterator[TimedFrame]:
    """The frames of an animated WebP file, which FFmpeg does not read. Raises ``MediaError``."""
    import av

    milliseconds = 0
    try:
        with Image.open(file, formats=("WEBP",)) as image:
            colours = colours_of(image, file)
            for index, duration in enumerate(durations):
                image.seek(index)
                frame = av.VideoFrame.from_ndarray(np.asarray(to_rgb(image, colours)), format="rgb24")
                yield TimedFrame(milliseconds / 1000, duration / 1000, frame, look_of(frame))
                milliseconds += duration
    except (*DECODE_ERRORS, Image.DecompressionBombError) as error:
        raise read_error(file, "video", error) from error
