"""Poses as arrays: post-processing, retargeting in closed form, drawing."""

from dataclasses import replace

import numpy as np
import pytest

from selfforcing_unianimate.alignment import align
from selfforcing_unianimate.body_points import Crop, decode_positions, in_picture, padded_crop, warp_matrix, with_aspect
from selfforcing_unianimate.drawing import CANVAS, draw, model_picture
from selfforcing_unianimate.keypoints import Poses, poses_of
from selfforcing_unianimate.person_boxes import letterbox, num_cells, person_boxes
from wan_core import BackendError

from .people import person

BOTH = pytest.mark.parametrize("validated", [False, True])


@BOTH
def test_a_motion_in_its_own_proportions_stays(validated: bool) -> None:
    driving = person(4)
    aligned = align(driving, driving, validated=validated)
    assert np.allclose(aligned.body, driving.body)
    assert np.allclose(aligned.hands, driving.hands)
    assert np.allclose(aligned.faces, driving.faces)


@BOTH
def test_a_scaled_and_moved_reference_scales_and_moves_every_frame(validated: bool) -> None:
    driving = person(4)
    aligned = align(driving, person(scale=0.5, at=(0.2, 0.1)), validated=validated)
    assert np.allclose(aligned.body, driving.body * 0.5 + (0.2, 0.1))
    assert np.allclose(aligned.hands, driving.hands * 0.5 + (0.2, 0.1))


@BOTH
def test_a_longer_forearm_moves_its_hand_alone(validated: bool) -> None:
    driving = person(3)
    body = driving.body[:1].copy()
    body[0, 4] = 2 * body[0, 4] - body[0, 3]
    aligned = align(driving, replace(driving[:1], body=body), validated=validated)
    move = driving.body[:, 4] - driving.body[:, 3]
    assert np.allclose(aligned.body[:, 4], driving.body[:, 4] + move)
    assert np.allclose(aligned.hands[:, 1], driving.hands[:, 1] + move[:, None])
    assert np.allclose(aligned.hands[:, 0], driving.hands[:, 0])
    assert np.allclose(np.delete(aligned.body, 4, axis=1), np.delete(driving.body, 4, axis=1))


def test_validated_joints_that_were_not_seen_stay_hidden_and_move_nothing() -> None:
    driving, reference = person(3, hidden=(3, 10)), person(scale=0.5, hidden=(6,))
    aligned = align(driving, reference, validated=True)
    assert (aligned.body[:, [3, 10]] == -1).all()
    # Scaled by the torso; limbs that either side lacks keep that scale, as the others do anyway.
    seen = [joint for joint in range(20) if joint not in (3, 10)]
    assert np.allclose(aligned.body[:, seen], driving.body[:, seen] * 0.5)
    wild = align(driving, reference)
    assert not np.allclose(wild.body[:, 4], driving.body[:, 4] * 0.5)


@pytest.mark.parametrize("hidden", [(2,), (8,), (1,), tuple(range(20))])
def test_validated_without_what_a_ratio_needs_it_is_one(hidden: tuple[int, ...]) -> None:
    driving = person(2, hidden=hidden)
    aligned = align(driving, person(), validated=True)
    assert np.allclose(aligned.body, driving.body)
    assert np.isfinite(align(driving, person(scale=3.0), validated=True).body).all()


def test_a_person_seen_from_behind_is_not_mirrored_when_validated() -> None:
    driving, mirrored = person(2), person()
    mirrored.body[..., 0] = 1 - mirrored.body[..., 0]
    aligned = align(driving, mirrored, validated=True)
    assert (aligned.body[:, 5, 0] > aligned.body[:, 2, 0]).all()
    assert (align(driving, mirrored).body[:, 5, 0] < 0.5).all()


def test_limbs_without_a_length_are_no_numbers_unless_validated() -> None:
    flat = person(2)
    flat.body[:, 5] = flat.body[:, 2]
    assert not np.isfinite(align(flat, person()).body).all()
    assert np.isfinite(align(flat, person(), validated=True).body).all()


def test_toes_need_both_of_their_points() -> None:
    points, scores = np.full((1, 133, 2), 50.0), np.ones((1, 133))
    scores[0, 18] = 0.1
    poses = poses_of(points, scores, 100, 200)
    assert poses.subset[0, 18] == -1
    assert (poses.body[0, 18] == -1).all()
    assert poses.subset[0, 19] == 19
    assert poses.body[0, 19].tolist() == [0.5, 0.25]
    assert poses.subset[0, 1] == 1
    assert poses.has_person.tolist() == [True]


def test_a_crop_and_its_points_go_back_to_the_picture() -> None:
    crop = with_aspect(padded_crop(np.array([10.0, 20.0, 110.0, 60.0], dtype=np.float32)))
    assert crop.sides[0] / crop.sides[1] == pytest.approx(288 / 384)
    point = np.array([33.0, 44.0, 1.0])
    inside = warp_matrix(crop) @ point
    assert in_picture(inside[None].astype(np.float32), crop)[0] == pytest.approx(point[:2], abs=1e-3)
    tall = with_aspect(Crop(np.zeros(2, np.float32), np.array([10.0, 400.0], np.float32)))
    assert tall.sides.tolist() == pytest.approx([300.0, 400.0])


def test_positions_without_a_positive_score_are_hidden() -> None:
    along = np.full((1, 2, 8), -1.0, dtype=np.float32)
    along[0, 1, 6] = 0.5
    points, scores = decode_positions(along, along)
    assert points.tolist() == [[[-0.5, -0.5], [3.0, 3.0]]]
    assert scores.tolist() == [[-1.0, 0.5]]


def test_a_hostile_output_gives_no_box() -> None:
    output = np.full((1, num_cells(), 85), np.nan, dtype=np.float32)
    assert person_boxes(output, 1.0).shape == (0, 4)
    output[:] = 1e6
    assert np.isfinite(person_boxes(output, 1.0)).all()


def test_a_letterbox_keeps_the_aspect() -> None:
    square, ratio = letterbox(np.full((100, 200, 3), 7, dtype=np.uint8))
    assert ratio == 3.2
    assert (square[:, :320] == 7).all()
    assert (square[:, 320:] == 114).all()
    assert letterbox(np.zeros((3, 5000, 3), dtype=np.uint8))[0].shape == (3, 640, 640)


def test_a_network_sees_the_channels_exchanged() -> None:
    only_shoulder = person(hidden=(0, 1, *range(3, 20)))
    hands_away = replace(only_shoulder, hands=np.full((1, 2, 21, 2), -1.0))
    drawn = draw(hands_away, *CANVAS)
    assert drawn[230, 204].tolist() == [255, 170, 0]  # joint 2, at (0.4, 0.3) of 512 x 768
    seen = model_picture(hands_away, *CANVAS)
    assert np.array_equal(seen, drawn[:, :, ::-1])
    assert model_picture(hands_away, 480, 832).shape == (832, 480, 3)


def test_nobody_is_drawn_black() -> None:
    nobody = person(hidden=tuple(range(20)))
    nobody = Poses(nobody.body, nobody.subset, nobody.faces * 0 - 1, nobody.hands * 0 - 1, nobody.scores)
    assert not draw(nobody, 64, 96, with_face=True).any()


def test_drawing_without_opencv_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "cv2", None)
    with pytest.raises(BackendError, match=r"opencv-python-headless.*selfforcing-unianimate\[pose\]"):
        draw(person(), 64, 96)
