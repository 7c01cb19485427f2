"""Point clouds as PLY files: binary little-endian, position, zero normals and colour per vertex."""

import os
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from plyfile import PlyData, PlyElement, PlyParseError  # type: ignore[import-untyped]

from wan_core import MediaError, RequestError
from wan_core.drafts import replaced_file

_SATURATION, _BRIGHTNESS = 0.9, 0.8
_HUE_WEIGHTS = (0.7, 0.2, 0.1)
_FIELDS = [(name, "<f4") for name in ("x", "y", "z", "nx", "ny", "nz")]
_FIELDS += [(name, "u1") for name in ("red", "green", "blue")]


def _rows_of_three(array: NDArray[np.floating] | NDArray[np.integer], what: str) -> NDArray[np.float64]:
    """Any array with an axis of size 3 as float64 [M, 3]; of several such axes the last one counts."""
    values = np.asarray(array)
    axes = [axis for axis, size in enumerate(values.shape) if size == 3]
    if not axes:
        raise RequestError(f"{what} need an axis of size 3, got shape {list(values.shape)}")
    return np.moveaxis(values, axes[-1], -1).reshape(-1, 3).astype(np.float64)


def position_colours(points: NDArray[np.floating]) -> NDArray[np.float64]:
    """Colours [M, 3] in [0, 1] that show where points [M, 3] lie, for clouds without colours of their own.

    The hue is a weighted sum of the coordinates, each scaled to 0..1 over the cloud.
    """
    values = np.asarray(points, dtype=np.float64)
    if not len(values):
        return np.zeros((0, 3))
    low = values.min(axis=0)
    span = np.maximum(values.max(axis=0) - low, 1e-12)
    hue = ((values - low) / span) @ np.array(_HUE_WEIGHTS) % 1.0
    return hsv_to_rgb(hue, _SATURATION, _BRIGHTNESS)


def hsv_to_rgb(hue: NDArray[np.float64], saturation: float, value: float) -> NDArray[np.float64]:
    """Colours [M, 3] of hues [M] in 0..1 (Smith 1978)."""
    # The share of the saturation that a channel loses: none around its own hue, all on the other side of the circle.
    distance = (np.array([5.0, 3.0, 1.0]) + 6 * hue[:, None]) % 6
    colours: NDArray[np.float64] = value * (1 - saturation * np.minimum(distance, 4 - distance).clip(0, 1))
    return colours


def write_ply_to(stream: BinaryIO, points: NDArray[np.floating], colours: NDArray[np.floating] | None = None) -> None:
    """Write a cloud to a binary stream; arguments as in :func:`write_ply`."""
    positions = _rows_of_three(points, "points")
    if colours is None:
        shades = position_colours(positions)
    else:
        shades = _rows_of_three(colours, "colours")
        if len(shades) != len(positions):
            raise RequestError(f"{len(positions)} points cannot have {len(shades)} colours")
        if len(shades) and shades.max() > 1:
            shades = shades / 255.0
    vertices = np.zeros(len(positions), dtype=_FIELDS)
    levels = (shades * 255).astype(np.uint8)
    for axis, name in enumerate("xyz"):
        vertices[name] = positions[:, axis]
    for channel, name in enumerate(("red", "green", "blue")):
        vertices[name] = levels[:, channel]
    PlyData([PlyElement.describe(vertices, "vertex")], byte_order="<").write(stream)


def write_ply(
    path: str | os.PathLike[str], points: NDArray[np.floating], colours: NDArray[np.floating] | None = None
) -> Path:
    """Write a cloud as a PLY file, whole or not at all; returns the path.

    ``points`` and ``colours`` have one axis of size 3, usually [M, 3]. Colours are 0..1, or 0..255 when any is above 1,
    and cut to whole levels; without them the position chooses the colour. Raises RequestError for arrays that do not
    fit together, MediaError when the file cannot be written.
    """
    with replaced_file(path) as temporary, temporary.open("wb") as stream:
        write_ply_to(stream, points, colours)
    return Path(path)


def read_ply(path: str | os.PathLike[str]) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Points [M, 3] and colours [M, 3] (grey where the file has none) of a PLY file.

    Raises RequestError when there is no such file, MediaError when it is no PLY file of points or is damaged.
    """
    if not os.path.isfile(path):
        raise RequestError(f"point cloud {path} does not exist; check the name and the folder")
    try:
        vertex = PlyData.read(path, mmap=False)["vertex"].data
        points = np.stack([np.asarray(vertex[name], dtype=np.float32) for name in "xyz"], axis=-1)
    except (PlyParseError, OSError, KeyError, ValueError, MemoryError, UnicodeDecodeError) as error:
        raise MediaError(f"{path} is no readable PLY file of points ({str(error)[:100]})") from error
    names = vertex.dtype.names or ()
    if all(name in names for name in ("red", "green", "blue")):
        return points, np.stack([np.asarray(vertex[c]).astype(np.uint8) for c in ("red", "green", "blue")], axis=-1)
    return points, np.full((len(points), 3), 128, dtype=np.uint8)
