"""Pixels, latent shapes and token counts: derived once, in one place."""

import math
import re
from dataclasses import dataclass
from typing import NamedTuple, Self

from wan_core.errors import RequestError


class FrameSize(NamedTuple):
    """An image size in pixels, in the order in which sizes are written: width, then height."""

    width: int
    height: int


@dataclass(frozen=True)
class LatentSpec:
    """How a VAE and a patch embedding divide a video: latent channels, strides (frames, pixels), patch (t, h, w)."""

    channels: int
    temporal_stride: int = 4
    spatial_stride: int = 8
    patch_size: tuple[int, int, int] = (1, 2, 2)

    @property
    def height_multiple(self) -> int:
        """Pixels of one token row."""
        return self.spatial_stride * self.patch_size[1]

    @property
    def width_multiple(self) -> int:
        """Pixels of one token column."""
        return self.spatial_stride * self.patch_size[2]


@dataclass(frozen=True)
class VideoGeometry:
    """One video's sizes: pixels as validated by ``for_video``, everything else follows from the spec."""

    spec: LatentSpec
    num_frames: int
    height: int
    width: int

    @classmethod
    def for_video(cls, spec: LatentSpec, num_frames: int, height: int, width: int) -> Self:
        """Check a video's sizes against ``spec``.

        Raises ``RequestError`` unless ``num_frames`` is temporal_stride*n + 1 and the sides (pixels) are positive
        multiples of the spatial stride times the patch; the message names the nearest values that work.
        """
        _check_frames(num_frames, spec.temporal_stride, spec.patch_size[0])
        _check_side("height", height, spec.height_multiple)
        _check_side("width", width, spec.width_multiple)
        return cls(spec, num_frames, height, width)

    @property
    def latent_frames(self) -> int:
        """Frames after the VAE."""
        return (self.num_frames - 1) // self.spec.temporal_stride + 1

    @property
    def latent_height(self) -> int:
        """Rows after the VAE."""
        return self.height // self.spec.spatial_stride

    @property
    def latent_width(self) -> int:
        """Columns after the VAE."""
        return self.width // self.spec.spatial_stride

    @property
    def token_grid(self) -> tuple[int, int, int]:
        """Tokens along (t, h, w)."""
        frames, rows, columns = self.spec.patch_size
        return self.latent_frames // frames, self.latent_height // rows, self.latent_width // columns

    @property
    def tokens_per_frame(self) -> int:
        """Tokens of one step of the token grid in time."""
        return self.token_grid[1] * self.token_grid[2]

    @property
    def num_tokens(self) -> int:
        """Length of the token sequence."""
        return math.prod(self.token_grid)

    @property
    def latent_shape(self) -> tuple[int, int, int, int]:
        """Shape [C, T, H, W] of one video's latents."""
        return self.spec.channels, self.latent_frames, self.latent_height, self.latent_width


def parse_size(text: str) -> FrameSize:
    """Read "1280*720" or "1280x704": width, then height, in pixels; anything else is a ``RequestError``."""
    match = re.fullmatch(r"\s*([0-9]{1,6})\s*[*xX]\s*([0-9]{1,6})\s*", text)
    size = FrameSize(int(match[1]), int(match[2])) if match else FrameSize(0, 0)
    if min(size) < 1:
        raise RequestError(f"a size is width*height in pixels, such as 1280*720 or 1280x704, got {text!r}")
    return size


def best_output_size(width: int, height: int, width_multiple: int, height_multiple: int, area: int) -> FrameSize:
    """The size of at most ``area`` pixels, in the given multiples, that bends the aspect of an image least.

    Two candidates: the width is rounded down first and the height fills the area, or the other way round; the second
    wins a tie. Raises ``RequestError`` when a side would vanish (an image far too elongated for the area).
    """
    _check_image(width, height, area)
    ratio = width / height
    ideal_width = math.sqrt(area * ratio)
    by_width = math.floor(ideal_width / width_multiple) * width_multiple
    by_height = math.floor(area / ideal_width / height_multiple) * height_multiple
    if min(by_width, by_height) > 0:
        first = FrameSize(by_width, math.floor(area / by_width / height_multiple) * height_multiple)
        second = FrameSize(math.floor(area / by_height / width_multiple) * width_multiple, by_height)
        if min(*first, *second) > 0:
            return first if _distortion(first, ratio) < _distortion(second, ratio) else second
    raise _no_size(width, height, width_multiple, height_multiple, area)


