"""Grey TIFF files whose numbers Pillow gives as they are stored: fewer bits than 16, and white that is 0."""

import struct
from pathlib import Path

import pytest

from wan_core.media import load_image

SHORT, LONG = 3, 4  # types of TIFF 6.0


def grey_tiff(path: Path, data: bytes, *, bits: int, white_is_zero: bool, is_float: bool = False) -> Path:
    """A file of two pixels beside each other, little-endian, by TIFF 6.0."""
    tags = {
        256: (SHORT, 2), 257: (SHORT, 1), 258: (SHORT, bits), 259: (SHORT, 1), 262: (SHORT, int(not white_is_zero)),
        273: (LONG, 0), 277: (SHORT, 1), 278: (SHORT, 1), 279: (LONG, len(data)), 339: (SHORT, 3 if is_float else 1),
    }  # fmt: skip
    place = 8 + 2 + 12 * len(tags) + 4
    tags[273] = (LONG, place)
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, (kind, value) in tags.items())
    path.write_bytes(b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + data)
    return path


@pytest.mark.parametrize(
    ("data", "bits", "white_is_zero"),
    [
        (struct.pack("<HH", 60 * 257, 65535), 16, False),
        (struct.pack("<HH", 60 * 257, 65535), 16, True),
        (bytes([0x3C, 0x3F, 0xFF]), 12, False),
        (struct.pack("<ff", 60 / 255, 1), 32, True),
    ],
)
def test_grey_of_any_depth_and_direction(tmp_path: Path, data: bytes, bits: int, white_is_zero: bool) -> None:
    path = grey_tiff(tmp_path / "a.tif", data, bits=bits, white_is_zero=white_is_zero, is_float=bits == 32)
    image = load_image(path)
    wanted = (195, 0) if white_is_zero else (60, 255)
    assert [image.getpixel((x, 0)) for x in (0, 1)] == [(level,) * 3 for level in wanted]
