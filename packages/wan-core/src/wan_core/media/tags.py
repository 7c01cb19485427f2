"""One text inside a finished file: an mp4 comment, a PNG text chunk, a GIF comment, a WebP image description, an array.

The text is ASCII (JSON with escapes), so no file kind's own character set matters.
"""

import io
import os
import struct
import zipfile
from pathlib import Path

from PIL import Image
from PIL.ExifTags import Base
from PIL.PngImagePlugin import PngImageFile

from wan_core.files import DECODE_ERRORS, read_error
from wan_core.media.containers import open_container

PNG_KEY = "wan-core"
MAX_TEXT = 4_000_000
"""Longest text that is read back, in characters; a file from somewhere else may hold anything."""

_RIFF_HEADER = 12
_VP8X = b"VP8X"
_EXIF_FLAG = 0x08
_ZIP_START = b"PK"
_ARRAY = "provenance.npy"
_IMAGE_STARTS = (b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"RIFF", b"\xff\xd8\xff")


def gif_comment(text: str | None) -> bytes:
    """A GIF comment extension: sub-blocks of at most 255 bytes. Empty for no text."""
    if text is None:
        return b""
    data = text.encode("ascii")
    blocks = (data[start : start + 255] for start in range(0, len(data), 255))
    return b"!\xfe" + b"".join(bytes([len(block)]) + block for block in blocks) + b"\0"


def exif_description(text: str) -> bytes:
    """An EXIF block whose image description is the text."""
    exif = Image.Exif()
    exif[Base.ImageDescription] = text
    return exif.tobytes()


def add_webp_description(path: Path, size: tuple[int, int], text: str | None) -> None:
    """Append an EXIF chunk to a finished WebP file, in place. ``size`` is width and height.

    Raises ``OSError`` when the file is not whole.
    """
    with path.open("r+b") as file:
        header = file.read(_RIFF_HEADER)
        length = file.seek(0, os.SEEK_END)
        if header[:4] != b"RIFF" or header[8:] != b"WEBP" or struct.unpack("<I", header[4:8])[0] + 8 != length:
            raise OSError("the WebP file is not whole")
        if text is None:
            return
        file.seek(_RIFF_HEADER)
        chunks = file.read()
        if not chunks.startswith(_VP8X):
            flags = struct.pack("<I", 0) + _uint24(size[0] - 1) + _uint24(size[1] - 1)
            chunks = _VP8X + struct.pack("<I", len(flags)) + flags + chunks
        exif = exif_description(text).removeprefix(b"Exif\0\0")
        flagged = chunks[:8] + bytes([chunks[8] | _EXIF_FLAG]) + chunks[9:]
        body = flagged + b"EXIF" + struct.pack("<I", len(exif)) + exif + b"\0" * (len(exif) % 2)
        file.seek(0)
        file.write(b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body)


def _uint24(value: int) -> bytes:
    return struct.pack("<I", value)[:3]


def webp_durations(path: Path) -> list[int]:
    """How long an animated WebP shows each frame, in milliseconds; empty for any other file.

    Where all durations are 0 they are 100, as browsers show them. Raises ``MediaError``.
    """
    durations: list[int] = []
    try:
        with path.open("rb") as file:
            header = file.read(_RIFF_HEADER)
            while header[:4] + header[8:] == b"RIFFWEBP" and len(chunk := file.read(8)) == 8:
                begin, size = file.tell(), struct.unpack("<I", chunk[4:])[0]
                if chunk[:4] == b"ANMF":
                    durations.append(int.from_bytes(file.read(16)[12:15], "little"))
                file.seek(begin + size + size % 2)
    except OSError as error:
        raise read_error(path, "video", error) from error
    return durations if any(durations) else [100] * len(durations)


def read_text(path: Path) -> str | None:
    """The text of a file that :mod:`wan_core.media` wrote, or ``None``. Raises ``MediaError``, ``OSError``."""
    with path.open("rb") as file:
        start = file.read(16)
    if start.startswith(_IMAGE_STARTS):
        text = _image_text(path)
    elif start.startswith(_ZIP_START):
        text = _archive_text(path)
    else:
        with open_container(path, "file") as container:
            text = container.metadata.get("comment")
    return text if isinstance(text, str) and len(text) <= MAX_TEXT else None


def _archive_text(path: Path) -> object:
    """The text of that name among the arrays of an .npz. Raises ``MediaError`` for a damaged one."""
    import numpy as np

    try:
        with zipfile.ZipFile(path) as archive:
            if _ARRAY not in archive.namelist() or archive.getinfo(_ARRAY).file_size > 4 * MAX_TEXT:
                return None
            array = np.load(io.BytesIO(archive.read(_ARRAY)), allow_pickle=False)
    except (*DECODE_ERRORS, zipfile.BadZipFile, NotImplementedError) as error:
        raise read_error(path, "archive", error) from error
    return str(array) if array.shape == () and array.dtype.kind == "U" else None


def _image_text(path: Path) -> object:
    with Image.open(path, formats=("PNG", "GIF", "WEBP", "JPEG")) as image:
        if isinstance(image, PngImageFile):
            return image.text.get(PNG_KEY)
        if image.format == "GIF":
            comment = image.info.get("comment")
            return comment.decode("ascii", "replace") if isinstance(comment, bytes) else comment
        return image.getexif().get(Base.ImageDescription)
