"""Smooth test clips and comparisons that the media tests share."""

from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wan_core.media import to_uint8

PATCH = (200, 60, 40)
"""A colour that shows what is wrong: red, green and blue differ, none is at an end."""


def smooth_clip(num_frames: int = 12, height: int = 48, width: int = 64) -> Tensor:
    """Slowly moving colour waves [3, T, H, W] in [-0.9, 0.9]."""
    y, x = torch.meshgrid(torch.arange(height) * 1.0, torch.arange(width) * 1.0, indexing="ij")
    frames = [
        torch.stack([torch.sin((x + 2 * t) / 20), torch.cos((y - t) / 15), torch.sin((x + y) / 30 + t / 8)])
        for t in range(num_frames)
    ]
    return torch.stack(frames, dim=1) * 0.9


def levels_clip(num_frames: int, height: int = 32, width: int = 32) -> Tensor:
    """Frame t is one grey, 8 levels brighter than the one before: tells which frame is which. [3, T, H, W]."""
    levels = (16 + 8 * torch.arange(num_frames)).clamp(max=255) / 127.5 - 1
    return levels.view(1, -1, 1, 1).expand(3, num_frames, height, width)


def levels_of(frames: Tensor) -> list[int]:
    """The indices that :func:`levels_clip` put into uint8 frames [T, 3, H, W]."""
    return [round((float(frame.float().mean()) - 16) / 8) for frame in frames]


def psnr(found: Tensor, expected: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of values in [-1, 1]."""
    return float(-10 * torch.log10((found - expected).square().mean() / 4))


def files_below(folder: Path) -> list[str]:
    """Every name below a folder, folders too."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def encode_frames(
    path: Path, frames: Sequence[av.VideoFrame], codec: str, *, tags: Mapping[str, object] | None = None, **options: str
) -> Path:
    """Frames as they are, in whatever container the ending says, ten per second.

    ``tags`` are attributes of the encoder (``color_trc``, ``sample_aspect_ratio``, ...), ``alpha_mode`` one of the
    stream's metadata.
    """
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=10, options=options)
        stream.width, stream.height, stream.pix_fmt = frames[0].width, frames[0].height, frames[0].format.name
        for name, value in (tags or {}).items():
            if name == "alpha_mode":
                stream.metadata[name] = str(value)
            else:
                setattr(stream.codec_context, name, value)
        for index, frame in enumerate(frames):
            for name in {"colorspace", "color_primaries", "color_trc", "color_range"} & set(tags or {}):
                setattr(frame, name, tags[name])  # ProRes takes them from here
            frame.pts, frame.time_base = index, Fraction(1, 10)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def flat_frame(
    codes: Sequence[float], pixel_format: str, matrix: int = 1, *, size: tuple[int, int] = (64, 64), full: bool = False
) -> av.VideoFrame:
    """A frame of one colour, R, G, B (and alpha) in [0, 1], in any pixel format by swscale's ``matrix``."""
    values = np.round(np.array(codes) * 65535).astype(np.uint16)
    image = np.ascontiguousarray(np.broadcast_to(values, (size[1], size[0], len(codes))))
    frame = av.VideoFrame.from_ndarray(image, format="rgb48le" if len(codes) == 3 else "rgba64le")
    return frame.reformat(
        format=pixel_format, dst_colorspace=matrix, dst_color_range=2 if full else 1, interpolation=0x4 | 0x40000
    )


def rgb_frame(image: NDArray[np.uint8], pixel_format: str = "yuv420p") -> av.VideoFrame:
    """An image [H, W, 3] in a pixel format, by the matrix of BT.709."""
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
    return frame.reformat(format=pixel_format, dst_colorspace=1, interpolation=0x4 | 0x40000)


def clip_frames(clip: Tensor) -> list[av.VideoFrame]:
    """The frames of a clip [3, T, H, W] in [-1, 1] in yuv420p."""
    return [rgb_frame(image) for image in to_uint8(clip).permute(1, 2, 3, 0).numpy()]


def centre(frames: Tensor) -> list[int]:
    """R, G, B in the middle of the first of uint8 frames [T, 3, H, W]."""
    return [int(value) for value in frames[0, :, frames.shape[2] // 2, frames.shape[3] // 2]]