def centred_within(width: int, height: int, frame: FrameSize) -> tuple[FrameSize, int, int]:
    """The size of an image that just fits into a ``frame``, and the columns and rows in front of it: (size, left, top).

    This is Wan2.2 Animate's rule: sides and borders are cut to whole pixels. Raises ``RequestError`` for an image so
    long and narrow that a side would vanish.
    """
    if height / width > frame.height / frame.width:
        size = FrameSize(int(frame.height / height * width), frame.height)
    else:
        size = FrameSize(frame.width, int(frame.width / width * height))
    if min(size) < 1:
        raise RequestError(
            f"a picture of {width}x{height} is too long and narrow for {frame.width}x{frame.height}; crop it first"
        )
    return size, (frame.width - size.width) // 2, (frame.height - size.height) // 2


def padded_size_within(width: int, height: int, area: int, multiple: int = 64) -> FrameSize:
    """The size of an image scaled down as little as needed until, padded to multiples, it has at most ``area`` pixels.

    This is Wan2.2 S2V's rule: a hundred scales are tried, from the image's own size or from that of ``area`` down to
    where padding by ``multiple - 1`` fits (its quadratic has 2 in place of 4 below the root). Where none fits, both
    sides are rounded down. Raises ``RequestError`` when a side would vanish.
    """
    _check_image(width, height, area)
    pixels, most = width * height, multiple - 1
    smallest, largest = 0.1, 1.0
    if pixels > area:
        b, c = most * (width + height), most * most - area
        smallest = (math.sqrt(max(0, b * b - 2 * pixels * c)) - b) / (2 * pixels)
        largest = math.sqrt(area / pixels)
    for step in range(100):
        scale = largest - (largest - smallest) * step / 100
        size = FrameSize(*(-(-int(side * scale) // multiple) * multiple for side in (width, height)))
        if math.prod(size) <= area:
            break
    else:
        size = FrameSize(
            int(math.sqrt(area * width / height) // multiple * multiple),
            int(math.sqrt(area * height / width) // multiple * multiple),
        )
        if size.width >= width or size.height >= height:
            size = FrameSize(width // multiple * multiple, height // multiple * multiple)
    if min(size) < 1:
        raise _no_size(width, height, multiple, multiple, area)
    return size


def latent_grid_for_area(height: int, width: int, area: int, spec: LatentSpec) -> tuple[int, int]:
    """Latent (height, width) of about ``area`` pixels with the aspect of an image, in whole patches (i2v-A14B).

    Raises ``RequestError`` when a side would vanish.
    """
    _check_image(width, height, area)
    ratio = height / width
    rows = _whole_patches(math.sqrt(area * ratio), spec.spatial_stride, spec.patch_size[1])
    columns = _whole_patches(math.sqrt(area / ratio), spec.spatial_stride, spec.patch_size[2])
    if min(rows, columns) < 1:
        raise _no_size(width, height, spec.width_multiple, spec.height_multiple, area)
    return rows, columns


def _no_size(width: int, height: int, width_multiple: int, height_multiple: int, area: int) -> RequestError:
    return RequestError(
        f"a {width}x{height} picture has no size within {area} pixels in multiples of "
        f"{width_multiple}x{height_multiple}; crop it to a less extreme shape or ask for a larger size"
    )


def _whole_patches(pixels: float, stride: int, patch: int) -> int:
    return math.floor(pixels / stride) // patch * patch


def _distortion(size: FrameSize, ratio: float) -> float:
    own = size.width / size.height
    return max(ratio / own, own / ratio)


def _check_image(width: int, height: int, area: int) -> None:
    if min(width, height, area) < 1:
        raise RequestError(f"a picture and its area must not be empty, got {width}x{height} and {area} pixels")


def _check_frames(num_frames: int, stride: int, patch: int) -> None:
    if num_frames < 1:
        raise RequestError(f"num_frames must be at least 1, got {num_frames}")
    period = stride * patch
    remainder = (num_frames - 1 - stride * (patch - 1)) % period
    if remainder:
        offset = f"{period}n+{stride * (patch - 1) + 1}"
        below, above = num_frames - remainder, num_frames - remainder + period
        nearest = f"nearest are {below} and {above}" if below > 0 else f"the smallest is {above}"
        raise RequestError(f"num_frames must be {offset}, got {num_frames}; {nearest}")


def _check_side(name: str, pixels: int, multiple: int) -> None:
    if pixels < multiple:
        raise RequestError(f"{name} must be at least {multiple} pixels, got {pixels}")
    remainder = pixels % multiple
    if remainder:
        below = pixels - remainder
        raise RequestError(
            f"{name} must be a multiple of {multiple}, got {pixels}; nearest are {below} and {below + multiple}"
        )
