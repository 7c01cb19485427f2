"""What an image file says about its colours, and the way from there to sRGB.

A file says it by code points of ITU-T H.273 (PNG's cICP chunk, the nclx box of AVIF and HEIC), by an ICC profile, by
PNG's sRGB, gAMA and cHRM chunks, or by the EXIF marks of a camera set to Adobe RGB. What is not said is sRGB.
"""

import functools
import io
import struct
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import ExifTags, Image, ImageCms

from wan_core.errors import MediaError
from wan_core.files import plain_text
from wan_core.media.colour import BT709, UNSAID, Conversion, Description, Primaries, conversion, conversion_from, power

ToSRGB = Callable[[Image.Image], Image.Image]
"""From an image without alpha, of any mode with 8 bits, to RGB."""

_MODES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK", "Lab": "LAB"}
_DAMAGED = (OSError, ValueError, TypeError, ImageCms.PyCMSError)
_ROWS = 256
_ALMOST = 0.05  # libpng, too, takes a gamma this near for the screen's
_NEAR = 0.002  # chromaticities are stored, and often rounded, to 3 digits
ADOBE_RGB = Primaries("Adobe RGB (1998)", ((0.64, 0.33), (0.21, 0.71), (0.15, 0.06)), BT709.white)
_ADOBE_GAMMA = 563 / 256  # Adobe RGB (1998) Color Image Encoding, 4.3.1.2
_SRGB_GAMMA = 1 / 2.2
_UNCALIBRATED, _ADOBE_MARK = 0xFFFF, "R03"  # DCF 2.0: colour space and interoperability index of Adobe RGB
_ADOBE_SPACE = 2  # what some cameras write in place of the two
_JP2_SPACES = (16, 17, 18)  # sRGB, grey and sYCC, which the decoder makes RGB
_BMP_HEADER, _BMP_V5 = 14, 124  # bytes
_MAX_PROFILE, _MAX_BOXES = 1 << 24, 1000
_UNSPECIFIED, _SRGB_TRANSFER = 2, 13  # H.273
_MAX_HEAD = 1 << 20  # bytes of an AVIF file that are searched


def colours_of(image: Image.Image, file: Path) -> ToSRGB | None:
    """The way from the colours of an opened image to sRGB, ``None`` where they are that already, or nothing is said.

    The first description counts, in the order of the PNG specification (third edition, 4.3): cICP, ICC profile, sRGB,
    gAMA with cHRM; in AVIF and HEIC an ICC profile comes before code points. Raises ``MediaError`` for a description
    that is damaged, belongs to another kind of image or names what is unknown here.
    """
    info, shown = image.info, plain_text(file)
    points = _code_points(image, file)
    if points is not None and (image.format == "PNG" or "icc_profile" not in info):
        return _by_code_points(points, shown)
    if "icc_profile" in info:
        return by_profile(info["icc_profile"], image.mode, shown)
    if image.format == "JPEG2000":
        return _of_jp2(image, file)
    if image.format == "BMP":
        profile = _bmp_profile(file)
        return None if profile is None else by_profile(profile, image.mode, shown)
    if "srgb" in info:
        return None
    if "gamma" in info or "chromaticity" in info:
        return _by_gamma(info.get("gamma"), info.get("chromaticity"), shown)
    return _applied(conversion_from(ADOBE_RGB, power(_ADOBE_GAMMA))) if _is_adobe_rgb(image) else None


# -- ICC profiles


def by_profile(data: bytes | None, mode: str, shown: str) -> ToSRGB | None:
    """The way from the colours of an ICC profile to sRGB, ``None`` where they are that already.

    ``mode`` is Pillow's mode of the image, ``shown`` its name. Raises ``MediaError`` for a profile that is damaged or
    of another kind of image.
    """
    try:
        profile, srgb = ImageCms.ImageCmsProfile(io.BytesIO(data or b"")), ImageCms.createProfile("sRGB")
        space = profile.profile.xcolor_space.strip()
        wanted = _MODES.get(space, "")
        transform: Any = wanted and ImageCms.buildTransform(profile, srgb, wanted, "RGB")
    except _DAMAGED as error:
        raise MediaError(f"the colour profile of {shown} is damaged; save the image again as sRGB") from error
    if wanted not in ([mode] if mode in {"CMYK", "LAB"} else ["RGB", "L"]):
        raise MediaError(f"{shown} is {mode}, its colour profile is for {space}; save the image again as sRGB")
    if wanted == "RGB" and _changes_nothing(transform):
        return None

    def to_srgb(image: Image.Image) -> Image.Image:
        if wanted == "L" and not _is_grey(image):
            raise MediaError(f"{shown} has colours, its colour profile is for grey; save the image again as sRGB")
        done: Image.Image = transform.apply(image if image.mode == wanted else image.convert(wanted))
        return done

    return to_srgb


