"""Rendered rooms with known cameras: what the tiny Pi3 learns from and is judged on. numpy only.

A room is a closed box with a floor, a ceiling and four walls of fixed colours, in which boxes and spheres stand; the
cameras stand around its middle and look inward. Everything follows from one integer: ``room_views(seed)`` always
renders the same views. World axes follow OpenCV: x right, y down, z forward; units are metres, the floor is y = 0.
``python -m tools.tiny.rooms FOLDER [--seed S]`` writes the views of one scene as images.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

ROOMS_VERSION = "1"
EVALUATION_SEEDS = range(9_000_000, 9_000_050)
"""The held-back scenes; training never uses a seed from here on. Fixed before the first training run."""

Floats = NDArray[np.float32]

_LIGHT = np.array([0.35, -0.8, -0.45], dtype=np.float32)
_AMBIENT = 0.55
# Each wall has its own colour in every room, so that one image tells which way it looks.
_WALLS = {
    "left": (205, 92, 80), "right": (84, 140, 200), "far": (232, 200, 96), "near": (110, 176, 110),
    "floor": (150, 112, 82), "ceiling": (236, 236, 232),
}  # fmt: skip
_OBJECT_COLOURS = np.array(
    [(230, 60, 60), (60, 90, 220), (250, 160, 30), (60, 190, 190), (150, 70, 180), (245, 245, 245), (60, 60, 70)],
    dtype=np.float32,
)
_FAR = np.float32(1e6)


@dataclass(frozen=True)
class Solid:
    """A box (``size`` half extents, turned by ``angle`` about the vertical) or, with ``is_sphere``, a sphere of radius
    ``size[0]``, around ``centre``; ``colour`` is RGB 0..255."""

    centre: Floats
    size: Floats
    angle: float
    colour: Floats
    is_sphere: bool


@dataclass(frozen=True)
class Room:
    """Half width and half depth of the floor, the height, and what stands in it."""

    half_width: float
    half_depth: float
    height: float
    solids: tuple[Solid, ...]


@dataclass(frozen=True)
class Views:
    """N rendered views: ``images`` uint8 [N, H, W, 3], ``depth`` float32 [N, H, W] along the optical axis,
    ``poses`` float32 [N, 4, 4] camera-to-world, ``intrinsics`` float32 [3, 3] in pixels, shared by all."""

    images: NDArray[np.uint8]
    depth: Floats
    poses: Floats
    intrinsics: Floats

    def local_points(self) -> Floats:
        """Points [N, H, W, 3] in each camera's frame."""
        height, width = self.depth.shape[1:]
        return camera_rays(self.intrinsics, height, width) * self.depth[..., None]


def make_room(generator: np.random.Generator) -> Room:
    """A random room with three to six solids that do not stick out of it."""
    half_width, half_depth = generator.uniform(2.4, 3.4, 2)
    solids = []
    for _ in range(generator.integers(3, 7)):
        reach = generator.uniform(0.0, 1.0)
        heading = generator.uniform(0, 2 * np.pi)
        x, z = reach * np.cos(heading), reach * np.sin(heading)
        is_sphere = bool(generator.random() < 0.4)
        size = generator.uniform(0.18, 0.42, 3) * (1.0, 1.5, 1.0)
        if is_sphere:
            size[:] = generator.uniform(0.22, 0.45)
        solids.append(
            Solid(
                centre=np.array([x, -size[1], z], dtype=np.float32),
                size=size.astype(np.float32),
                angle=float(generator.uniform(0, np.pi / 2)),
                colour=_OBJECT_COLOURS[generator.integers(len(_OBJECT_COLOURS))],
                is_sphere=is_sphere,
            )
        )
    return Room(float(half_width), float(half_depth), float(generator.uniform(2.4, 3.0)), tuple(solids))


