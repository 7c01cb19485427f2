"""Rendered rooms: the same from the same seed, and geometrically right."""

import numpy as np
import pytest

from tools.tiny.rooms import (
    EVALUATION_SEEDS,
    Room,
    Solid,
    camera_rays,
    look_at,
    make_cameras,
    make_room,
    render,
    room_views,
)


def test_a_seed_always_renders_the_same() -> None:
    first, second = room_views(3, count=2), room_views(3, count=2)
    assert np.array_equal(first.images, second.images)
    assert not np.array_equal(first.images, room_views(4, count=2).images)


def test_fifty_scenes_are_held_back() -> None:
    assert len(EVALUATION_SEEDS) == 50


def test_cameras_are_rigid_and_upright() -> None:
    poses = make_cameras(np.random.default_rng(0), 5)
    turns = poses[:, :3, :3]
    assert np.allclose(turns @ turns.transpose(0, 2, 1), np.eye(3), atol=1e-5)
    assert (poses[:, 1, 1] > 0).all()  # the image's down is the world's


def test_views_agree_on_where_the_points_are() -> None:
    views = room_views(11, count=2, height=42, width=56, smooth=1)
    height, width = views.depth.shape[1:]
    points = views.local_points()[0].reshape(-1, 3) @ views.poses[0, :3, :3].T + views.poses[0, :3, 3]
    local = (points - views.poses[1, :3, 3]) @ views.poses[1, :3, :3]
    image = local @ views.intrinsics.T
    u, v = (image[:, :2] / image[:, 2:]).T
    inside = (local[:, 2] > 0) & (u > 0) & (u < width) & (v > 0) & (v < height)
    seen = views.depth[1][v[inside].astype(int), u[inside].astype(int)]
    ratio = local[inside, 2] / seen
    assert inside.mean() > 0.2
    assert (np.abs(ratio - 1) < 0.05).mean() > 0.4
    assert (ratio < 0.9).mean() < 0.06  # points may hide behind nearer ones, never stand before what is seen


def test_a_sphere_is_hit_where_it_stands() -> None:
    ball = Solid(np.array([0, -1, 0], np.float32), np.full(3, 0.5, np.float32), 0.0, np.zeros(3, np.float32), True)
    pose = look_at(np.array([0, -1, -2.0], np.float32), np.array([0, -1, 0.0], np.float32))
    intrinsics = np.array([[50, 0, 2.5], [0, 50, 2.5], [0, 0, 1]], np.float32)
    colours, depth = render(Room(3.0, 3.0, 2.5, (ball,)), pose, intrinsics, 5, 5)
    assert depth[2, 2] == pytest.approx(1.5, abs=1e-5)
    assert (colours[2, 2] == 0).all()


def test_a_turned_box_shows_its_edge() -> None:
    box = Solid(np.array([0, -1, 0], np.float32), np.full(3, 0.5, np.float32), np.pi / 4, np.ones(3, np.float32), False)
    pose = look_at(np.array([0, -1, -2.0], np.float32), np.array([0, -1, 0.0], np.float32))
    intrinsics = np.array([[50, 0, 2.5], [0, 50, 2.5], [0, 0, 1]], np.float32)
    depth = render(Room(3.0, 3.0, 2.5, (box,)), pose, intrinsics, 5, 5)[1]
    assert depth[2, 2] == pytest.approx(2 - 0.5 * np.sqrt(2), abs=1e-4)


def test_rooms_hold_their_solids() -> None:
    for seed in range(20):
        room = make_room(np.random.default_rng(seed))
        for solid in room.solids:
            reach = solid.size[[0, 2]].max() * np.sqrt(2)
            assert abs(solid.centre[0]) + reach < room.half_width
            assert abs(solid.centre[2]) + reach < room.half_depth
            assert solid.centre[1] + solid.size[1] <= 1e-6


def test_rays_pass_through_pixel_centres() -> None:
    rays = camera_rays(np.array([[2, 0, 1], [0, 2, 1], [0, 0, 1]], np.float32), 2, 2)
    assert rays[0, 0].tolist() == [-0.25, -0.25, 1.0]
