"""Encoders of single file kinds: RGB frames in, one finished temporary file (or folder of images) out.

Every encoder is opened with the first frame's size, takes [H, W, 3] byte arrays, and is closed or aborted.
"""

import contextlib
import struct
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import GifImagePlugin, Image
from PIL.PngImagePlugin import PngInfo

from wan_core.errors import MediaError
from wan_core.media.audio import AudioTrack, resample
from wan_core.media.tags import PNG_KEY, add_webp_description, gif_comment

if TYPE_CHECKING:
    from av.container import OutputContainer

Frame = NDArray[np.uint8]

DEFAULT_CRF = 10
"""x264's constant rate factor at which the original writes: imageio's quality 8 is int((1 - 8 / 10) * 51)."""
_WEBP_QUALITY = "90"
_PALETTE_SAMPLE = 20_000
_AAC_RATES = (96000, 88200, 64000, 48000, 44100, 32000, 24000, 22050, 16000, 12000, 11025, 8000)
_AAC_FRAME = 1024
_AAC_BIT_RATE = 192_000  # that of the original
_BT709 = 1
_LIMITED_RANGE = 1


class MediaEncoder(Protocol):
    """What a video file kind offers to the writer."""

    def add(self, frame: Frame) -> None:
        """Encode one frame [H, W, 3]."""

    def close(self) -> None:
        """Finish the file. Raises ``OSError`` or ``MediaError`` when it is not whole."""

    def abort(self) -> None:
        """Let go of the file without finishing it; never raises."""


class Mp4Encoder:
    """H.264 in yuv420p with BT.709 colours, index at the front; sound as AAC, cut to the length of the video.

    Odd sides gain one line that repeats the edge: the format has half as many colour samples per side.
    """

    container_options: ClassVar[Mapping[str, str]] = {"movflags": "+faststart"}
    codec_options: ClassVar[Mapping[str, str]] = {}

    def __init__(
        self,
        path: Path,
        size: tuple[int, int],
        fps: Fraction,
        *,
        comment: str | None,
        crf: int,
        audio: AudioTrack | None,
    ) -> None:
        import av

        self._fps = fps
        self._path = path
        self._count = 0
        self._container: OutputContainer = av.open(str(path), "w", format="mp4", options=dict(self.container_options))
        with contextlib.ExitStack() as on_failure:
            on_failure.callback(self.abort)
            if comment is not None:
                self._container.metadata["comment"] = comment
            self._stream = self._container.add_stream(
                "libx264", rate=fps, options=_x264_options(crf) | dict(self.codec_options)
            )
            width, height = size
            self._stream.width, self._stream.height = width + width % 2, height + height % 2
            self._stream.pix_fmt = "yuv420p"
            context = self._stream.codec_context
            context.colorspace = context.color_primaries = context.color_trc = _BT709
            context.color_range = _LIMITED_RANGE
            self._audio = None if audio is None else _AudioFeed(self._container, audio)
            on_failure.pop_all()

    def add(self, frame: Frame) -> None:
        import av

        height, width = frame.shape[:2]
        if height % 2 or width % 2:
            frame = np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        image = av.VideoFrame.from_ndarray(frame, format="rgb24")
        image = image.reformat(format="yuv420p", dst_colorspace="ITU709")
        image.pts, image.time_base = self._count, 1 / self._fps
        self._container.mux(self._stream.encode(image))
        self._count += 1
        if self._audio is not None:
            self._audio.feed(float(self._count / self._fps))

    def close(self) -> None:
        self._container.mux(self._stream.encode(None))
        if self._audio is not None:
            self._audio.flush()
        self._container.close()
        self._verify()

    def abort(self) -> None:
        with contextlib.suppress(OSError, ValueError, RuntimeError):
            self._container.close()

    def _verify(self) -> None:
        """The muxer moves its index at the very end, where a full disk can go unnoticed: read it back."""
        import av

        try:
            with av.open(str(self._path), "r") as container:
                found = container.streams.video[0].frames
        except (OSError, ValueError, LookupError) as error:
            raise MediaError(f"the video file came out unreadable ({error}); is the disk full?") from error
        if found != self._count:
            raise MediaError(f"the video file holds {found} of {self._count} frames; is the disk full?")


def _x264_options(crf: int) -> dict[str, str]:
    """x264's AVX-512 code reads memory that it never wrote: equal frames gave unequal files. AVX2 is as fast here."""
    options = {"crf": str(crf)}
    if torch.backends.cpu.get_cpu_capability() == "AVX512":
        options["x264-params"] = "asm=AVX2,FMA3,BMI2"
    return options


