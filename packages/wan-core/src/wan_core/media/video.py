"""Videos out: frames are encoded as they come, and the file appears only when it is whole."""

import os
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from PIL import Image
from torch import Tensor

from wan_core.errors import MediaError, RequestError
from wan_core.media.audio import AudioTrack
from wan_core.media.encoders import DEFAULT_CRF, GifEncoder, MediaEncoder, Mp4Encoder, PngEncoder, WebpEncoder
from wan_core.media.images import tensor_to_image, to_uint8
from wan_core.media.output import OutputTarget, check_output
from wan_core.media.provenance import Provenance

_MAX_FPS = 1000
_MAX_DENOMINATOR = 1001  # 24000/1001 and its kind stay exact
_MAX_SIDE = 16_384


class VideoWriter:
    """A video that takes frames chunk by chunk; a context manager.

    Leaving it normally finishes the file and gives it its name; leaving it by an exception, Ctrl-C included, leaves
    nothing behind and an older file of that name as it was. ``fps`` is frames per second, ``crf`` x264's constant rate
    factor (0 best, 51 worst; mp4 only), ``audio`` is cut to the length of the video (mp4 only).
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        fps: float,
        provenance: Provenance | None = None,
        audio: AudioTrack | None = None,
        crf: int = DEFAULT_CRF,
    ) -> None:
        if not 0 < fps <= _MAX_FPS:
            raise RequestError(f"fps must be above 0 and at most {_MAX_FPS}, got {fps}")
        if not 0 <= crf <= 51:
            raise RequestError(f"crf must be 0 to 51, got {crf}")
        self.path = Path(path)
        self.num_frames = 0
        self._fps = Fraction(fps).limit_denominator(_MAX_DENOMINATOR)
        self._comment = None if provenance is None else provenance.to_json()
        self._audio = audio
        self._crf = crf
        self._target = check_output(path, fps=fps, has_audio=audio is not None)
        self._draft = self._target.draft()
        self._encoder: MediaEncoder | None = None
        self._size: tuple[int, int] | None = None

    def __enter__(self) -> Self:
        self._draft.__enter__()
        return self

    def add(self, frames: Tensor) -> None:
        """Append frames [3, t, H, W], values in [-1, 1], on any device.

        Raises ``MediaError`` when the file cannot be written or a value is not a number, ``ValueError`` for another
        shape than before.
        """
        if frames.ndim != 4 or frames.shape[0] != 3:
            raise ValueError(f"frames are [3, t, H, W], got {list(frames.shape)}")
        height, width = frames.shape[2:]
        if self._size not in (None, (width, height)):
            raise ValueError(f"frames of {width}x{height} cannot follow frames of {self._size}")
        self._check_numbers(frames)
        pixels = to_uint8(frames).permute(1, 2, 3, 0).contiguous().cpu().numpy()
        with self._draft.errors():
            for frame in pixels:
                if self._encoder is None:
                    self._size = (width, height)
                    self._encoder = self._open(self._target, self._size)
                self._encoder.add(frame)
                self.num_frames += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        encoder, self._encoder = self._encoder, None
        try:
            if kind is None:
                if encoder is None:
                    raise MediaError(f"no frames came for {self.path}; nothing was written")
                with self._draft.errors():
                    encoder.close()
                encoder = None
                self._draft.commit()
        finally:
            if encoder is not None:
                encoder.abort()
            self._draft.discard()

    def _open(self, target: OutputTarget, size: tuple[int, int]) -> MediaEncoder:
        if not 1 <= min(size) <= max(size) <= _MAX_SIDE:
            raise MediaError(f"frames of {size[0]}x{size[1]} cannot be written; sides are 1 to {_MAX_SIDE} pixels")
        path, fps, comment = self._draft.path, self._fps, self._comment
        if target.kind == "mp4":
            return Mp4Encoder(path, size, fps, comment=comment, crf=self._crf, audio=self._audio)
        if target.kind == "webp":
            return WebpEncoder(path, size, fps, comment=comment)
        if target.kind == "gif":
            return GifEncoder(path, size, fps, comment=comment)
        if target.kind == "frames":
            return PngEncoder(path, target.path.name, comment=comment)
        return PngEncoder(path.parent, path.name, comment=comment)

    def _check_numbers(self, frames: Tensor) -> None:
        finite = torch.isfinite(frames).all(dim=3).all(dim=2).all(dim=0)
        if not bool(finite.all()):
            bad = self.num_frames + int((~finite).nonzero()[0])
            raise MediaError(f"frame {bad} of the video is not made of numbers (NaN or infinity); try --dtype float32")


def write_video(
    frames: Iterable[Tensor],
    path: str | os.PathLike[str],
    *,
    fps: float,
    provenance: Provenance | None = None,
    audio: AudioTrack | None = None,
    crf: int = DEFAULT_CRF,
) -> Path:
    """Write chunks of frames [3, t, H, W] in [-1, 1] as they come; returns the path.

    The ending chooses the kind: ``.mp4`` (H.264), ``.gif``, ``.webp``, ``.png`` for one frame, ``frames/%04d.png`` for
    one image each. One chunk is held at a time. Whatever stops it, nothing half-written stays. Raises what
    :class:`VideoWriter` and :func:`check_output` raise, and lets errors of ``frames`` through.
    """
    with VideoWriter(path, fps=fps, provenance=provenance, audio=audio, crf=crf) as writer:
        for chunk in frames:
            writer.add(chunk)
    return writer.path


def write_image(
    image: Image.Image | Tensor, path: str | os.PathLike[str], *, provenance: Provenance | None = None
) -> Path:
    """Write one image (PIL, or [3, H, W] in [-1, 1] or uint8) as ``.png``, whole or not at all; returns the path.

    Raises ``RequestError`` for another ending, ``MediaError`` when it cannot be written.
    """
    target = check_output(path, num_frames=1)
    if target.kind != "png":
        raise RequestError(f"a single picture is written as .png, got {path}")
    comment = None if provenance is None else provenance.to_json()
    still = image if isinstance(image, Image.Image) else tensor_to_image(image)
    with target.draft() as draft:
        encoder = PngEncoder(draft.path.parent, draft.path.name, comment=comment)
        with draft.errors():
            encoder.add_image(still.convert("RGB"))
        draft.commit()
    return Path(path)
