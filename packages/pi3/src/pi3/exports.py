"""Scenes as files: ``.ply``, ``.glb``, ``.npz``, a COLMAP folder, and camera paths as text."""

import json
import os
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pi3.ply import hsv_to_rgb, write_ply
from pi3.scene import Scene
from wan_core import BackendError, RequestError
from wan_core.drafts import merged_folder, replaced_file, write_bytes, write_text
from wan_core.files import plain_text

OPENCV_TO_GLTF = np.diag([1.0, -1.0, -1.0, 1.0])
"""glTF has y up and looks along -z, OpenCV y down and z forward."""

_FRUSTUM_SHARE = 0.03
_PYRAMID_FACES = [[0, 2, 1], [0, 3, 2], [0, 4, 3], [0, 1, 4], [1, 2, 3], [1, 3, 4]]
_KINDS = (".ply", ".glb", ".npz")
_IMAGES_HEAD = "# IMAGE_ID QW QX QY QZ TX TY TZ CAMERA_ID NAME"


def scene_kind(path: str | os.PathLike[str]) -> str:
    """``.ply``, ``.glb``, ``.npz`` or ``colmap`` (a name without an ending) for an output name.

    Raises RequestError for another ending.
    """
    suffix = Path(path).suffix.lower()
    if not suffix or Path(path).is_dir():
        return "colmap"
    if suffix not in _KINDS:
        raise RequestError(f"output {path} ends in {suffix}; use .ply, .glb, .npz, or a folder for COLMAP")
    return suffix


def write_scene(scene: Scene, path: str | os.PathLike[str], *, max_points: int | None = None) -> int:
    """Write a scene in the format of the name's ending; returns the number of points in the file.

    ``.npz`` holds all pixels and ignores ``max_points``. Raises RequestError for an unknown ending, MediaError when it
    cannot be written, BackendError when trimesh is missing for ``.glb``.
    """
    kind = scene_kind(path)
    if kind == ".npz":
        write_npz(scene, path)
        return int(scene.keep.size)
    points, colours = scene.cloud(max_points)
    if kind == ".ply":
        write_ply(path, points, colours / 255)
    elif kind == ".glb":
        write_glb(scene, path, points, colours)
    else:
        write_colmap(scene, path, max_points=max_points)
    return len(points)


def write_npz(scene: Scene, path: str | os.PathLike[str]) -> None:
    """Write every array of a scene, under the names of its fields."""
    arrays = {name: value for name, value in vars(scene).items() if name != "names"}
    with replaced_file(path) as temporary, temporary.open("wb") as stream:
        np.savez_compressed(stream, names=np.array(scene.names), **arrays)


def write_glb(
    scene: Scene, path: str | os.PathLike[str], points: NDArray[np.float32], colours: NDArray[np.uint8]
) -> None:
    """Write points and one small pyramid per camera, its tip at the camera, as a binary glTF file."""
    try:
        trimesh: Any = import_module("trimesh")
    except ImportError as error:
        raise BackendError(".glb needs the trimesh package; install pi3[glb], or write .ply") from error
    parts = trimesh.Scene()
    if len(points):
        parts.add_geometry(trimesh.PointCloud(points, colors=colours), node_name="points")
    size = _FRUSTUM_SHARE * float(np.linalg.norm(np.ptp(points, axis=0))) if len(points) else 1.0
    for index, (vertices, shade) in enumerate(zip(camera_pyramids(scene, size), camera_colours(scene), strict=True)):
        colour = np.append(shade, 255).astype(np.uint8)
        mesh = trimesh.Trimesh(vertices, _PYRAMID_FACES, vertex_colors=np.tile(colour, (len(vertices), 1)))
        parts.add_geometry(mesh, node_name=f"camera {scene.names[index]}")
    parts.apply_transform(OPENCV_TO_GLTF)
    write_bytes(path, parts.export(file_type="glb"))


def camera_pyramids(scene: Scene, size: float) -> NDArray[np.float64]:
    """Corners [N, 5, 3] of each camera's field of view: its centre, and its image corners at depth ``size``."""
    height, width = scene.depth.shape[1:]
    corners = np.array([[0, 0, 1], [width, 0, 1], [width, height, 1], [0, height, 1]], dtype=np.float64)
    pyramids = []
    for pose, intrinsics in zip(scene.poses.astype(np.float64), scene.intrinsics.astype(np.float64), strict=True):
        local = corners @ np.linalg.inv(intrinsics).T * size
        pyramids.append(np.vstack([pose[:3, 3], local @ pose[:3, :3].T + pose[:3, 3]]))
    return np.array(pyramids)


def camera_colours(scene: Scene) -> NDArray[np.float64]:
    """A colour [N, 3] in 0..255 per camera, from red for the first to blue for the last."""
    hues = np.linspace(0.0, 0.66, len(scene.poses))
    return hsv_to_rgb(hues, 0.9, 0.95) * 255


def quaternions(rotations: NDArray[np.floating]) -> NDArray[np.float64]:
    """Unit quaternions (w, x, y, z) [N, 4] of rotations [N, 3, 3], w >= 0.

    Each is the eigenvector of the largest eigenvalue of Bar-Itzhack's 4x4 matrix (2000), stable for every angle.
    """
    r = np.asarray(rotations, dtype=np.float64)
    matrix = np.zeros((len(r), 4, 4))
    matrix[:, 0, 0] = r[:, 0, 0] + r[:, 1, 1] + r[:, 2, 2]
    matrix[:, 1:, 1:] = r + r.transpose(0, 2, 1) - matrix[:, :1, :1] * np.eye(3)
    axis = np.stack([r[:, 2, 1] - r[:, 1, 2], r[:, 0, 2] - r[:, 2, 0], r[:, 1, 0] - r[:, 0, 1]], axis=-1)
    matrix[:, 0, 1:] = matrix[:, 1:, 0] = axis
    quaternion = np.linalg.eigh(matrix)[1][:, :, -1]
    return np.where(quaternion[:, :1] < 0, -quaternion, quaternion)