def _changes_nothing(transform: Any) -> bool:
    """Whether a profile is sRGB, or as good as: many are, by many names. Pixels stay exact then."""
    levels = np.arange(0, 256, 15, dtype=np.uint8)
    cube = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(1, -1, 3)
    found = np.asarray(transform.apply(Image.fromarray(cube)))
    return bool(np.abs(found.astype(int) - cube).max() <= 1)


def _is_grey(image: Image.Image) -> bool:
    if image.mode in {"L", "1"}:
        return True
    red, green, blue = (np.asarray(band) for band in image.convert("RGB").split())
    return bool((red == green).all() and (green == blue).all())


# -- JPEG 2000


def _of_jp2(image: Image.Image, file: Path) -> ToSRGB | None:
    """By the first ``colr`` box that is understood (ISO/IEC 15444-1, I.5.3.3); a bare code stream says nothing."""
    shown = plain_text(file)
    spaces: list[int] = []
    for box in _colour_boxes(file):
        method, number = box[:1], int.from_bytes(box[3:7], "big")
        if method in {b"\2", b"\3"}:
            return by_profile(box[3:], "RGB" if image.mode in {"LA", "RGBA"} else image.mode, shown)
        if method == b"\1" and number in _JP2_SPACES:
            return None
        if method == b"\5" and len(box) >= 10:  # code points; the matrix is the decoder's matter
            primaries, transfer, _, is_full = struct.unpack_from(">HHHB", box, 3)
            return _by_code_points((primaries, transfer, is_full >= 0x80), shown)
        spaces += [number] * (method == b"\1")
    if spaces:
        raise MediaError(f"{shown} is in colour space number {spaces[0]} of JPEG 2000; save the image again as sRGB")
    return None


def _colour_boxes(file: Path) -> Iterator[bytes]:
    with file.open("rb") as opened:
        for start, end in _boxes(opened, b"jp2h", 0, opened.seek(0, io.SEEK_END)):
            for first, last in _boxes(opened, b"colr", start, end):
                opened.seek(first)
                yield opened.read(min(max(0, last - first), _MAX_PROFILE))


