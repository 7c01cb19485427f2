"""Images: read any usual file as plain RGB, fit it to a size, and turn it into a tensor and back.

Resizing follows what the released Wan models were trained and run with, so that results match number by number.
"""

from __future__ import annotations

import contextlib
import os
import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageOps, TiffImagePlugin, UnidentifiedImageError

from wan_core.errors import MediaError, RequestError
from wan_core.files import DECODE_ERRORS, existing_file, plain_text, read_error
from wan_core.media.geometry import FrameSize, centred_within
from wan_core.media.profiles import ToSRGB, colours_of

if TYPE_CHECKING:
    from torch import Tensor

MAX_PIXELS = 100_000_000
"""Largest image that is decoded, in pixels: 300 MB of RGB."""

# Raster formats only: a decoder that runs another program, as that of EPS does, has no place here.
_FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "GIF", "TIFF", "BMP", "PPM", "AVIF", "JPEG2000", "HEIF")
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")  # ISO/IEC 23008-12
_MAX_ASPECT_CHANGE = 64
_WHITE_IS_ZERO = 0  # TIFF 6.0, PhotometricInterpretation
_GREY_STEPS = {"L;2": 85, "L;4": 17}  # Pillow's names of PNG's grey of 2 and 4 bits, which it stretches to 8


