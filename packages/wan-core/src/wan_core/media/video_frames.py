"""A decoded frame of a video as it is shown: its colours those of BT.709, over white, in its shape, upright."""

import functools
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from wan_core.media.colour import (
    DEFAULT_PEAK,
    PRIMARIES,
    REFERENCE_WHITE,
    TRANSFERS,
    UNSAID,
    Conversion,
    Description,
    conversion,
)
from wan_core.media.profiles import ToSRGB, by_profile

if TYPE_CHECKING:
    import av

# swscale flags: bicubic, exact rounding, full chroma. Its default is 4 dB further from the encoded colours.
_SWSCALE = 0x4 | 0x40000 | 0x2000
_WHITE = 255
_LARGEST_STRETCH = 4  # anamorphic video is stretched by 2 at most; a ratio beyond is a slip of some program
_INVISIBLE = 0.005
_DOLBY_TAGS = ("dvh1", "dvhe", "dva1", "dvav", "dav1")
# AVMasteringDisplayMetadata: three lights, white, least and largest luminance as fractions, which of them are given.
_MASTERING = struct.Struct("=16i 2i 2i 2i")
_MATRIX = struct.Struct("=9i")
# The orientation of 0 to 3 quarter turns, counterclockwise.
_TURNS = (False, False, False), (True, False, True), (False, True, True), (True, True, False)

# Whether colours are converted, whether there is alpha: swscale's format.
_TARGETS = {
    (False, False): "rgb24", (False, True): "rgba", (True, False): "rgb48le", (True, True): "rgba64le"
}  # fmt: skip