def _boxes(opened: BinaryIO, name: bytes, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Begins and ends of the contents of boxes of a name, among the first `_MAX_BOXES`."""
    for _ in range(_MAX_BOXES):
        opened.seek(start)
        head = opened.read(16)
        size, first = int.from_bytes(head[:4], "big"), start + 8
        if size == 1:
            size, first = int.from_bytes(head[8:], "big"), start + 16
        stop = min(end, start + size) if size else end
        if head[4:8] == name and start < end:
            yield first, stop
        start = max(stop, first)
        if start + 8 > end:
            return


# -- BMP


def _bmp_profile(file: Path) -> bytes | None:
    """The ICC profile in a BMP file of version 5 (BITMAPV5HEADER). Raises ``MediaError`` for one in another file."""
    with file.open("rb") as opened:
        opened.seek(_BMP_HEADER)
        header = opened.read(_BMP_V5)
        kind = header[56:60] if int.from_bytes(header[:4], "little") == len(header) == _BMP_V5 else b""
        if kind == b"KNIL":  # the letters of both stand in this order
            raise MediaError(
                f"the colour profile of {plain_text(file)} is in another file; save the image again as sRGB"
            )
        if kind != b"DEBM":
            return None
        start, length = struct.unpack_from("<II", header, 112)
        opened.seek(_BMP_HEADER + start)
        return opened.read(min(length, _MAX_PROFILE))


# -- code points


def _code_points(image: Image.Image, file: Path) -> tuple[int, int, bool] | None:
    """Primaries, transfer characteristic and whether black is 0, of H.273; ``None`` where a file does not say."""
    if image.format == "PNG":
        return _of_png(_cicp(file), file)
    if image.format == "HEIF" and image.info.get("nclx_profile"):
        nclx = image.info["nclx_profile"]
        return nclx["color_primaries"], nclx["transfer_characteristics"], True
    if image.format == "AVIF":
        with file.open("rb") as opened:
            _, mark, rest = opened.read(_MAX_HEAD).partition(b"colrnclx")
        return (*struct.unpack(">HH", rest[:4]), True) if mark and len(rest) >= 4 else None
    return None


def _of_png(data: bytes | None, file: Path) -> tuple[int, int, bool] | None:
    """A cICP chunk; one that says neither primaries nor transfer characteristic leaves it to the other chunks."""
    if data is None:
        return None
    if len(data) != 4:
        raise MediaError(f"the cICP chunk of {plain_text(file)} is damaged; save the image again as sRGB")
    primaries, transfer, _, is_full = data
    return None if primaries == transfer == _UNSPECIFIED and is_full else (primaries, transfer, bool(is_full))


def _cicp(file: Path) -> bytes | None:
    """The cICP chunk of a PNG, before its pixels; other chunks are skipped, however long they are."""
    with file.open("rb") as opened:
        opened.seek(8)
        while len(head := opened.read(8)) == 8 and head[4:] != b"IDAT":
            length = int.from_bytes(head[:4], "big")
            if head[4:] == b"cICP":
                return opened.read(min(length, _MAX_HEAD))
            opened.seek(length + 4, io.SEEK_CUR)
    return None


def _by_code_points(points: tuple[int, int, bool], shown: str) -> ToSRGB | None:
    primaries, transfer, is_full = points
    refusal = Description(0, primaries, transfer, is_rgb=True, width=0, height=0).refusal()
    if refusal is not None:
        raise MediaError(f"{shown} {refusal}, which is not read; save the image again as sRGB")
    found = conversion(primaries, _SRGB_TRANSFER if transfer in UNSAID else transfer)
    if found is None:
        return None if is_full else _widened
    return _applied(found) if is_full else lambda image: _applied(found)(_widened(image))


def _widened(image: Image.Image) -> Image.Image:
    """Levels 16 to 235 as 0 to 255."""
    return image.convert("RGB").point([min(255, max(0, round((level - 16) * 255 / 219))) for level in range(256)] * 3)


# -- PNG's gAMA and cHRM, EXIF


def _by_gamma(gamma: float | None, chromaticity: tuple[float, ...] | None, shown: str) -> ToSRGB | None:
    """By PNG's image gamma (the exponent that made code values of light) and the x, y of white, red, green and blue.

    Without a gamma the curve is that of sRGB.
    """
    lights = BT709
    if chromaticity is not None:
        white, *pairs = [(chromaticity[place], chromaticity[place + 1]) for place in range(0, 8, 2)]
        lights = Primaries("cHRM", tuple(pairs), white)
    try:
        is_bt709 = np.allclose([*lights.lights, lights.white], [*BT709.lights, BT709.white], atol=_NEAR)
        if is_bt709 and (gamma is None or abs(gamma / _SRGB_GAMMA - 1) <= _ALMOST):
            return None
        curve = None if gamma is None else power(1 / gamma)
        return _applied(conversion_from(BT709 if is_bt709 else lights, curve))
    except (ZeroDivisionError, np.linalg.LinAlgError) as error:
        raise MediaError(f"the gAMA or cHRM chunk of {shown} is damaged; save the image again as sRGB") from error


def _is_adobe_rgb(image: Image.Image) -> bool:
    with suppress(Exception):  # a broken EXIF block says nothing
        exif = image.getexif()
        space = exif.get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.ColorSpace)
        index = exif.get_ifd(ExifTags.IFD.Interop).get(ExifTags.Interop.InteropIndex)
        return space == _ADOBE_SPACE or (space == _UNCALIBRATED and str(index).startswith(_ADOBE_MARK))
    return False


def _applied(found: Conversion) -> ToSRGB:
    return functools.partial(_convert, found)


def _convert(found: Conversion, image: Image.Image) -> Image.Image:
    codes = np.asarray(image.convert("RGB"))
    done = np.empty_like(codes)
    for row in range(0, len(codes), _ROWS):
        done[row : row + _ROWS] = found.apply(codes[row : row + _ROWS].astype(np.uint16) * 257)
    return Image.fromarray(done)
