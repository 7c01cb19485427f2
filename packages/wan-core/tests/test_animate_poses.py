"""Persons of Wan-Animate's preprocessing: found, read from heat maps, put into other proportions."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from wan_core.animate.detect import PersonDetector, choose_person, decode_detections, network_input
from wan_core.animate.keypoints import NUM_DETECTED, NUM_FACE, PosePoints, Skeleton
from wan_core.animate.pose import PoseCrop, PoseEstimator, crop_of, decode_heatmaps, normalised_crop
from wan_core.animate.pose import network_input as pose_input
from wan_core.animate.proportions import Figure, Shown, bone_ratios, edit_ratio, repaired, shown_part, size_ratio
from wan_core.animate.retarget import lengthened, moved_hands, plan_retargeting, retarget
from wan_core.errors import CheckpointError, MediaError

from .animate_networks import write_constant


def detections(*rows: tuple[float, ...]) -> np.ndarray:
    return np.array([rows], dtype=np.float32)


def test_boxes_are_in_whole_pixels_of_the_picture_the_surest_first() -> None:
    found = decode_detections(detections((0, 0, 64, 64, 0.3, 0), (320, 320, 640, 640.5, 0.9, 2)), 320, 1280)
    assert found is not None
    assert found[:, :4].tolist() == [[640, 160, 1280, 320], [0, 0, 128, 32]]
    assert found[:, 4:] == pytest.approx(np.array([[0.9, 2], [0.3, 0]]))


def test_weak_and_overlapping_boxes_go() -> None:
    same = [(10.0, 10.0, 90.0, 90.0, score, 0.0) for score in (0.5, 0.6, 0.05, 0.01)]
    found = decode_detections(detections(*same, (1e9, 0, 2e9, 5, 0.9, 0)), 640, 640)
    assert found is not None
    assert found[:, 4] == pytest.approx([0.6])


def test_the_layout_of_yolov8_gives_the_same_boxes() -> None:
    output = np.zeros((1, 84, 50), dtype=np.float32)
    output[0, :4, 3] = 100, 200, 50, 60
    output[0, 4, 3], output[0, 10, 3] = 0.7, 0.2
    found = decode_detections(output, 640, 640)
    assert found is not None
    assert found[0] == pytest.approx([75, 170, 125, 230, 0.7, 0])
    assert (decode_detections(output.transpose(0, 2, 1), 640, 640) == found).all()
    assert decode_detections(np.zeros((1, 7, 9), dtype=np.float32), 640, 640) is None


def test_the_largest_person_is_taken() -> None:
    rows = np.array([[0, 0, 9, 99, 0.9, 5], [0, 0, 50, 60, 0.9, 0], [0, 0, 70, 90, 0.6, 0], [0, 0, 30, 30, 0.3, 0]])
    person = choose_person(rows, 100, 100)
    assert person.box.tolist() == [0, 0, 70, 90, 0.6]
    assert person.num_persons == 2


def test_a_wide_box_that_is_far_too_short_is_passed_over() -> None:
    tall, later = [0, 0, 10, 100, 0.9, 0], [0, 0, 39, 39, 0.8, 0]
    assert choose_person(np.array([tall, later]), 200, 200).box.tolist() == [0, 0, 10, 100, 0.9]
    assert choose_person(np.array([tall, [0, 0, 40, 40, 0.8, 0]]), 200, 200).box.tolist() == [0, 0, 40, 40, 0.8]


def test_without_a_person_the_whole_picture_is_looked_at() -> None:
    person = choose_person(np.zeros((0, 6)), 30, 40)
    assert person.box.tolist() == [0, 0, 40, 30, -1]
    assert person.num_persons == 0
    crop = crop_of(person.box, 30, 40)
    assert crop.centre.tolist() == [20, 15]
    assert (crop_of(np.array([5, 5, 14, 29, 0.9]), 30, 40).centre == crop.centre).all()


def test_the_detector_finds_what_its_network_says(tmp_path: Path) -> None:
    rows = np.zeros((1, 300, 6))
    rows[0, 7] = 64, 128, 320, 576, 0.8, 0
    detector = PersonDetector(write_constant(tmp_path / "yolo.onnx", (640, 640), rows), device="cpu")
    person = detector.find(np.zeros((320, 640, 3), dtype=np.uint8))
    assert person.box == pytest.approx([64, 64, 320, 288, 0.8])
    assert detector.providers == ("CPUExecutionProvider",)


def test_networks_with_other_outputs_are_refused(tmp_path: Path) -> None:
    detector = PersonDetector(write_constant(tmp_path / "a.onnx", (640, 640), np.zeros((1, 8, 5))), device="cpu")
    with pytest.raises(CheckpointError, match=r"a\.onnx is another network: its outputs are \[\[1, 8, 5\]\]"):
        detector.find(np.zeros((8, 8, 3), dtype=np.uint8))
    estimator = PoseEstimator(write_constant(tmp_path / "b.onnx", (256, 192), np.zeros((1, 17, 64, 48))), device="cpu")
    with pytest.raises(CheckpointError, match=r"b\.onnx is another network"):
        estimator.points(np.zeros((8, 8, 3), dtype=np.uint8), np.zeros(5))
    with pytest.raises(CheckpointError, match=r"missing; fetch it with 'wan download Wan-AI/Wan2.2-Animate-14B"):
        PersonDetector(tmp_path / "none.onnx")


def test_a_stretched_picture_is_seen_in_red_green_blue() -> None:
    picture = np.zeros((10, 30, 3), dtype=np.uint8)
    picture[..., 0] = 255
    assert (network_input(picture)[0, 0] == 1).all()
    assert not network_input(picture)[0, 1:].any()


def test_the_pose_network_sees_blue_first() -> None:
    picture = np.zeros((256, 192, 3), dtype=np.uint8)
    picture[..., 0] = 255
    seen = pose_input(picture, PoseCrop(np.array([96.0, 128.0]), np.array([0.96, 1.28])))
    assert np.allclose(seen[2], (1 - 0.406) / 0.225)
    assert np.allclose(seen[0], -0.485 / 0.229)


def test_what_is_outside_of_the_picture_is_black() -> None:
    crop = PoseCrop(np.array([500.0, 500.0]), np.array([0.96, 1.28]))
    assert normalised_crop(np.full((8, 8, 3), 255, dtype=np.uint8), crop).max() < 0


def peak(x: float, y: float) -> np.ndarray:
    rows, columns = np.mgrid[:64, :48]
    return np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / 8).astype(np.float32)


def test_a_peak_between_cells_is_found_there() -> None:
    crop = PoseCrop(np.array([24.0, 32.0]), np.array([48.0, 64.0]) / 200)  # a cell is a pixel
    points = decode_heatmaps(np.stack([peak(20.3, 30.6), peak(1.0, 5.0), np.full((64, 48), -0.5, np.float32)]), crop)
    assert points[0, :2] == pytest.approx([20.3, 30.6], abs=0.02)
    assert points[1, :2].tolist() == [1, 5]  # too near to the edge
    assert points[2].tolist() == [-1, -1, -0.5]


def test_the_estimator_reads_its_network(tmp_path: Path) -> None:
    maps = np.stack([peak(24.0, 32.0)] * NUM_DETECTED)[None]
    estimator = PoseEstimator(write_constant(tmp_path / "pose.onnx", (256, 192), maps), device="cpu")
    person = estimator.estimate(np.zeros((200, 300, 3), dtype=np.uint8), np.array([100, 50, 200, 150, 0.9]))
    assert person.body[:, :2] == pytest.approx(np.tile([150 / 300, 100 / 200], (20, 1)), abs=1e-3)
    assert estimator.providers == ("CPUExecutionProvider",)


# A standing body about the hips' middle, in shares of a frame of 100 x 200 pixels.
_BODY = np.array([
    (0, -0.45), (0, -0.35), (-0.12, -0.35), (-0.16, -0.2), (-0.2, -0.05), (0.12, -0.35), (0.16, -0.2), (0.2, -0.05),
    (-0.08, 0), (-0.08, 0.2), (-0.08, 0.4), (0.08, 0), (0.08, 0.2), (0.08, 0.4), (-0.02, -0.47), (0.02, -0.47),
    (-0.05, -0.46), (0.05, -0.46), (0.1, 0.42), (-0.1, 0.42),
])  # fmt: skip
_FINGERS = np.column_stack([np.linspace(0, 0.05, 21), np.linspace(0, 0.03, 21)])


def person(*, scale: float = 1.0, at: tuple[float, float] = (0.5, 0.5), missing: tuple[int, ...] = ()) -> PosePoints:
    body = np.column_stack([_BODY * scale + at, np.full(20, 0.9)])
    hands = [np.column_stack([_FINGERS * scale + body[wrist, :2], np.full(21, 0.8)]) for wrist in (4, 7)]
    body[list(missing)] = np.nan
    face = np.zeros((NUM_FACE, 3))
    return PosePoints(body=body, right_hand=hands[0], left_hand=hands[1], face=face, width=100, height=200)


def only(first: PosePoints, reference: PosePoints, edited: tuple[PosePoints, PosePoints] | None = None) -> Skeleton:
    return next(retarget(first, reference, [first], edited))


@pytest.mark.parametrize("lacking", [(), (10, 13)])
def test_a_motion_in_its_own_proportions_stays(lacking: tuple[int, ...]) -> None:
    driving = person()
    driving.body[list(lacking), 2] = 0.1  # not seen: the body is held at the neck
    found = only(driving, driving)
    shift = np.zeros((20, 2))
    shift[:, 1] = 0.01 * 200 if not lacking else 0  # a whole body is held between ankle and toe
    assert found.body[:, :2] == pytest.approx(driving.in_pixels().body[:, :2] + shift)
    assert (found.body[:, 2] == driving.body[:, 2]).all()


def test_a_reference_of_another_size_and_place_gets_every_frame() -> None:
    driving, reference = person(), person(scale=0.5, at=(0.3, 0.6))
    for each in (driving, reference):
        each.body[[10, 13], 2] = 0.1
    moved = person(at=(0.6, 0.5))
    frames = list(retarget(driving, reference, [driving, moved]))
    assert frames[0].body[:, :2] == pytest.approx(reference.in_pixels().body[:, :2], abs=0.2)
    # Sides of the reference are cut to whole pixels; a second frame keeps its distance from the first.
    assert frames[1].body[:, :2] - frames[0].body[:, :2] == pytest.approx(np.tile([5.0, 0.0], (20, 1)), abs=0.1)


def test_hands_go_where_wrists_go_and_change_names() -> None:
    driving = person()
    found = only(driving, person(at=(0.4, 0.5)))
    assert found.left_hand[0, :2].tolist() == np.trunc(found.body[4, :2] + 1e-9).tolist()
    assert found.right_hand[0, :2].tolist() == np.trunc(found.body[7, :2] + 1e-9).tolist()


def test_points_of_hands_that_are_not_seen_are_dropped() -> None:
    driving = person()
    driving.right_hand[3, 2] = 0.39
    dropped = only(driving, driving).left_hand[3]
    assert np.isnan(dropped[:2]).all()
    assert dropped[2] == 0


def test_hands_whose_roots_are_nearer_to_the_other_wrist_change_places() -> None:
    driving = person()
    exchanged = replace(driving, left_hand=driving.right_hand, right_hand=driving.left_hand)
    old = driving.in_pixels().body[:, :2]
    hands, crossed = moved_hands(driving, old, old, 1.0), moved_hands(exchanged, old, old, 1.0)
    # The terms of the roots stay with their places: each hand is off by the distance of the wrists.
    assert crossed[0][0, :2] == pytest.approx(hands[0][0, :2] + old[4] - old[7], abs=1)
    assert crossed[1][0, :2] == pytest.approx(hands[1][0, :2] + old[7] - old[4], abs=1)


def test_with_one_wrist_the_other_hand_alone_moves() -> None:
    driving = person()
    old = driving.in_pixels().body[:, :2]
    new = old + 10
    old[4] = np.nan
    driving.right_hand[0, 2] = 0.3
    first, second = moved_hands(driving, old, new, 1.0)
    assert first[1:, :2] == pytest.approx(driving.right_hand[1:, :2])
    assert first[0].tolist() == [-1, -1, 0]  # not seen, nor drawn
    assert second[0, :2].tolist() == [80, 100]


def test_sizes_are_measured_to_ankles_then_hips_then_not() -> None:
    tall, small = Figure.of(person()), Figure.of(person(scale=0.5))
    assert size_ratio(tall, small) == (pytest.approx(2.0), True)
    tall.points[10, 2] = 0.5
    tall.points[8:12:3, 1] = 0.275  # half the way from the nose to the hips
    assert size_ratio(tall, small) == (pytest.approx(1.0), True)
    tall.points[0] = np.nan
    assert size_ratio(tall.scaled(3.0), small) == (pytest.approx(3.0), False)


def test_the_part_that_is_seen_needs_scores_inside_the_frame() -> None:
    def part(index: int, column: int, value: float) -> Shown:
        figure = Figure.of(person())
        figure.points[index, column] = value
        return shown_part(figure)

    assert part(0, 2, 0.0) is Shown.FULL
    assert part(10, 1, 1.01) is Shown.THREE_QUARTERS
    assert part(13, 2, 0.39) is Shown.THREE_QUARTERS
    assert part(11, 0, np.nan) is Shown.FULL  # never alone: points are missing as a whole
    assert part(8, 2, 0.39) is Shown.HALF


def test_a_missing_hand_hangs_down_as_long_as_the_other_forearm() -> None:
    figure = repaired(Figure.of(person(missing=(4,))))
    assert figure.distance(3, 4) == pytest.approx(figure.distance(6, 7))
    assert figure.points[4, 0] == figure.points[3, 0]
    assert figure.points[4, 2] == 0.9


def test_what_hangs_on_a_missing_elbow_is_rebuilt_with_it() -> None:
    figure = repaired(Figure.of(person(missing=(3, 6))))
    torso = np.hypot(8, 70)
    for start, end in ((2, 3), (5, 6), (3, 4), (6, 7)):
        assert figure.distance(start, end) == pytest.approx(torso / 2)
    assert repaired(Figure.of(person(missing=(18, 19)))).distance(10, 19) == pytest.approx(torso)
    assert repaired(Figure.of(person(missing=(8, 18, 19)))).distance(13, 18) == pytest.approx(torso / 5)
    assert repaired(Figure.of(person(missing=(1, 3, 6)))).missing[[3, 4, 6, 7]].all()


def test_ratios_are_alike_on_both_sides_and_unknown_ones_those_of_the_shoulders() -> None:
    driving, reference = Figure.of(person()), Figure.of(person(missing=(17,)))
    reference.points[4] = 2 * reference.points[4] - reference.points[3]
    ratios = bone_ratios(driving, reference)
    assert ratios[3] == ratios[5] == pytest.approx(2.0)
    assert np.delete(ratios, [3, 5]) == pytest.approx(np.ones(17))
    without = bone_ratios(driving, Figure.of(person(missing=(5, 17))))
    assert without[[1, 5]] == pytest.approx([1.0, 1.0])  # of the other side
    assert without[16] == pytest.approx(0.0)  # the mean with an unknown ear, as in the release


def test_an_edit_is_measured_by_heads_and_shoulders() -> None:
    assert edit_ratio(Figure.of(person()), Figure.of(person(scale=0.5))) == pytest.approx(2.0)
    assert edit_ratio(Figure.of(person()), Figure.of(person(missing=(0, 2)))) == 1.0


def test_feet_are_at_most_half_as_long_as_shins() -> None:
    body = person().in_pixels().body[:, :2]
    body[19] = body[10] + (0, 30)
    ratios = np.ones(19)
    assert lengthened(body, ratios) == pytest.approx(body)
    limited = lengthened(body, ratios, limit_feet=True)
    assert limited[19] == pytest.approx(body[10] + (0, 20))
    assert np.delete(limited, 19, axis=0) == pytest.approx(np.delete(body, 19, axis=0))


def test_edited_persons_tell_the_proportions() -> None:
    driving, reference = person(), person()
    edited = person()
    edited.body[4] = 2 * edited.body[4] - edited.body[3]
    plain, helped = only(driving, reference), only(driving, reference, (person(), edited))
    assert helped.body[4, :2] == pytest.approx(2 * plain.body[4, :2] - plain.body[3, :2])
    assert np.delete(helped.body, [4, 7], axis=0) == pytest.approx(np.delete(plain.body, [4, 7], axis=0))


def test_without_shoulders_of_the_edited_the_body_keeps_its_lengths() -> None:
    driving = person()
    for each in (driving, (lacking := person(missing=(2, 5, 6, 7, 17)))):
        each.body[[10, 13], 2] = 0.1
    found = only(driving, driving, (lacking, lacking))
    # But for the ears, with the mean of a known and an unknown ratio.
    assert found.body[:16, :2] == pytest.approx(driving.in_pixels().body[:16, :2])
    assert found.left_hand[20, 0] - found.left_hand[0, 0] == pytest.approx(5, abs=1)


def test_points_that_one_person_lacks_are_dropped_everywhere() -> None:
    plan = plan_retargeting(person(missing=(17,)), person(missing=(14,)))
    skeleton = plan.apply(person())
    assert np.isnan(skeleton.body).any(axis=1).nonzero()[0].tolist() == [14, 17]


def test_a_person_without_a_neck_cannot_be_placed() -> None:
    with pytest.raises(MediaError, match="cannot be placed"):
        plan_retargeting(person(missing=(1, 8)), person())
