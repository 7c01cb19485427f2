"""The actors' world and its judge: scenes that are held back, driving folders, colours and joints that are found."""

from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from tools.tiny.actor_judge import BARS, judge, openings
from tools.tiny.actors import (
    EVALUATION_FRAMES,
    FACE_SIZE,
    Drive,
    draw_drive,
    evaluation_scenes,
    face_crops,
    looks,
    masks,
    outfits,
    render,
    skeletons,
    training_scene,
    write_driving,
)
from wan_core.media import probe_video


def test_a_seed_draws_the_same_scene() -> None:
    one, other = training_scene(3, 5), training_scene(3, 5)
    assert one.look == other.look
    assert np.array_equal(one.target(), other.target())


def test_held_back_clothes_and_motions_are_never_trained_on() -> None:
    held = list(evaluation_scenes(5))
    assert len(held) == 50
    assert not set(outfits(held_back=True)) & set(outfits(held_back=False))
    assert {(scene.look.shirt, scene.look.trousers) for scene in held} == set(outfits(held_back=True))
    trained = [training_scene(seed, 5).drive.body for seed in range(8)]
    assert all(not np.allclose(scene.drive.body, body) for scene in held for body in trained)


def test_no_two_colours_of_a_look_are_the_same_nor_that_of_the_scene_it_is_put_into() -> None:
    for held_back in (False, True):
        for look in looks(held_back=held_back):
            assert len({look.shirt, look.trousers, look.ground}) == 3
    for scene in islice(evaluation_scenes(1), 20):
        assert scene.driver.ground not in (scene.look.shirt, scene.look.trousers)


def test_half_of_the_training_colours_are_not_quite_those_of_the_palette() -> None:
    scenes = [training_scene(seed, 1) for seed in range(40)]
    exact = sum(scene.colors == scene.look.colors for scene in scenes)
    assert 12 <= exact <= 28


def test_an_open_mouth_is_seen_in_the_face_crop_and_a_shut_one_is_not() -> None:
    scene = next(evaluation_scenes(2))
    crops = []
    for opening in (0.0, 1.0):
        drive = Drive(scene.drive.body, np.full(2, opening, np.float32))
        crops.append(face_crops(render(scene.driver.colors, drive), drive.body))
    assert crops[0].shape == (2, FACE_SIZE, FACE_SIZE, 3)
    middle = np.s_[:, 14:18, 14:18]
    assert crops[0][middle].mean() > 150 > 60 > crops[1][middle].mean()


def test_a_mask_covers_who_is_filmed() -> None:
    scene = training_scene(5, 3)
    filmed = render(scene.driver.colors, scene.drive)
    for parts in (1, 4):
        outside = filmed[masks(scene.driver, scene.drive, parts) == 0]
        assert np.abs(outside.astype(int) - scene.driver.colors["ground"]).max() <= 8


def test_skeletons_stand_where_the_joints_are() -> None:
    drive = draw_drive(np.random.default_rng(1), 2)
    video = skeletons(drive.body)
    for frame, joints in zip(video, drive.body, strict=True):
        x, y = joints[4].astype(int)
        assert frame[y, x].max() > 100


@pytest.mark.parametrize("replaced", [False, True])
def test_drawn_held_back_scenes_are_all_right_to_the_judge(replaced: bool) -> None:
    for scene in islice(evaluation_scenes(9), 4):
        scores = judge(scene.target(replaced=replaced), scene, replaced=replaced)
        assert scores["pck_0.1"] > 0.99 > BARS["pck_0.1"]
        assert (scores["colours"], scores["kept"]) == (100, 100)
        assert scores["mouth"] > 0.95


def test_the_judge_knows_another_scene() -> None:
    one, other = islice(evaluation_scenes(9), 2, 4)
    scores = judge(one.target(), other)
    assert scores["pck_0.1"] < 0.8
    assert scores["colours"] == 0


def test_the_judge_reads_how_far_a_mouth_is_open() -> None:
    scene = next(evaluation_scenes(9))
    drive = Drive(scene.drive.body, np.linspace(0.2, 1, 9, dtype=np.float32))
    assert np.abs(openings(render(scene.colors, drive), drive) - drive.mouth).max() < 0.1


def test_a_driving_folder_has_the_files_of_the_preprocessing(tmp_path: Path) -> None:
    write_driving(tmp_path, training_scene(1, 5), replaced=True)
    assert {path.name for path in tmp_path.iterdir()} == {
        "src_pose.mp4", "src_face.mp4", "src_bg.mp4", "src_mask.mp4", "src_ref.png",
    }  # fmt: skip
    face = probe_video(tmp_path / "src_face.mp4")
    assert (face.width, face.height) == (FACE_SIZE, FACE_SIZE)
    assert EVALUATION_FRAMES == 25
