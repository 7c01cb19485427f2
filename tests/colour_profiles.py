"""ICC profiles and PNG chunks, written from their specifications, for images that say what their colours are."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

D50 = (0.9642, 1.0, 0.8249)
D65 = (0.3127, 0.329)
P3 = ((0.68, 0.32), (0.265, 0.69), (0.15, 0.06))
ADOBE = ((0.64, 0.33), (0.21, 0.71), (0.15, 0.06))
BT709 = ((0.64, 0.33), (0.30, 0.60), (0.15, 0.06))
SRGB_CURVE = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)


def rgb_profile(primaries: tuple[tuple[float, float], ...], gamma: float | None = None) -> bytes:
    """A display profile of three primaries under D65 (ICC.1:2022): a gamma, or the curve of sRGB."""
    lights = np.array([[x / y, 1, (1 - x - y) / y] for x, y in primaries]).T
    white = np.array([D65[0] / D65[1], 1, (1 - sum(D65)) / D65[1]])
    bradford = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
    adapt = np.linalg.inv(bradford) @ np.diag((bradford @ D50) / (bradford @ white)) @ bradford
    columns = adapt @ (lights * np.linalg.solve(lights, white))
    if gamma is None:
        curve = b"para" + bytes(4) + struct.pack(">HH", 3, 0) + b"".join(fixed(value) for value in SRGB_CURVE)
    else:
        curve = b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256))
    tags = {b"rXYZ": xyz(columns[:, 0]), b"gXYZ": xyz(columns[:, 1]), b"bXYZ": xyz(columns[:, 2])}
    return profile(b"RGB ", {**tags, b"rTRC": curve, b"gTRC": curve, b"bTRC": curve}, version=2 if gamma else 4)


def grey_profile(gamma: float) -> bytes:
    """A profile of grey levels with a gamma."""
    return profile(b"GRAY", {b"kTRC": b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256))}, version=2)


def cmyk_profile(darkest: float) -> bytes:
    """A printer's profile by a table of two levels an ink: L of white paper is 100, of any full ink ``darkest``."""
    grid = [bool(any(inks)) for inks in np.ndindex(2, 2, 2, 2)]
    table = b"".join(bytes([round((darkest if inked else 100) * 2.55), 128, 128]) for inked in grid)
    identity = b"".join(fixed(value) for value in np.eye(3).ravel())
    ramp = bytes(range(256))
    lut = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + identity + ramp * 4 + table + ramp * 3
    return profile(b"CMYK", {b"A2B0": lut}, version=2, kind=b"prtr", space=b"Lab ")


def profile(
    colours: bytes, tags: dict[bytes, bytes], *, version: int, kind: bytes = b"mntr", space: bytes = b"XYZ "
) -> bytes:
    """Header, tag table and tags; every tag starts at a multiple of four."""
    tags = {**tags, b"wtpt": xyz(D50), b"cprt": b"text" + bytes(4) + b"none\0"}
    start, table, data = 132 + 12 * len(tags), b"", b""
    for name, value in tags.items():
        table += name + struct.pack(">II", start + len(data), len(value))
        data += value + bytes(-len(value) % 4)
    head = struct.pack(">I4sI4s4s4s", start + len(data), b"test", version << 24, kind, colours, space)
    head += bytes(12) + b"acsp" + bytes(28) + b"".join(fixed(value) for value in D50)
    return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + data


def fixed(value: float) -> bytes:
    return struct.pack(">i", round(value * 65536))


def xyz(values: tuple[float, ...]) -> bytes:
    return b"XYZ " + bytes(4) + b"".join(fixed(value) for value in values)


def png_with(path: Path, image: Image.Image, **chunks: bytes) -> Path:
    """A PNG with further chunks behind its header."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    data = buffer.getvalue()
    added = b""
    for name, value in chunks.items():
        body = name.encode() + value
        added += struct.pack(">I", len(value)) + body + struct.pack(">I", zlib.crc32(body))
    path.write_bytes(data[:33] + added + data[33:])
    return path


def gama(gamma: float) -> bytes:
    return struct.pack(">I", round(gamma * 100_000))


def chrm(primaries: tuple[tuple[float, float], ...], white: tuple[float, float] = D65) -> bytes:
    return struct.pack(">8I", *(round(value * 100_000) for pair in (white, *primaries) for value in pair))
