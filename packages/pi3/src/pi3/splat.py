"""Images of point clouds: every point a small square, nearer ones in front. numpy only."""

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

BACKGROUND = (250, 250, 250)
_NEAREST = 1e-6


@dataclass(frozen=True)
class Viewpoint:
    """A virtual camera: ``pose`` [4, 4] camera-to-world (OpenCV axes), ``focal`` length in pixels, and image size."""

    pose: NDArray[np.float64]
    focal: float
    height: int
    width: int


def draw_points(
    points: NDArray[np.floating],
    colours: NDArray[np.uint8],
    viewpoint: Viewpoint,
    *,
    point_size: int = 2,
    background: tuple[int, int, int] = BACKGROUND,
) -> NDArray[np.uint8]:
    """The image [H, W, 3] of points [M, 3] with colours [M, 3], each ``point_size`` pixels wide."""
    height, width = viewpoint.height, viewpoint.width
    image = np.empty((height * width, 3), dtype=np.uint8)
    image[:] = background
    local = (np.asarray(points, dtype=np.float64) - viewpoint.pose[:3, 3]) @ viewpoint.pose[:3, :3]
    in_front = np.isfinite(local).all(axis=1) & (local[:, 2] > _NEAREST)
    local, shades = local[in_front], colours[in_front]
    order = np.argsort(-local[:, 2], kind="stable")
    local, shades = local[order], shades[order]
    u = local[:, 0] / local[:, 2] * viewpoint.focal + width / 2
    v = local[:, 1] / local[:, 2] * viewpoint.focal + height / 2
    inside = (np.abs(u) < 4 * width) & (np.abs(v) < 4 * height)
    left = np.floor(u[inside] - (point_size - 1) / 2).astype(int)
    top = np.floor(v[inside] - (point_size - 1) / 2).astype(int)
    depth, shades = local[inside, 2], shades[inside]
    front = np.full(height * width, np.inf)
    for dy in range(point_size):
        for dx in range(point_size):
            column, row = left + dx, top + dy
            seen = (column >= 0) & (column < width) & (row >= 0) & (row < height)
            place = row[seen] * width + column[seen]
            visible = depth[seen] <= front[place]
            # Of points on one pixel the last assignment stays: they are sorted from far to near.
            front[place[visible]] = depth[seen][visible]
            image[place[visible]] = shades[seen][visible]
    return image.reshape(height, width, 3)


@dataclass(frozen=True)
class Orbit:
    """Viewpoints around a cloud: they look at ``centre`` from ``distance``, with ``up`` upright.

    ``front`` is the unit direction from the centre towards the middle of the swing; ``reach`` is the radius of the part
    of the cloud that should be in the image.
    """

    centre: NDArray[np.float64]
    up: NDArray[np.float64]
    front: NDArray[np.float64]
    distance: float
    reach: float

    @classmethod
    def around(cls, points: NDArray[np.floating], poses: NDArray[np.floating] | None = None) -> Self:
        """An orbit for points [M, 3], seen from the side of the cameras ``poses`` [N, 4, 4] where there are any."""
        values = np.asarray(points, dtype=np.float64)
        values = values[np.isfinite(values).all(axis=1)] if len(values) else np.zeros((1, 3))
        centre = np.median(values, axis=0) if len(values) else np.zeros(3)
        reach = float(np.quantile(np.linalg.norm(values - centre, axis=1), 0.9)) if len(values) else 1.0
        reach = max(reach, 1e-6)
        up, front = np.array([0.0, -1.0, 0.0]), np.array([0.0, -0.35, -1.0])
        if poses is not None and len(poses):
            up = _unit(-np.asarray(poses, dtype=np.float64)[:, :3, 1].mean(axis=0), up)
            towards = np.asarray(poses, dtype=np.float64)[:, :3, 3].mean(axis=0) - centre
            front = _unit(towards, -np.asarray(poses, dtype=np.float64)[:, :3, 2].mean(axis=0)) + 0.25 * up
        return cls(centre, up, _unit(front, np.array([0.0, 0.0, -1.0])), 2.2 * reach, reach)

    def viewpoint(self, degrees: float, height: int, width: int) -> Viewpoint:
        """The camera after turning by ``degrees`` about the upright axis."""
        angle = np.radians(degrees)
        along = np.dot(self.front, self.up) * self.up
        level = self.front - along
        direction = along + level * np.cos(angle) + np.cross(self.up, level) * np.sin(angle)
        forward = -_unit(direction, self.front)
        right = _unit(np.cross(forward, self.up), np.array([1.0, 0.0, 0.0]))
        pose = np.eye(4)
        pose[:3, :3] = np.stack([right, np.cross(forward, right), forward], axis=1)
        pose[:3, 3] = self.centre - self.distance * forward
        return Viewpoint(pose, 0.5 * min(height, width) * self.distance / self.reach, height, width)


def _unit(vector: NDArray[np.float64], otherwise: NDArray[np.float64]) -> NDArray[np.float64]:
    length = np.linalg.norm(vector)
    unit: NDArray[np.float64] = vector / length if length > 1e-9 else otherwise / np.linalg.norm(otherwise)
    return unit