def write_colmap(scene: Scene, path: str | os.PathLike[str], *, max_points: int | None = None) -> None:
    """Write a COLMAP text model: ``cameras.txt``, ``images.txt``, ``points3D.txt``, and the views under ``images/``.

    Every view has its own PINHOLE camera for the written image; points carry no tracks, as they come from no
    matching. Format: colmap.github.io/format.html. Raises as `check_colmap`, and MediaError.
    """
    check_colmap(path)
    points, colours = scene.cloud(max_points)
    height, width = scene.depth.shape[1:]
    world_to_camera = np.linalg.inv(scene.poses.astype(np.float64))
    turns = quaternions(world_to_camera[:, :3, :3])
    cameras, images = ["# CAMERA_ID MODEL WIDTH HEIGHT fx fy cx cy"], [_IMAGES_HEAD]
    for number, (name, k) in enumerate(zip(scene.names, scene.intrinsics, strict=True), 1):
        cameras.append(f"{number} PINHOLE {width} {height} {k[0, 0]:.6f} {k[1, 1]:.6f} {k[0, 2]:.6f} {k[1, 2]:.6f}")
        numbers = " ".join(f"{v:.9f}" for v in (*turns[number - 1], *world_to_camera[number - 1, :3, 3]))
        images += [f"{number} {numbers} {number} {name}.png", ""]
    rows = ["# POINT3D_ID X Y Z R G B ERROR TRACK[]"]
    for number, (point, colour) in enumerate(zip(points.tolist(), colours.tolist(), strict=True), 1):
        rows.append(f"{number} {' '.join(f'{v:.6f}' for v in point)} {' '.join(map(str, colour))} 0")
    with merged_folder(path, owned=["images"]) as folder:
        (folder / "images").mkdir()
        for name, image in zip(scene.names, scene.images, strict=True):
            Image.fromarray(image).save(folder / "images" / f"{name}.png")
        for file, lines in (("cameras.txt", cameras), ("images.txt", images), ("points3D.txt", rows)):
            (folder / file).write_text("\n".join(lines) + "\n", encoding="utf-8")


def check_colmap(path: str | os.PathLike[str]) -> None:
    """Raise RequestError when the ``images`` of a folder, which a new scene replaces, are not of an earlier scene."""
    folder = Path(path)
    lines: list[str] = []
    with suppress(OSError):
        lines = (folder / "images.txt").read_text(encoding="utf-8", errors="replace").splitlines()
    ours = {line.split(" ", 9)[-1] for line in lines[1::2]} if lines[:1] == [_IMAGES_HEAD] else set()
    images = folder / "images"
    foreign = sorted(each.name for each in images.iterdir() if each.name not in ours) if images.is_dir() else []
    if foreign:
        raise RequestError(
            f"{plain_text(images)} has files that are of no earlier scene here ({plain_text(foreign[0])}), and the "
            "images of the scene take its place; name another folder"
        )


def write_poses(scene: Scene, path: str | os.PathLike[str]) -> None:
    """Write the cameras: ``.json`` (names, matrices, intrinsics), ``.txt`` (TUM: index, centre, quaternion x y z w) or
    ``.npz``. Raises RequestError for another ending, MediaError when it cannot be written."""
    check_poses_kind(path)
    suffix = Path(path).suffix.lower()
    if suffix == ".npz":
        with replaced_file(path) as temporary, temporary.open("wb") as stream:
            np.savez(stream, poses=scene.poses, intrinsics=scene.intrinsics, names=np.array(scene.names))
    else:
        write_text(path, poses_json(scene) if suffix == ".json" else poses_tum(scene))


def check_poses_kind(path: str | os.PathLike[str]) -> None:
    """Raise RequestError unless :func:`write_poses` knows the ending."""
    if Path(path).suffix.lower() not in (".json", ".txt", ".npz"):
        raise RequestError(f"poses are written as .json, .txt (TUM) or .npz, got {path}")


def poses_json(scene: Scene) -> str:
    """Names, camera-to-world matrices and intrinsics as JSON."""
    height, width = scene.depth.shape[1:]
    views = [
        {"name": name, "camera_to_world": pose.tolist(), "intrinsics": intrinsics.tolist()}
        for name, pose, intrinsics in zip(scene.names, scene.poses, scene.intrinsics, strict=True)
    ]
    return json.dumps({"width": width, "height": height, "axes": "OpenCV", "views": views}, indent=1) + "\n"


def poses_tum(scene: Scene) -> str:
    """One line per view: index, centre x y z, quaternion x y z w of the camera-to-world rotation (the TUM format)."""
    turns = quaternions(scene.poses[:, :3, :3])
    lines = [
        " ".join([str(index), *(f"{v:.9f}" for v in (*pose[:3, 3], *turn[1:], turn[0]))])
        for index, (pose, turn) in enumerate(zip(scene.poses, turns, strict=True))
    ]
    return "\n".join(lines) + "\n"