def load_image(path: str | os.PathLike[str], *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The image of a file as upright RGB: EXIF orientation applied, alpha over white, first frame of animations.

    The number of pixels is read from the header and checked before anything is decoded. Raises ``RequestError`` when
    the file does not exist or is none, ``MediaError`` when it is no image, damaged, cut off or too large.
    """
    return load_cutout(path, max_pixels=max_pixels)[0]


def load_cutout(
    path: str | os.PathLike[str], *, max_pixels: int = MAX_PIXELS
) -> tuple[Image.Image, Image.Image | None]:
    """An image as `load_image` gives it, and its alpha (``L``); None where the file has none. Raises as that does."""
    file = existing_file(path, "image")
    shown = plain_text(file)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(file, formats=_available_formats()) as image:
                if image.width * image.height > max_pixels:
                    raise _too_large(shown, f"{image.width}x{image.height}", max_pixels)
                _scale_key(image)
                image.load()
                with contextlib.suppress(*DECODE_ERRORS):  # a broken EXIF block only loses the orientation
                    ImageOps.exif_transpose(image, in_place=True)
                alpha = image.convert("RGBA").getchannel("A") if image.has_transparency_data else None
                return to_rgb(image, colours_of(image, file)), alpha
    except UnidentifiedImageError as error:
        if _is_heif(file) and "HEIF" not in Image.OPEN:
            raise MediaError(
                f"{shown} is a HEIC image; install the extra wan-core[heif], or save it as JPEG"
            ) from error
        raise MediaError(f"{shown} is no picture that can be read here; save it as PNG, JPEG or WebP") from error
    except Image.DecompressionBombError as error:
        count = re.search(r"\d+", str(error))
        raise _too_large(shown, count[0] if count else "too many", max_pixels) from error
    except DECODE_ERRORS as error:
        raise read_error(file, "image", error) from error


def _available_formats() -> list[str]:
    Image.init()
    with contextlib.suppress(ImportError):
        import pillow_heif

        pillow_heif.register_heif_opener()
    return [name for name in _FORMATS if name in Image.OPEN]


def _is_heif(file: Path) -> bool:
    with file.open("rb") as opened:
        head = opened.read(12)
    return head[4:8] == b"ftyp" and head[8:] in _HEIF_BRANDS


def _too_large(shown: str, size: str, max_pixels: int) -> MediaError:
    return MediaError(
        f"{shown} has {size} pixels; at most {max_pixels / 1e6:g} million are read, so scale it down first"
    )


def to_rgb(image: Image.Image, to_srgb: ToSRGB | None = None) -> Image.Image:
    """An image of any mode as RGB; transparent parts lie over white, deep greyscale is scaled to 8 bits.

    ``I;16`` and ``I`` count as 0..65535 and ``F`` as 0..1; values outside are stretched from their own minimum to
    their own maximum. ``to_srgb`` is applied to the colours alone. Raises ``ValueError`` for a mode that Pillow cannot
    convert.
    """
    to_srgb = to_srgb or _as_rgb
    if image.mode in {"I", "F"} or image.mode.startswith("I;"):
        return _over_white(to_srgb(_deep_grey(image)), _unlike(image))
    if image.mode == "La":
        image = image.convert("LA")
    if image.has_transparency_data:
        layered = image.convert("RGBA")
        alpha = layered.getchannel("A")
        return _over_white(to_srgb(layered.convert("RGB")), alpha)
    rgb = to_srgb(image)
    return rgb.copy() if rgb is image else rgb


def _over_white(colours: Image.Image, alpha: Image.Image | None) -> Image.Image:
    if alpha is None:
        return colours.convert("RGB")
    layered = colours.convert("RGB")
    layered.putalpha(alpha)
    return Image.alpha_composite(Image.new("RGBA", layered.size, "white"), layered).convert("RGB")


def _unlike(image: Image.Image) -> Image.Image | None:
    """The opacity of deep grey of which one level (PNG's tRNS) is transparent."""
    key = image.info.get("transparency")
    if not isinstance(key, int):
        return None
    return Image.fromarray(np.where(np.asarray(image.convert("I")) == key, 0, 255).astype(np.uint8))


def _scale_key(image: Image.Image) -> None:
    """Make PNG's transparent colour one of the values that Pillow gives: it leaves the key in the file's own depth.

    Of 16-bit RGB both are cut to their upper bytes.
    """
    key, tiles = image.info.get("transparency"), getattr(image, "tile", ())
    if image.format != "PNG" or key is None or not tiles:
        return
    stored = tiles[0].args
    if isinstance(key, int) and stored in _GREY_STEPS:
        image.info["transparency"] = key * _GREY_STEPS[stored]
    elif isinstance(key, tuple) and stored == "RGB;16B":
        image.info["transparency"] = tuple(each >> 8 for each in key)


def _as_rgb(image: Image.Image) -> Image.Image:
    return image.convert("RGB")


def _deep_grey(image: Image.Image) -> Image.Image:
    values = np.asarray(image if image.mode == "F" else image.convert("I"), dtype=np.float64)
    values = np.nan_to_num(values, nan=0.0, posinf=1.0, neginf=0.0)
    tags = getattr(image, "tag_v2", {})  # of a TIFF file, whose numbers Pillow gives as they are stored
    bits = min(16, *tags.get(TiffImagePlugin.BITSPERSAMPLE, (16,)))
    low, high = 0.0, 1.0 if image.mode == "F" else float((1 << bits) - 1)
    if values.min() < low or values.max() > high:
        low, high = float(values.min()), float(values.max())
    grey = np.round((values - low) * (255 / max(high - low, 1e-30))).astype(np.uint8)
    return Image.fromarray(
        255 - grey if tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == _WHITE_IS_ZERO else grey
    )


def image_to_tensor(image: Image.Image) -> Tensor:
    """An image as [3, H, W] float32 in [-1, 1]."""
    import torch

    rgb = image if image.mode == "RGB" else to_rgb(image)
    pixels = torch.from_numpy(np.array(rgb)).permute(2, 0, 1).contiguous()
    return pixels.float().div(255).sub(0.5).div(0.5)


def to_uint8(pixels: Tensor) -> Tensor:
    """Values in [-1, 1] of any shape as bytes: rounded to the nearest of 256 levels, clamped."""
    import torch

    return pixels.float().add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8)


def tensor_to_image(frame: Tensor) -> Image.Image:
    """A frame [3, H, W] (float in [-1, 1], or uint8) as an RGB image. Raises ``ValueError`` for another shape."""
    import torch

    if frame.ndim != 3 or frame.shape[0] != 3:
        raise ValueError(f"a frame is [3, H, W], got {list(frame.shape)}")
    pixels = frame if frame.dtype == torch.uint8 else to_uint8(frame)
    return Image.fromarray(pixels.permute(1, 2, 0).contiguous().cpu().numpy())


def resize_by_rows(
    image: Image.Image, size: tuple[int, int], resampling: Image.Resampling = Image.Resampling.BICUBIC
) -> Image.Image:
    """An image, RGB, at a size (width, height): along its rows first, then along its columns.

    Pillow rounds in between, and its later releases choose the order; models were trained with this one.
    """
    rows = image.convert("RGB").resize((size[0], image.height), resampling)
    return rows.resize(size, resampling)


def fit_cover(image: Image.Image, width: int, height: int) -> Image.Image:
    """Scale an image until it covers ``width`` x ``height``, then cut out the centre.

    Lanczos filter, sides rounded, crop offsets floored, as the reference of ti2v-5B does. Raises ``RequestError`` for a
    image so long and narrow that hardly any of it would be seen.
    """
    rgb = image if image.mode == "RGB" else to_rgb(image)
    scales = width / rgb.width, height / rgb.height
    scale = max(scales)
    if scale > _MAX_ASPECT_CHANGE * min(scales):
        raise RequestError(
            f"a picture of {rgb.width}x{rgb.height} is too long and narrow for {width}x{height}; crop it first"
        )
    resized = rgb.resize((round(rgb.width * scale), round(rgb.height * scale)), Image.Resampling.LANCZOS)
    left, top = (resized.width - width) // 2, (resized.height - height) // 2
    return resized.crop((left, top, left + width, top + height))


def fit_short_side(image: Image.Image, width: int, height: int) -> Image.Image:
    """Scale an image until its short side is that of ``width`` x ``height``, then cut out the centre.

    Bilinear with antialiasing, as the reference of s2v-14B does; where the long side falls short of the size, black is
    around it.
    """
    rgb = image if image.mode == "RGB" else to_rgb(image)
    size, left, top = _on_short_side(rgb.width, rgb.height, width, height)
    return rgb.resize(size, Image.Resampling.BILINEAR).crop((left, top, left + width, top + height))


def fit_padded(image: Image.Image, width: int, height: int) -> Image.Image:
    """Scale an image until it just fits into ``width`` x ``height``, its middle in the middle of black.

    Bilinear without antialiasing, as the reference of animate-14B is, by `centred_within`; without OpenCV, whose
    levels are at most one away. Raises ``RequestError`` for an image so long and narrow that a side would vanish.
    """
    import torch
    from torch.nn import functional

    rgb = image if image.mode == "RGB" else to_rgb(image)
    size, left, top = centred_within(rgb.width, rgb.height, FrameSize(width, height))
    pixels = torch.from_numpy(np.array(rgb)).permute(2, 0, 1)[None].float()
    scaled = functional.interpolate(pixels, size=size[::-1], mode="bilinear", align_corners=False)[0]
    canvas = Image.new("RGB", (width, height))
    canvas.paste(tensor_to_image(scaled.round().to(torch.uint8)), (left, top))
    return canvas


def fit_frame(pixels: Tensor, width: int, height: int) -> Tensor:
    """A frame [3, H, W] as `fit_short_side` fits an image; zero is around it where it falls short."""
    from torch.nn import functional

    size, left, top = _on_short_side(pixels.shape[2], pixels.shape[1], width, height)
    if size != (pixels.shape[2], pixels.shape[1]):
        pixels = functional.interpolate(pixels[None], size=size[::-1], mode="bilinear", antialias=True)[0]
    return functional.pad(pixels, (-left, left + width - size[0], -top, top + height - size[1]))


def _on_short_side(columns: int, rows: int, width: int, height: int) -> tuple[tuple[int, int], int, int]:
    """The (width, height) to scale to, and where the cut begins; negative where something must be around it."""
    short = min(width, height)
    size = int(short * columns / min(rows, columns)), int(short * rows / min(rows, columns))
    left, top = (
        round((side - wanted) / 2) if side >= wanted else -((wanted - side) // 2)
        for side, wanted in zip(size, (width, height), strict=True)
    )
    return size, left, top


def stretch_bicubic(pixels: Tensor, height: int, width: int) -> Tensor:
    """Resize [3, H, W] or [B, 3, H, W] to exactly ``height`` x ``width``, whatever that does to the aspect ratio.

    Bicubic without antialiasing, as the reference of i2v does; values can overshoot [-1, 1] slightly.
    """
    from torch.nn import functional

    batch = pixels if pixels.ndim == 4 else pixels.unsqueeze(0)
    resized = functional.interpolate(batch, size=(height, width), mode="bicubic", align_corners=False)
    return resized if pixels.ndim == 4 else resized[0]