@dataclass(frozen=True)
class Look:
    """How the frames of a video become pixels: as swscale's ``target`` format of so many columns (``width``) by the
    ``matrix`` that swscale knows, then by ``convert`` or ``to_srgb``, then ``turned``, see :func:`orientation`."""

    target: str
    width: int
    height: int
    matrix: int | None
    convert: Conversion | None
    turned: tuple[bool, bool, bool]
    to_srgb: ToSRGB | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of a shown frame."""
        return (self.height, self.width) if self.turned[0] else (self.width, self.height)


def look_of(
    frame: "av.VideoFrame",
    ratio: Fraction | None = None,
    picture_profile: bytes | None = None,
    named: str = "the video",
) -> Look:
    """How a frame and those like it are shown; ``ratio`` is the width of a pixel by its height that the file says.

    An ICC profile, of the frame or of the ``picture_profile`` in PNG and JPEG files that are frames, counts before code
    points, but for HDR and in PNG. Raises ``MediaError`` for one that cannot be used.

    A reader asks this once and again when :func:`kind` changes, not for each frame: PyAV's side data keep a frame alive
    until the garbage is collected.
    """
    seen = description(frame)
    is_said = seen.is_hdr or (seen.is_rgb and not {seen.primaries, seen.transfer} <= {*UNSAID})
    profile = None if is_said else picture_profile or _side_data(frame, "ICC_PROFILE")
    convert = None
    if profile is None:
        convert = conversion(seen.gamut, seen.transfer, _peak(frame) if seen.is_hdr else DEFAULT_PEAK)
    return Look(
        target=_TARGETS[convert is not None, _has_alpha(frame.format.name)],
        width=max(1, round(frame.width * square_pixels(ratio))),
        height=frame.height,
        matrix=seen.swscale_matrix,
        convert=convert,
        turned=_turned(frame) if picture_profile is not None else orientation(frame),
        to_srgb=None if profile is None else by_profile(profile, "RGB", named),
    )


def kind(frame: "av.VideoFrame") -> tuple[object, ...]:
    """What frames have in common that have the same look."""
    return frame.format.name, frame.width, frame.height, frame.colorspace, frame.color_primaries, frame.color_trc


def pixels(frame: "av.VideoFrame", look: Look) -> Tensor:
    """[3, H, W] uint8: a frame as a player shows it.

    HDR is tone-mapped and any gamut becomes that of BT.709 (:mod:`wan_core.media.colour`), what is transparent lies
    over white, the width is that of square pixels, and the frame is turned and mirrored as its display matrix asks.
    """
    image: NDArray[Any] = frame.reformat(
        width=look.width,
        format=look.target,
        src_colorspace=look.matrix,
        # A named target makes every release of PyAV look at the colour matrix of the frame itself.
        dst_colorspace="DEFAULT",
        interpolation=_SWSCALE,
    ).to_ndarray()
    colours = image if look.convert is None else look.convert.apply(image[..., :3])
    if look.to_srgb is not None:
        colours = np.array(look.to_srgb(Image.fromarray(np.ascontiguousarray(image[..., :3]))))
    if image.shape[2] == 4:
        colours = _over_white(colours[..., :3], image[..., 3:])
    is_transposed, is_mirrored, is_flipped = look.turned
    turned = colours.transpose(1, 0, 2) if is_transposed else colours
    turned = turned[:: -1 if is_flipped else 1, :: -1 if is_mirrored else 1]
    return torch.from_numpy(np.ascontiguousarray(turned)).permute(2, 0, 1).contiguous()


def square_pixels(ratio: Fraction | None) -> float:
    """The width of a pixel by its height that a file says, 1 where it says none, nonsense or what nobody can see."""
    if not ratio or not 1 / _LARGEST_STRETCH <= ratio <= _LARGEST_STRETCH or abs(ratio - 1) < _INVISIBLE:
        return 1.0
    return float(ratio)


def description(frame: "av.VideoFrame") -> Description:
    """What the frame says about its colours."""
    return Description(
        matrix=int(frame.colorspace),
        primaries=int(frame.color_primaries),
        transfer=int(frame.color_trc),
        is_rgb=_is_rgb(frame.format.name),
        width=frame.width,
        height=frame.height,
    )


def refusal(frame: "av.VideoFrame", codec_tag: str = "") -> str | None:
    """Why the colours of a frame cannot be read as the file says them, or ``None``.

    ``codec_tag`` is the four letters by which an mp4 names its codec.
    """
    seen = description(frame)
    if (
        seen.lacks_matrix
        and seen.transfer in UNSAID
        and (codec_tag in _DOLBY_TAGS or _side_data(frame, "DOVI_METADATA") is not None)
    ):
        return "is Dolby Vision whose colours only a Dolby decoder knows (profile 5)"
    return seen.refusal()


def notes_on(frame: "av.VideoFrame", ratio: Fraction | None) -> Iterator[str]:
    """What a user should know about how a frame is read; ``ratio`` is what the file says of its pixels."""
    seen = description(frame)
    if ratio and not 1 / _LARGEST_STRETCH <= ratio <= _LARGEST_STRETCH:
        yield f"says that its pixels are {ratio.numerator}:{ratio.denominator}; that is ignored"
    if seen.is_hdr:
        yield f"is HDR ({TRANSFERS[seen.transfer].name}, {PRIMARIES[seen.gamut].name}); it is tone-mapped to BT.709"
    if seen.lacks_matrix:
        taken = {1: "BT.709", 5: "BT.601", 9: "BT.2020"}[seen.swscale_matrix or 1]
        yield f"does not say its colour matrix; {taken} is taken, as players do for {frame.width}x{frame.height}"


def orientation(frame: "av.VideoFrame") -> tuple[bool, bool, bool]:
    """What the display matrix asks for: rows and columns exchanged, then mirrored left-right, then top-bottom.

    An angle between two quarter turns becomes the nearer one. The matrix is that of ISO/IEC 14496-12, 8.4.2: a pixel
    (x, y) is shown at (a x + c y, b x + d y), y downwards; FFmpeg keeps a, b, u, c, d, v, x, y, w in 16.16 fixed point.
    """
    data = _side_data(frame, "DISPLAYMATRIX")
    if data is None or len(data) < _MATRIX.size:
        return _turned(frame)
    a, b, _, c, d, *_ = _MATRIX.unpack_from(data)
    if abs(b) + abs(c) > abs(a) + abs(d):
        return True, c < 0, b < 0
    return False, a < 0, d < 0


def _turned(frame: "av.VideoFrame") -> tuple[bool, bool, bool]:
    return _TURNS[round(frame.rotation / 90) % 4]


def _over_white(colours: NDArray[np.uint8], alpha: NDArray[np.unsignedinteger[Any]]) -> NDArray[np.uint8]:
    opaque = np.iinfo(alpha.dtype).max
    if (alpha == opaque).all():
        return colours
    opacity = alpha.astype(np.float32) / opaque
    return (_WHITE - (_WHITE - colours.astype(np.float32)) * opacity + 0.5).astype(np.uint8)


def _peak(frame: "av.VideoFrame") -> float:
    """The peak luminance in cd/m2 of the display that HDR was graded on, as the file says it or as is usual."""
    data = _side_data(frame, "MASTERING_DISPLAY_METADATA")
    if data is None or len(data) < _MASTERING.size:
        return DEFAULT_PEAK
    *_, numerator, denominator, _, has_luminance = _MASTERING.unpack_from(data)
    peak = numerator / denominator if has_luminance and denominator else 0.0
    return peak if REFERENCE_WHITE < peak <= 10_000 else DEFAULT_PEAK


def _side_data(frame: "av.VideoFrame", name: str) -> bytes | None:
    """Side data of a frame. PyAV trips over kinds that are newer than itself, as EXIF, and then gives none of them."""
    from av.sidedata.sidedata import Type

    try:
        side_data: Any = frame.side_data
        return bytes(side_data[Type[name]])
    except (KeyError, ValueError):
        return None


@functools.lru_cache
def _is_rgb(pixel_format: str) -> bool:
    from av.video.format import VideoFormat

    kind = VideoFormat(pixel_format)
    return kind.is_rgb or kind.has_palette or not any(each.is_chroma for each in kind.components)


@functools.lru_cache
def _has_alpha(pixel_format: str) -> bool:
    from av.video.format import VideoFormat

    kind = VideoFormat(pixel_format)
    return kind.has_palette or any(each.is_alpha for each in kind.components)