def look_at(position: Floats, target: Floats) -> Floats:
    """The camera-to-world matrix of an upright camera."""
    forward = (target - position) / np.linalg.norm(target - position)
    right = np.cross([0.0, 1.0, 0.0], forward)
    right /= np.linalg.norm(right)
    pose = np.eye(4, dtype=np.float32)
    pose[:3, :3] = np.stack([right, np.cross(forward, right), forward], axis=1)
    pose[:3, 3] = position
    return pose


def make_cameras(generator: np.random.Generator, count: int) -> Floats:
    """Poses [count, 4, 4] along an arc around the middle of the room, looking inward."""
    start, span = generator.uniform(0, 2 * np.pi), generator.uniform(0.7, 2.4)
    poses = []
    for step in np.linspace(0.0, 1.0, count) if count > 1 else [0.5]:
        angle = start + span * (step + generator.uniform(-0.05, 0.05))
        radius = generator.uniform(1.5, 2.1)
        position = np.array([radius * np.sin(angle), -generator.uniform(1.0, 1.9), -radius * np.cos(angle)])
        target = generator.uniform(-0.35, 0.35, 3) - np.array([0.0, 0.6, 0.0])
        poses.append(look_at(position.astype(np.float32), target.astype(np.float32)))
    return np.stack(poses)


def make_intrinsics(generator: np.random.Generator, height: int, width: int) -> Floats:
    """A pinhole camera with square pixels, its axis through the middle, 58 to 74 degrees wide."""
    focal = width / 2 / np.tan(np.radians(generator.uniform(58, 74)) / 2)
    return np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]], dtype=np.float32)


def camera_rays(intrinsics: Floats, height: int, width: int) -> Floats:
    """Rays (x / z, y / z, 1) through all pixel centres, float32 [H, W, 3]."""
    u, v = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    x, y = (u - intrinsics[0, 2]) / intrinsics[0, 0], (v - intrinsics[1, 2]) / intrinsics[1, 1]
    return np.stack([x, y, np.ones_like(x)], axis=-1).astype(np.float32)


def _hit_sphere(solid: Solid, origin: Floats, rays: Floats) -> tuple[Floats, Floats]:
    offset = origin - solid.centre
    a, b = np.einsum("mi,mi->m", rays, rays), rays @ offset
    root = b * b - a * (offset @ offset - solid.size[0] ** 2)
    distance = np.where(root > 0, (-b - np.sqrt(np.maximum(root, 0))) / a, _FAR)
    distance = np.where(distance > 1e-3, distance, _FAR).astype(np.float32)
    normals = (origin + distance[:, None] * rays - solid.centre) / solid.size[0]
    return distance, normals


def _hit_box(solid: Solid, origin: Floats, rays: Floats) -> tuple[Floats, Floats]:
    cos, sin = np.cos(solid.angle), np.sin(solid.angle)
    turn = np.array([[cos, 0, -sin], [0, 1, 0], [sin, 0, cos]], dtype=np.float32)
    start, direction = turn @ (origin - solid.centre), rays @ turn.T
    direction = np.where(np.abs(direction) < 1e-7, np.float32(1e-7), direction)
    entry = (-np.sign(direction) * solid.size - start) / direction
    leave = (np.sign(direction) * solid.size - start) / direction
    axis = entry.argmax(axis=1)
    near, far = entry.max(axis=1), leave.min(axis=1)
    distance = np.where((near < far) & (near > 1e-3), near, _FAR).astype(np.float32)
    normals = np.zeros_like(rays)
    rows = np.arange(len(rays))
    normals[rows, axis] = -np.sign(direction[rows, axis])
    return distance, normals @ turn