class _AudioFeed:
    """Sends sound to the muxer in step with the frames, and none beyond them."""

    def __init__(self, container: "OutputContainer", track: AudioTrack) -> None:
        if track.sample_rate not in _AAC_RATES:
            track = resample(track, 48000)
        self._container = container
        self._rate = track.sample_rate
        self._samples = np.ascontiguousarray(track.samples.clamp(-1, 1).float().cpu().numpy())
        self._layout = "mono" if len(self._samples) == 1 else "stereo"
        self._stream: Any = container.add_stream("aac", rate=self._rate, layout=self._layout)
        self._stream.bit_rate = _AAC_BIT_RATE
        self._position = self._end = 0

    def feed(self, seconds: float) -> None:
        self._end = min(round(seconds * self._rate), self._samples.shape[1])
        while self._position + _AAC_FRAME <= self._end:
            self._encode(self._position + _AAC_FRAME)

    def flush(self) -> None:
        if self._position < self._end:
            self._encode(self._end)
        self._container.mux(self._stream.encode(None))

    def _encode(self, end: int) -> None:
        import av

        block = np.ascontiguousarray(self._samples[:, self._position : end])
        frame = av.AudioFrame.from_ndarray(block, format="fltp", layout=self._layout)
        frame.sample_rate, frame.pts, frame.time_base = self._rate, self._position, Fraction(1, self._rate)
        self._container.mux(self._stream.encode(frame))
        self._position = end


class WebpEncoder:
    """Animated WebP, lossy, endless; durations in whole milliseconds that do not drift."""

    def __init__(self, path: Path, size: tuple[int, int], fps: Fraction, *, comment: str | None) -> None:
        import av

        self._path, self._size, self._fps, self._comment = path, size, fps, comment
        self._count = 0
        self._container: OutputContainer = av.open(str(path), "w", format="webp", options={"loop": "0"})
        with contextlib.ExitStack() as on_failure:
            on_failure.callback(self.abort)
            self._stream: Any = self._container.add_stream("libwebp_anim", rate=fps, options={"quality": _WEBP_QUALITY})
            self._stream.width, self._stream.height = size
            self._stream.pix_fmt = "bgra"
            on_failure.pop_all()

    def add(self, frame: Frame) -> None:
        import av

        image = av.VideoFrame.from_ndarray(frame, format="rgb24").reformat(format="bgra")
        image.pts, image.time_base = self._count, 1 / self._fps
        self._container.mux(self._stream.encode(image))
        self._count += 1

    def close(self) -> None:
        self._container.mux(self._stream.encode(None))
        self._container.close()
        add_webp_description(self._path, self._size, self._comment)

    def abort(self) -> None:
        with contextlib.suppress(OSError, ValueError, RuntimeError):
            self._container.close()


class GifEncoder:
    """Endless GIF with a palette of 256 colours per frame, so that no frame has to wait for the last one."""

    def __init__(self, path: Path, size: tuple[int, int], fps: Fraction, *, comment: str | None) -> None:
        self._fps = fps
        self._count = 0
        self._file = path.open("xb")
        with contextlib.ExitStack() as on_failure:
            on_failure.callback(self.abort)
            self._file.write(b"GIF89a" + struct.pack("<HHBBB", *size, 0x70, 0, 0))
            self._file.write(b"!\xff\x0bNETSCAPE2.0\x03\x01\x00\x00\x00" + gif_comment(comment))
            on_failure.pop_all()

    def add(self, frame: Frame) -> None:
        image = Image.fromarray(frame)
        image = image.quantize(palette=_palette_of(image), dither=Image.Dither.FLOYDSTEINBERG)
        begin, end = (round(index * 100 / self._fps) for index in (self._count, self._count + 1))
        for block in GifImagePlugin.getdata(image, duration=10 * (end - begin), include_color_table=True):
            self._file.write(block)
        self._count += 1

    def close(self) -> None:
        self._file.write(b";")
        self._file.close()

    def abort(self) -> None:
        with contextlib.suppress(OSError):
            self._file.close()


def _palette_of(image: Image.Image) -> Image.Image:
    """An image with the best 256 colours, found on a sample of the pixels: on all of them it takes seconds."""
    shrink = (_PALETTE_SAMPLE / (image.width * image.height)) ** 0.5
    if shrink < 1:
        size = max(1, int(image.width * shrink)), max(1, int(image.height * shrink))
        image = image.resize(size, Image.Resampling.NEAREST)
    return image.quantize(256, method=Image.Quantize.MAXCOVERAGE)


class PngEncoder:
    """Lossless images, one per frame: ``names`` formats a frame's index into its file name in ``folder``."""

    def __init__(self, folder: Path, pattern: str, *, comment: str | None) -> None:
        self._folder, self._pattern = folder, pattern
        self._count = 0
        self._info = PngInfo()
        if comment is not None:
            self._info.add_text(PNG_KEY, comment)

    def add(self, frame: Frame) -> None:
        self.add_image(Image.fromarray(frame))

    def add_image(self, image: Image.Image) -> None:
        name = self._pattern % self._count if "%" in self._pattern else self._pattern
        if self._count and name == self._pattern:
            raise MediaError(f"{name} holds one picture, but more frames came; use a pattern such as frames/%04d.png")
        with (self._folder / name).open("xb") as file:
            image.save(file, format="PNG", pnginfo=self._info)
        self._count += 1

    def close(self) -> None:
        """Every image is finished already."""

    def abort(self) -> None:
        """Nothing is open between two images."""
