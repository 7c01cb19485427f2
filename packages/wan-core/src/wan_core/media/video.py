"""Videos out: frames are encoded as they come, and the file appears only when it is whole."""

import contextlib
import math
import os
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from wan_core.errors import MediaError, RequestError
from wan_core.media.audio import AudioTrack
from wan_core.media.encoders import DEFAULT_CRF, Frame, GifEncoder, MediaEncoder, Mp4Encoder, PngEncoder, WebpEncoder
from wan_core.media.images import tensor_to_image, to_uint8
from wan_core.media.output import OutputTarget, check_output
from wan_core.media.provenance import Provenance

_MAX_FPS = 1000
_MAX_DENOMINATOR = 1001  # 24000/1001 and its kind stay exact
_MAX_SIDE = 16_384


def write_video(
    frames: Iterable[Tensor],
    path: str | os.PathLike[str],
    *,
    fps: float,
    provenance: Provenance | None = None,
    audio: AudioTrack | None = None,
    shortest: bool = False,
    crf: int = DEFAULT_CRF,
) -> Path:
    """Write chunks of frames [3, t, H, W] in [-1, 1], on any device, as they come; returns the path.

    The ending chooses the kind: ``.mp4`` (H.264), ``.gif``, ``.webp``, ``.png`` for one frame, ``frames/%04d.png`` for
    one image each. ``fps`` is frames per second, ``crf`` x264's constant rate factor (0 best, 51 worst; mp4 only),
    ``audio`` is cut to the length of the video (mp4 only); with ``shortest`` the frames that would be shown after its
    end are left out, too, though all are taken. One chunk is held at a time. Whatever stops it, Ctrl-C included,
    nothing half-written stays and an older file of that name is as it was. Raises ``MediaError`` when the file cannot
    be written or a value is not a number, ``ValueError`` for chunks of another shape than before, what
    :func:`check_output` raises, and lets errors of ``frames`` through.
    """
    if not 0 < fps <= _MAX_FPS:
        raise RequestError(f"fps must be above 0 and at most {_MAX_FPS}, got {fps}")
    if not 0 <= crf <= 51:
        raise RequestError(f"crf must be 0 to 51, got {crf}")
    target = check_output(path, fps=fps, has_audio=audio is not None)
    rate = exact_rate(fps)
    comment = None if provenance is None else provenance.to_json()
    encoder: MediaEncoder | None = None
    wanted = math.ceil(audio.seconds * rate) if audio is not None and shortest else math.inf
    with target.draft() as draft, contextlib.ExitStack() as on_failure:
        for index, frame in enumerate(frames_of(frames)):
            if index >= wanted:
                continue
            with draft.errors():
                if encoder is None:
                    encoder = _encoder(target, draft.path, frame, fps=rate, comment=comment, crf=crf, audio=audio)
                    on_failure.callback(encoder.abort)
                encoder.add(frame)
        if encoder is None:
            raise MediaError(f"no frames came for {path}; nothing was written")
        with draft.errors():
            encoder.close()
        on_failure.pop_all()
        draft.commit()
    return Path(path)


def exact_rate(fps: float) -> Fraction:
    """Frames per second as files have it."""
    return Fraction(fps).limit_denominator(_MAX_DENOMINATOR)


def frames_of(chunks: Iterable[Tensor]) -> Iterator[Frame]:
    """The frames one by one, [H, W, 3], checked."""
    size: tuple[int, int] | None = None
    count = 0
    for chunk in chunks:
        if chunk.ndim != 4 or chunk.shape[0] != 3:
            raise ValueError(f"frames are [3, t, H, W], got {list(chunk.shape)}")
        height, width = chunk.shape[2:]
        if size not in (None, (width, height)):
            raise ValueError(f"frames of {width}x{height} cannot follow frames of {size}")
        size = width, height
        finite = torch.isfinite(chunk).all(dim=3).all(dim=2).all(dim=0)
        if not bool(finite.all()):
            bad = count + int((~finite).nonzero()[0])
            raise MediaError(f"frame {bad} of the video is not made of numbers (NaN or infinity); try --dtype float32")
        yield from to_uint8(chunk).permute(1, 2, 3, 0).contiguous().cpu().numpy()
        count += chunk.shape[1]


def _encoder(
    target: OutputTarget,
    path: Path,
    first: Frame,
    *,
    fps: Fraction,
    comment: str | None,
    crf: int,
    audio: AudioTrack | None,
) -> MediaEncoder:
    """What writes ``target`` to the draft ``path``, opened with the size of the first frame."""
    height, width = first.shape[:2]
    if not 1 <= min(width, height) <= max(width, height) <= _MAX_SIDE:
        raise MediaError(f"frames of {width}x{height} cannot be written; sides are 1 to {_MAX_SIDE} pixels")
    if target.kind == "mp4":
        return Mp4Encoder(path, (width, height), fps, comment=comment, crf=crf, audio=audio)
    if target.kind == "webp":
        return WebpEncoder(path, (width, height), fps, comment=comment)
    if target.kind == "gif":
        return GifEncoder(path, (width, height), fps, comment=comment)
    if target.kind == "frames":
        return PngEncoder(path, target.path.name, comment=comment)
    return PngEncoder(path.parent, path.name, comment=comment)


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
