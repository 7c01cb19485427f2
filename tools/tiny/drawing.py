"""Anti-aliased drawing of the tiny world's figures from signed distances (numpy only).

Coordinates are pixels, y down, pixel centres at integers. A distance is negative inside; the coverage of a pixel is
``clip(0.5 - distance, 0, 1)``, which blends edges over one pixel. Every figure has its centroid at its origin.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

# Rotations after which a figure looks the same, in radians; 0 means any rotation.
SYMMETRY = {
    "circle": 0.0,
    "square": np.pi / 2,
    "triangle": 2 * np.pi / 3,
    "cross": np.pi / 2,
    "ring": 0.0,
}
SHAPES = tuple(SYMMETRY)

_SQUARE_SIDE = 0.86  # half side, in radii: a square looks as large as a circle of radius 1
_TRIANGLE_INRADIUS = 0.6
_CROSS_ARM = 0.36
_RING_MIDDLE, _RING_HALF_WIDTH = 0.73, 0.27

# Area of each figure with radius 1; a detector gets the radius from the area.
UNIT_AREA = {
    "circle": np.pi,
    "square": (2 * _SQUARE_SIDE) ** 2,
    "triangle": 3 * np.sqrt(3) * _TRIANGLE_INRADIUS**2,
    "cross": 4 * _CROSS_ARM * (2 - _CROSS_ARM),
    "ring": 4 * np.pi * _RING_MIDDLE * _RING_HALF_WIDTH,
}

# Farthest point from the centre, in radii, in any rotation.
EXTENT = {
    "circle": 1.0,
    "square": _SQUARE_SIDE * 2**0.5,
    "triangle": 2 * _TRIANGLE_INRADIUS,
    "cross": 1.07,
    "ring": 1.0,
}


def pixel_grid(height: int, width: int) -> tuple[Floats, Floats]:
    """Return the pixel-centre coordinates (x, y), each ``[height, width]`` float32."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    return x, y


def figure_distance(shape: str, x: Floats, y: Floats, radius: Floats, angle: Floats) -> Floats:
    """Signed distance in pixels to a figure at the origin.

    ``x, y`` are offsets from its centre; ``radius`` (pixels) and ``angle`` (radians, clockwise on screen) broadcast
    against them. Raises KeyError for an unknown shape.
    """
    if shape == "circle":
        return np.hypot(x, y) - radius
    if shape == "ring":
        return np.abs(np.hypot(x, y) - _RING_MIDDLE * radius) - _RING_HALF_WIDTH * radius
    cos, sin = np.cos(angle), np.sin(angle)
    u, v = cos * x + sin * y, cos * y - sin * x
    if shape == "triangle":
        slant = np.float32(np.sqrt(3) / 2)
        return np.maximum(v, slant * np.abs(u) - v / 2) - _TRIANGLE_INRADIUS * radius
    u, v = np.abs(u), np.abs(v)
    if shape == "square":
        return np.maximum(u, v) - _SQUARE_SIDE * radius
    if shape == "cross":
        arm = _CROSS_ARM * radius
        return np.minimum(np.maximum(u - radius, v - arm), np.maximum(u - arm, v - radius))
    raise KeyError(shape)


def coverage(distance: Floats) -> Floats:
    """Turn signed distances into pixel coverage in [0, 1], with a one-pixel edge."""
    return np.clip(0.5 - distance, 0, 1).astype(np.float32)


def paint(canvas: Floats, cover: Floats, color: tuple[int, int, int]) -> Floats:
    """Blend ``color`` (0..255) over ``canvas`` ``[F, H, W, 3]`` where ``cover`` ``[F, H, W]`` says so."""
    return canvas + cover[..., None] * (np.asarray(color, np.float32) - canvas)