def _hit_walls(room: Room, origin: Floats, rays: Floats) -> tuple[Floats, Floats, Floats]:
    """Distance, inward normal and colour of the walls, floor and ceiling behind each ray."""
    limits = np.array([[-room.half_width, -room.height, -room.half_depth], [room.half_width, 0.0, room.half_depth]])
    safe = np.where(np.abs(rays) < 1e-7, np.float32(1e-7), rays)
    steps = (np.where(safe > 0, limits[1], limits[0]) - origin) / safe
    axis = steps.argmin(axis=1)
    rows = np.arange(len(rays))
    distance = steps[rows, axis].astype(np.float32)
    normals = np.zeros_like(rays)
    normals[rows, axis] = -np.sign(safe[rows, axis])
    points = origin + distance[:, None] * rays
    positive = safe[rows, axis] > 0
    names = np.array([["left", "right"], ["ceiling", "floor"], ["near", "far"]])
    palette = np.array([[_WALLS[name] for name in pair] for pair in names], dtype=np.float32)
    colours = palette[axis, positive.astype(int)]
    return distance, normals, colours * _pattern(points, axis, positive)[:, None]


def _pattern(points: Floats, axis: NDArray[np.intp], positive: NDArray[np.bool_]) -> Floats:
    """Brightness factors: half-metre tiles on the floor, metre stripes with a skirting on the walls."""
    tiles = (np.floor(points[:, 0] * 2) + np.floor(points[:, 2] * 2)) % 2
    along = np.where(axis == 0, points[:, 2], points[:, 0])
    stripes = np.floor(along * 2) % 2
    skirting = points[:, 1] > -0.15
    wall = np.where(skirting, 0.6, 0.88 + 0.12 * stripes)
    flat = np.where(positive, 0.7 + 0.3 * tiles, 0.95 + 0.05 * tiles)
    return np.where(axis == 1, flat, wall).astype(np.float32)


def render(room: Room, pose: Floats, intrinsics: Floats, height: int, width: int) -> tuple[Floats, Floats]:
    """Colours [H, W, 3] in 0..255 and depth [H, W] of one view, one ray per pixel."""
    rays = (camera_rays(intrinsics, height, width) @ pose[:3, :3].T).reshape(-1, 3)
    origin = pose[:3, 3]
    depth, normals, colours = _hit_walls(room, origin, rays)
    for solid in room.solids:
        hit = _hit_sphere if solid.is_sphere else _hit_box
        distance, facing = hit(solid, origin, rays)
        nearer = distance < depth
        depth = np.where(nearer, distance, depth)
        normals = np.where(nearer[:, None], facing, normals)
        colours = np.where(nearer[:, None], solid.colour, colours)
    light = np.abs(normals @ (_LIGHT / np.linalg.norm(_LIGHT)))
    shaded = colours * (_AMBIENT + (1 - _AMBIENT) * light)[:, None]
    return shaded.reshape(height, width, 3), depth.reshape(height, width)


def room_views(seed: int, *, count: int = 6, height: int = 84, width: int = 112, smooth: int = 2) -> Views:
    """The views of scene ``seed``; colours are means over ``smooth`` x ``smooth`` rays, depth is that of the centre."""
    generator = np.random.default_rng(seed)
    room = make_room(generator)
    poses = make_cameras(generator, count)
    intrinsics = make_intrinsics(generator, height, width)
    fine = intrinsics * np.array([[smooth], [smooth], [1.0]], dtype=np.float32)
    images = np.empty((count, height, width, 3), dtype=np.uint8)
    depth = np.empty((count, height, width), dtype=np.float32)
    for index, pose in enumerate(poses):
        colours, depth[index] = render(room, pose, intrinsics, height, width)
        if smooth > 1:
            colours = render(room, pose, fine, height * smooth, width * smooth)[0]
            colours = colours.reshape(height, smooth, width, smooth, 3).mean(axis=(1, 3))
        images[index] = np.clip(np.round(colours), 0, 255)
    return Views(images, depth, poses, intrinsics)


def main() -> None:
    """Write the views of one scene as PNG files (this alone needs Pillow)."""
    from PIL import Image

    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=EVALUATION_SEEDS.start + 3)
    parser.add_argument("--count", type=int, default=6)
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    views = room_views(arguments.seed, count=arguments.count, height=336, width=448, smooth=1)
    for index, image in enumerate(views.images):
        Image.fromarray(image).save(arguments.folder / f"view_{index}.png")


if __name__ == "__main__":
    main()
