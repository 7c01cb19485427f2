"""Metrics of poses against closed forms: the same, shifted, turned, delayed and missing persons."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from selfforcing_unianimate.metrics import Keypoints
from selfforcing_unianimate.metrics import pose as metrics
from selfforcing_unianimate.metrics.clip import pose_metrics
from selfforcing_unianimate.metrics.keypoints import body_keypoints
from wan_core import RequestError

from .people import person

WIDTH, HEIGHT = 400, 500
PERFECT = {
    "pck_0.05": 1.0, "pck_0.1": 1.0, "pck_0.2": 1.0, "pckh_0.5": 1.0, "oks": 1.0, "oks_ap": 1.0, "missing_rate": 0.0,
    "akd": 0.0, "akd_relative": 0.0, "limb_angle": 0.0, "jitter": 0.0, "velocity_correlation": 1.0, "best_lag": 0,
}  # fmt: skip


def walker(frames: int = 9, hidden: tuple[int, ...] = ()) -> Keypoints:
    """A person who swings to and fro, with a box of 158 x 350 pixels."""
    keypoints = body_keypoints(person(frames, hidden=hidden), WIDTH, HEIGHT)
    return moved(keypoints, np.sin(np.arange(frames) / 2)[:, None] * (20.0, 5.0))


def moved(keypoints: Keypoints, by: np.ndarray) -> Keypoints:
    """Shifted by (x, y), or by one shift for each frame [T, 2]."""
    return replace(keypoints, points=keypoints.points + np.broadcast_to(by, (len(keypoints), 2))[:, None])


def without(keypoints: Keypoints, frames: slice, joints: list[int]) -> Keypoints:
    scores = keypoints.scores.copy()
    scores[frames, joints] = 0
    return replace(keypoints, scores=scores)


def nobody(frames: int = 9) -> Keypoints:
    return Keypoints(np.full((frames, 18, 2), np.nan), np.zeros((frames, 18)))


def box(keypoints: Keypoints) -> tuple[float, float]:
    width, height = metrics.person_boxes(keypoints)
    return float(width[0]), float(height[0])


def test_the_same_person_is_perfect() -> None:
    assert pose_metrics(walker(), walker()) == pytest.approx(PERFECT, abs=1e-9)


def test_a_shift_is_the_distance_and_nothing_else() -> None:
    target = walker()
    found = moved(target, np.array([3.0, 4.0]))
    values = pose_metrics(target, found)
    assert values["akd"] == pytest.approx(5)
    assert values["akd_relative"] == pytest.approx(5 / max(box(target)))
    for name in ("limb_angle", "jitter", "missing_rate", "best_lag"):
        assert values[name] == pytest.approx(0, abs=1e-9)
    assert values["velocity_correlation"] == pytest.approx(1)


def test_pck_changes_where_the_distance_is_the_share_of_the_box() -> None:
    target = walker()
    length = max(box(target))
    assert metrics.pck(target, moved(target, np.array([0.1 * length - 0.01, 0])), 0.1) == 1
    assert metrics.pck(target, moved(target, np.array([0.1 * length + 0.01, 0])), 0.1) == 0
    head = float(np.linalg.norm(target.points[0, 0] - target.points[0, 1]))
    assert metrics.pckh(target, moved(target, np.array([0.5 * head - 0.01, 0]))) == 1
    assert metrics.pckh(target, moved(target, np.array([0.5 * head + 0.01, 0]))) == 0


# COCO's sigmas by OpenPose's numbers of the joints, right and left.
SIGMAS = {
    (0,): 0.026, (14, 15): 0.025, (16, 17): 0.035, (2, 5): 0.079, (3, 6): 0.072, (4, 7): 0.062, (8, 11): 0.107,
    (9, 12): 0.087, (10, 13): 0.089,
}  # fmt: skip


@pytest.mark.parametrize("joints", SIGMAS)
def test_oks_is_the_mean_of_gaussians_with_the_sigmas_of_coco(joints: tuple[int, ...]) -> None:
    target = walker(1)
    width, height = box(target)
    for joint in joints:
        points = target.points.copy()
        points[:, joint, 0] += 6
        expected = 16 + np.exp(-(6.0**2) / (2 * width * height * (2 * SIGMAS[joints]) ** 2))
        assert metrics.oks(target, replace(target, points=points)) == pytest.approx(expected / 17)


def test_the_neck_has_no_part_in_oks() -> None:
    target = walker()
    points = target.points.copy()
    points[:, 1] += 1000
    assert metrics.oks(target, replace(target, points=points)) == 1


def test_oks_ap_is_coco_s_area_under_precision_and_recall() -> None:
    target = walker(10)
    assert metrics.oks_ap(target, without(target, slice(0, 5), [*range(18)])) == pytest.approx(51 / 101)
    wrong = moved(target, np.array([[1e4, 0]] * 5 + [[0, 0]] * 5))
    sure = replace(wrong, scores=wrong.scores * np.linspace(0.5, 1, 10)[:, None])
    unsure = replace(wrong, scores=wrong.scores * np.linspace(1, 0.5, 10)[:, None])
    assert metrics.oks_ap(target, sure) == pytest.approx(51 / 101)  # right ones rank first: precision 1
    assert metrics.oks_ap(target, unsure) == pytest.approx(51 / 101 * 0.5)  # wrong ones first: at most a half


@pytest.mark.parametrize(("missing", "share"), [(3, 0.7), (5, 0.5), (1, 0.9), (9, 0.0)])
def test_oks_ap_counts_thresholds_from_a_half_to_95_percent(missing: int, share: float) -> None:
    # Of 17 joints, so many are not found: OKS is 14/17 = 0.82, above 7 of the 10 thresholds, and so on.
    target = walker(4)
    found = without(target, slice(None), [0, 2, 3, 4, 5, 6, 7, 8, 9][:missing])
    assert metrics.oks_ap(target, found) == pytest.approx(share)


def test_missing_joints_are_wrong_and_have_no_distance() -> None:
    target = walker()
    found = without(target, slice(None), [4, 7, 10])
    values = pose_metrics(target, found)
    assert values["missing_rate"] == pytest.approx(3 / 18)
    assert values["pck_0.1"] == pytest.approx(15 / 18)
    assert values["oks"] == pytest.approx(14 / 17)
    assert values["akd"] == 0


def test_what_the_target_does_not_show_does_not_count() -> None:
    target = without(walker(), slice(None), [4])
    points = walker().points.copy()
    points[:, 4] += 500
    assert pose_metrics(target, replace(walker(), points=points)) == pytest.approx(PERFECT, abs=1e-9)


def test_joints_outside_of_the_picture_do_not_count() -> None:
    keypoints = moved(body_keypoints(person(2), WIDTH, HEIGHT), np.array([-170.0, 0]))
    inside = keypoints.inside(WIDTH, HEIGHT)
    assert inside.seen.sum() < keypoints.seen.sum()
    assert (inside.points[inside.seen] >= 0).all()


@pytest.mark.parametrize("degrees", [1.0, 90.0, 179.0])
def test_a_turn_is_the_angle_of_every_limb(degrees: float) -> None:
    target = walker()
    turn = np.radians(degrees)
    matrix = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    assert metrics.limb_angle(target, replace(target, points=3 * target.points @ matrix.T)) == pytest.approx(degrees)


def test_jitter_is_the_second_difference_over_the_box() -> None:
    target = walker()
    by = np.where(np.arange(9) % 2, 1.0, -1.0)[:, None] * (2.0, 0.0)
    assert metrics.jitter(target, moved(target, by)) == pytest.approx(8 / max(box(target)))


@pytest.mark.parametrize("lag", [-3, -1, 0, 2, 4])
def test_a_delay_is_the_best_lag(lag: int) -> None:
    path = np.random.default_rng(0).normal(size=(40, 2)).cumsum(axis=0) * 5
    still = body_keypoints(person(30), WIDTH, HEIGHT)
    target, found = moved(still, path[5:35]), moved(still, path[5 - lag : 35 - lag])
    assert metrics.best_lag(target, found) == lag
    assert metrics.velocity_correlation(target, found, lag) == pytest.approx(1, abs=1e-3)


def test_motion_backwards_has_correlation_minus_one() -> None:
    still = replace(walker(), points=np.tile(walker().points[:1], (9, 1, 1)))
    path = np.sin(np.arange(9.0))[:, None] * (10.0, 3.0)
    assert metrics.velocity_correlation(moved(still, path), moved(still, -path)) == pytest.approx(-1)


def test_a_pose_that_stands_still_has_no_correlation_and_no_lag() -> None:
    still = replace(walker(), points=np.tile(walker().points[:1], (9, 1, 1)))
    values = pose_metrics(still, still)
    assert (values["velocity_correlation"], values["best_lag"]) == (None, None)
    assert values["jitter"] == 0


def test_nobody_found_is_all_missing_and_never_a_distance() -> None:
    values = pose_metrics(walker(), nobody())
    zero = {name: 0.0 for name in ("pck_0.05", "pck_0.1", "pck_0.2", "pckh_0.5", "oks", "oks_ap")}
    assert values == {**dict.fromkeys(PERFECT), **zero, "missing_rate": 1.0}


def test_without_a_target_joint_nothing_is_measured() -> None:
    assert pose_metrics(nobody(), walker()) == dict.fromkeys(PERFECT)


def test_one_frame_has_no_motion() -> None:
    values = pose_metrics(walker(1), walker(1))
    none = {name for name, value in values.items() if value is None}
    assert none == {"jitter", "velocity_correlation", "best_lag"}


def test_a_single_joint_has_no_box_to_measure_by() -> None:
    target = without(walker(), slice(None), [joint for joint in range(18) if joint != 4])
    values = pose_metrics(target, moved(target, np.array([3.0, 4.0])))
    assert (values["pck_0.1"], values["akd_relative"], values["jitter"]) == (None, None, None)
    assert values["akd"] == pytest.approx(5)
    assert metrics.oks(target, target) == 1


@pytest.mark.parametrize("measure", [metrics.pck, metrics.oks, metrics.jitter, metrics.best_lag, metrics.missing_rate])
def test_poses_of_different_lengths_are_refused(measure: Callable[[Keypoints, Keypoints], object]) -> None:
    with pytest.raises(RequestError, match="poses of 9 and 8 frames"):
        measure(walker(9), walker(8))


def test_wrong_keypoints_are_refused() -> None:
    with pytest.raises(RequestError, match=r"keypoints are \[T, 18, 2\]"):
        Keypoints(np.zeros((3, 17, 2)), np.ones((3, 17)))
    with pytest.raises(RequestError, match="NaN or infinity"):
        Keypoints(np.full((3, 18, 2), np.nan), np.ones((3, 18)))
