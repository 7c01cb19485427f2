"""Scene files: what is written can be read back, and nothing stays when writing fails."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pi3 import write_ply
from pi3.depth_maps import depth_levels, depth_range, depth_to_colours, write_depth
from pi3.exports import poses_tum, quaternions, write_poses, write_scene
from pi3.images import pictures_to_tensor, view_of_image
from pi3.ply import hsv_to_rgb, read_ply
from pi3.scene import Scene
from pi3.splat import Orbit, Viewpoint, draw_points
from wan_core import MediaError, RequestError
from wan_core.drafts import replaced_file


@pytest.fixture
def scene() -> Scene:
    """Two cameras, one metre apart, before a wall at 2 m; the left column is not kept."""
    height, width, focal = 4, 6, 6.0
    u, v = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    rays = np.stack([(u - 3) / focal, (v - 2) / focal, np.ones_like(u)], axis=-1)
    local = np.stack([rays * 2, rays * 2]).astype(np.float32)
    poses = np.tile(np.eye(4, dtype=np.float32), (2, 1, 1))
    poses[1, 0, 3] = 1
    keep = np.ones((2, height, width), dtype=bool)
    keep[:, :, 0] = False
    intrinsics = np.array([[focal, 0, 3], [0, focal, 2], [0, 0, 1]], dtype=np.float32)
    return Scene(
        images=np.full((2, height, width, 3), (200, 100, 50), dtype=np.uint8),
        points=local + poses[:, None, None, :3, 3],
        local_points=local,
        confidence=np.ones((2, height, width), dtype=np.float32),
        keep=keep,
        poses=poses,
        intrinsics=np.stack([intrinsics, intrinsics]),
        names=("left", "right"),
    )


def test_ply_comes_back(scene: Scene, tmp_path: Path) -> None:
    assert write_scene(scene, tmp_path / "deep" / "scene.ply") == 40
    points, colours = read_ply(tmp_path / "deep" / "scene.ply")
    assert np.array_equal(points, scene.points[scene.keep])
    assert (colours == (200, 100, 50)).all()


def test_an_empty_cloud_is_a_file_without_points(tmp_path: Path) -> None:
    write_ply(tmp_path / "empty.ply", np.zeros((0, 3)))
    assert read_ply(tmp_path / "empty.ply")[0].shape == (0, 3)


def test_axes_of_three_are_found(tmp_path: Path) -> None:
    points = np.random.default_rng(0).normal(size=(3, 4, 5))
    write_ply(tmp_path / "a.ply", points)
    assert np.allclose(read_ply(tmp_path / "a.ply")[0], points.reshape(3, -1).T, atol=1e-6)


@pytest.mark.parametrize("shape", [(4, 5), (0,)])
def test_points_without_an_axis_of_three_are_refused(shape: tuple[int, ...], tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="axis of size 3"):
        write_ply(tmp_path / "a.ply", np.zeros(shape))
    assert list(tmp_path.iterdir()) == []


def test_colours_must_be_as_many_as_points(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="5 points cannot have 4 colours"):
        write_ply(tmp_path / "a.ply", np.zeros((5, 3)), np.zeros((4, 3)))


def test_a_text_file_is_no_cloud(tmp_path: Path) -> None:
    (tmp_path / "a.ply").write_text("hello")
    with pytest.raises(MediaError, match="no readable PLY"):
        read_ply(tmp_path / "a.ply")


def test_pure_hues_are_pure_colours() -> None:
    colours = hsv_to_rgb(np.array([0.0, 1 / 3, 2 / 3]), 1.0, 1.0)
    assert np.allclose(colours, np.eye(3))


def test_max_points_choose_the_same_points_every_time(scene: Scene) -> None:
    first, second = scene.cloud(7), scene.cloud(7)
    assert len(first[0]) == 7
    assert np.array_equal(first[0], second[0])


def test_npz_holds_every_array(scene: Scene, tmp_path: Path) -> None:
    write_scene(scene, tmp_path / "scene.npz")
    with np.load(tmp_path / "scene.npz") as loaded:
        assert np.array_equal(loaded["poses"], scene.poses)
        assert loaded["names"].tolist() == ["left", "right"]
        assert set(loaded.files) == set(vars(scene))


def test_glb_holds_points_and_a_pyramid_per_camera(scene: Scene, tmp_path: Path) -> None:
    import trimesh

    write_scene(scene, tmp_path / "scene.glb")
    loaded = trimesh.load(tmp_path / "scene.glb")
    kinds = sorted(type(part).__name__ for part in loaded.geometry.values())
    assert kinds == ["PointCloud", "Trimesh", "Trimesh"]
    assert loaded.bounds[0][2] == pytest.approx(-2.0, abs=1e-5)  # glTF looks along -z


def test_colmap_cameras_project_points_to_their_pixels(scene: Scene, tmp_path: Path) -> None:
    write_scene(scene, tmp_path / "model", max_points=9)
    camera = (tmp_path / "model" / "cameras.txt").read_text().splitlines()[1].split()
    assert camera[1:4] == ["PINHOLE", "6", "4"]
    fx, fy, cx, cy = map(float, camera[4:])
    image = (tmp_path / "model" / "images.txt").read_text().splitlines()[3].split()
    assert image[-1] == "right.png"
    assert Image.open(tmp_path / "model" / "images" / "right.png").size == (6, 4)
    w, x, y, z, *translation = map(float, image[1:8])
    assert (w, x, y, z) == pytest.approx((1, 0, 0, 0))
    x, y, z = scene.points[1, 3, 2] + translation  # world to camera of an unturned camera
    assert (x / z * fx + cx, y / z * fy + cy) == pytest.approx((2.5, 3.5), abs=1e-5)
    assert len((tmp_path / "model" / "points3D.txt").read_text().splitlines()) == 10


def test_quaternions_of_quarter_and_half_turns() -> None:
    quarter = np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
    half = np.diag([-1.0, -1.0, 1.0])
    found = quaternions(np.stack([np.eye(3), quarter, half]))
    root = np.sqrt(0.5)
    assert np.allclose(np.abs(found), [[1, 0, 0, 0], [root, 0, 0, root], [0, 0, 0, 1]], atol=1e-9)
    assert found[1, 3] > 0


def test_poses_in_three_formats(scene: Scene, tmp_path: Path) -> None:
    for ending in (".json", ".txt", ".npz"):
        write_poses(scene, tmp_path / f"poses{ending}")
    views = json.loads((tmp_path / "poses.json").read_text())["views"]
    assert [view["name"] for view in views] == ["left", "right"]
    assert poses_tum(scene).splitlines()[1].split()[:4] == ["1", "1.000000000", "0.000000000", "0.000000000"]
    with pytest.raises(RequestError, match="TUM"):
        write_poses(scene, tmp_path / "poses.csv")


def test_depth_levels_times_the_scale_are_the_depth(scene: Scene, tmp_path: Path) -> None:
    scale = write_depth(scene, tmp_path / "depth")
    levels = np.array(Image.open(tmp_path / "depth" / "left_depth.png"))
    assert levels.dtype == np.uint16
    assert (levels[:, 0] == 0).all()
    assert np.allclose(levels[:, 1:] * scale, 2.0, rtol=1e-4)
    assert json.loads((tmp_path / "depth" / "depth.json").read_text())["scale"] == scale
    assert Image.open(tmp_path / "depth" / "right_colour.png").mode == "RGB"


def test_tiny_depth_is_not_confused_with_none() -> None:
    assert depth_levels(np.array([0.0, 1e-9, np.nan]), 1.0).tolist() == [0, 1, 0]


def test_nearer_is_lighter() -> None:
    colours = depth_to_colours(np.array([[1.0, 2.0, 4.0]]), 1.0, 4.0).astype(int).sum(axis=-1)[0]
    assert colours[0] > colours[1] > colours[2]
    assert depth_range(np.zeros((2, 2))) == (1.0, 1.0)


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    def fail() -> None:
        with replaced_file(tmp_path / "a") as temporary:
            temporary.write_text("half")
            raise OSError(28, "No space left on device")

    with pytest.raises(MediaError, match="disk is full"):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_nearer_points_hide_farther_ones() -> None:
    points = np.array([[0.0, 0, 2], [0, 0, 1]])
    colours = np.array([[255, 0, 0], [0, 0, 255]], dtype=np.uint8)
    for order in ([0, 1], [1, 0]):
        image = draw_points(points[order], colours[order], Viewpoint(np.eye(4), 10.0, 9, 9), point_size=1)
        assert image[4, 4].tolist() == [0, 0, 255]


def test_points_behind_the_camera_are_not_drawn() -> None:
    viewpoint = Viewpoint(np.eye(4), 10.0, 8, 8)
    image = draw_points(np.array([[0.0, 0, -1], [np.nan, 0, 1]]), np.zeros((2, 3), dtype=np.uint8), viewpoint)
    assert (image == 250).all()


def test_an_orbit_looks_at_the_middle_from_the_cameras_side() -> None:
    points = np.random.default_rng(0).normal((0, 0, 5), size=(500, 3))
    orbit = Orbit.around(points, np.eye(4)[None])
    pose = orbit.viewpoint(20.0, 48, 64).pose
    towards = (orbit.centre - pose[:3, 3]) / np.linalg.norm(orbit.centre - pose[:3, 3])
    assert np.allclose(pose[:3, 2], towards)
    assert pose[2, 3] < 5
    assert np.allclose(pose[:3, :3].T @ pose[:3, :3], np.eye(3))


def test_an_orbit_of_nothing_exists() -> None:
    Orbit.around(np.zeros((0, 3))).viewpoint(0.0, 8, 8)


def test_images_take_the_size_of_the_first() -> None:
    images = [Image.new("RGB", (40, 30)), Image.new("L", (10, 30), 255)]
    views = pictures_to_tensor(images, pixel_limit=196 * 12)
    assert views.shape == (2, 3, 42, 56)
    assert views[1].min() == 1.0
    assert view_of_image(images[0], (14, 28)).shape == (3, 28, 14)
    with pytest.raises(RequestError, match="no picture"):
        pictures_to_tensor([])


def test_depth_maps_of_another_scale_do_not_stay(scene: Scene, tmp_path: Path) -> None:
    folder = tmp_path / "depth"
    folder.mkdir()
    (tmp_path / "x_depth.png").write_text("outside")
    for name in ("gone_depth.png", "gone_colour.png", "mine_depth.png"):
        (folder / name).write_text("old")
    (folder / "depth.json").write_text(json.dumps({"views": ["gone", "../x", "left"]}))
    write_depth(scene, folder)
    assert not list(folder.glob("gone*"))
    assert (folder / "mine_depth.png").exists()
    assert (tmp_path / "x_depth.png").exists()
    (folder / "depth.json").write_text('{"views": 3}')
    write_depth(scene, folder)
