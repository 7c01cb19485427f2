"""Metrics of frames against closed forms: translations with their exact flow, still clips, known differences."""

from collections.abc import Callable

import numpy as np
import pytest

from selfforcing_unianimate.metrics import METRICS, evaluate_clip
from selfforcing_unianimate.metrics.fidelity import psnr, ssim
from wan_core import RequestError
from wan_core.metrics import Flow, Pixels, farneback, interval
from wan_core.metrics.temporal import (
    drift,
    flow_difference,
    luminance_flicker,
    pair_error,
    seam_ratio,
    steadiness,
    visible_pixels,
    warped,
)

from .test_pose_metrics import walker

SIDE = 32


def noise(frames: int = 1, side: int = SIDE, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (frames, side, side, 3), dtype=np.uint8)


def panned(frames: int, step: int = 2) -> np.ndarray:
    """A picture that moves ``step`` pixels to the left in each frame."""
    wide = noise(1, side=SIDE + step * frames)[0]
    return np.stack([wide[:SIDE, step * index : step * index + SIDE] for index in range(frames)])


def constant(x: float, y: float = 0.0) -> Flow:
    return np.full((SIDE, SIDE, 2), (x, y), dtype=np.float32)


def exact(frames: np.ndarray, step: int = 2) -> Callable[[Pixels, Pixels], Flow]:
    """The flow between any two frames of :func:`panned`."""

    def flow(first: Pixels, second: Pixels) -> Flow:
        places = [next(i for i, frame in enumerate(frames) if (frame == each).all()) for each in (first, second)]
        return constant(-step * (places[1] - places[0]))

    return flow


def still(first: Pixels, second: Pixels) -> Flow:
    return constant(0)


def test_a_translation_with_its_flow_has_no_warping_error() -> None:
    frames = panned(9)
    steady = steadiness(frames, exact(frames))
    assert steady.warp_error == 0
    assert steady.warp_error_long == 0
    assert len(steady.warp_errors) == 8
    assert steady.flicker is None  # everything moves
    assert steady.luminance_flicker is None


def test_every_fourth_frame_is_compared_with_the_first() -> None:
    frames = np.full((10, SIDE, SIDE, 3), 100, dtype=np.uint8)
    frames[[1, 2, 3, 5, 6, 7, 9]] += 51
    steady = steadiness(frames, still)
    assert steady.warp_error_long == 0
    assert steady.warp_errors == pytest.approx([0.04, 0, 0, 0.04, 0.04, 0, 0, 0.04, 0.04])


def test_the_warping_error_is_the_mean_square_of_what_differs() -> None:
    first = np.full((SIDE, SIDE, 3), 100, dtype=np.uint8)
    everywhere = np.ones((SIDE, SIDE), dtype=bool)
    assert pair_error(first, first + 51, constant(0), everywhere) == pytest.approx(0.2**2)
    half = everywhere.copy()
    half[:, : SIDE // 2] = False
    second = first.copy()
    second[:, : SIDE // 2] += 51
    assert pair_error(first, second, constant(0), half) == 0
    assert pair_error(first, second, constant(0), everywhere) == pytest.approx(0.2**2 / 2)
    assert pair_error(first, second, constant(0), ~everywhere) is None


def test_warping_lies_between_pixels() -> None:
    ramp = np.tile(np.arange(SIDE, dtype=np.float64)[None, :, None], (SIDE, 1, 3))
    back, inside = warped(ramp, constant(1.25, 0.5))
    assert back[:-1, :-2] == pytest.approx(ramp[:-1, :-2] + 1.25)
    assert inside[:-1, :-2].all()
    assert not inside[:, -1].any()
    assert not inside[-1].any()


def test_pixels_that_leave_the_picture_are_not_visible() -> None:
    visible = visible_pixels(constant(-3), constant(3))
    assert not visible[:, :3].any()
    assert visible[:, 3:].all()


@pytest.mark.parametrize(("gap", "hidden"), [(0.71, False), (0.72, True)])
def test_flows_that_do_not_return_hide_pixels(gap: float, hidden: bool) -> None:
    # |F + B|^2 = gap^2 = 0.504 or 0.518 against 0.01 * (|F|^2 + |B|^2) + 0.5 = 0.511, with F of length 1.
    visible = visible_pixels(constant(1), constant(-1 + gap))
    assert visible[:, :-1].any() != hidden


@pytest.mark.parametrize(("step", "hidden"), [(0.04, False), (0.05, True)])
def test_borders_of_motion_are_hidden(step: float, hidden: bool) -> None:
    forward = constant(0)  # |grad u|^2 = step^2 against 0.002
    forward[:, SIDE // 2 :, 0] = step
    visible = visible_pixels(forward, -forward)
    assert visible[:, SIDE // 2 - 1].any() != hidden
    assert visible[:, : SIDE // 2 - 1].all()


def test_a_still_clip_is_perfectly_steady() -> None:
    frames = np.repeat(noise(), 9, axis=0)
    steady = steadiness(frames, still)
    assert (steady.warp_error, steady.warp_error_long, steady.flicker) == (0, 0, 1)
    assert steady.luminance_flicker == pytest.approx(0, abs=1e-9)
    assert seam_ratio(steady.warp_errors, [5]) is None
    assert steadiness(frames, farneback).warp_error == pytest.approx(0, abs=1e-5)


def test_flicker_is_vbench_s_share_of_the_mean_difference() -> None:
    frames = np.stack([np.full((SIDE, SIDE, 3), 100 + 10 * (index % 2), dtype=np.uint8) for index in range(5)])
    steady = steadiness(frames, still)
    assert steady.flicker == pytest.approx((255 - 10) / 255)
    assert steady.luminance_flicker == pytest.approx(np.std([-20, 20, -20]))


def test_a_ramp_of_light_is_no_flicker() -> None:
    frames = np.stack([np.full((SIDE, SIDE, 3), 100 + 3 * index, dtype=np.uint8) for index in range(6)])
    assert luminance_flicker(frames, np.ones((SIDE, SIDE), dtype=bool)) == pytest.approx(0, abs=1e-9)
    assert luminance_flicker(frames[:3], np.ones((SIDE, SIDE), dtype=bool)) is None


def test_the_seam_ratio_compares_borders_of_blocks_with_their_insides() -> None:
    assert seam_ratio([0.1, 0.1, 0.4, 0.1, None], [3]) == pytest.approx(4)
    assert seam_ratio([0.1, 0.1], [1, 2]) is None
    assert seam_ratio([0.1, 0.1], [9]) is None
    assert seam_ratio([], [1]) is None


def test_drift_is_the_change_of_means_and_deviations() -> None:
    frames = np.full((6, SIDE, SIDE, 3), 100, dtype=np.uint8)
    frames[3:] += 12
    frames[3:, : SIDE // 2] += 8
    found = drift(frames, 3)
    assert found is not None
    assert (found.mean, found.contrast) == (pytest.approx(16), pytest.approx(4))
    assert drift(frames, 4) is None


def test_tof_is_the_difference_of_flows() -> None:
    frames, truth = panned(4), panned(4, step=3)
    flows = {True: constant(-2), False: constant(-3, 1)}

    def flow(first: Pixels, second: Pixels) -> Flow:
        return flows[any((first == frame).all() for frame in frames[:-1]) and not (second == truth[1]).all()]

    assert flow_difference(frames[:2], truth[1:3], flow) == pytest.approx(2)
    assert flow_difference(frames[:1], truth[:1], flow) is None


def test_psnr_is_that_of_the_mean_square() -> None:
    frames = np.full((2, SIDE, SIDE, 3), 100, dtype=np.uint8)
    assert psnr(frames, frames + 10) == pytest.approx(10 * np.log10(255**2 / 100))
    assert psnr(frames, frames) == 99
    assert psnr(frames[:0], frames[:0]) is None


def test_ssim_of_even_grey_is_its_term_of_luminance() -> None:
    frames = np.full((2, SIDE, SIDE, 3), 100, dtype=np.uint8)
    c1 = (0.01 * 255) ** 2
    assert ssim(frames, frames + 50) == pytest.approx((2 * 100 * 150 + c1) / (100**2 + 150**2 + c1))
    assert ssim(noise(2), noise(2)) == pytest.approx(1)


def test_ssim_of_an_inverted_picture_is_negative_structure() -> None:
    # Around a mean of 127.5, x and 255 - x have the same mean and variance, and covariance -variance.
    grey = np.repeat(noise()[..., :1] // 2 + 64, 3, axis=3)
    value = ssim(grey, 255 - grey)
    assert value is not None
    assert -1 < value < -0.9
    assert ssim(noise(1, side=10), noise(1, side=10)) is None


def test_one_window_is_the_weighted_formula() -> None:
    x, y = noise(1, side=11), noise(1, side=11, seed=1)
    offsets = np.arange(11) - 5
    weights = np.exp(-(offsets[:, None] ** 2 + offsets[None] ** 2) / (2 * 1.5**2))
    weights /= weights.sum()
    a, b = (each[0] @ (0.299, 0.587, 0.114) for each in (x, y))
    mean_a, mean_b = (weights * a).sum(), (weights * b).sum()
    var_a, var_b = (weights * (a - mean_a) ** 2).sum(), (weights * (b - mean_b) ** 2).sum()
    covariance = (weights * (a - mean_a) * (b - mean_b)).sum()
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    expected = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    expected /= (mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2)
    assert ssim(x, y) == pytest.approx(expected)


def test_farneback_finds_a_pan() -> None:
    rows, columns = np.mgrid[:64, :80]
    wave = 127 + 60 * np.sin(columns / 5) + 60 * np.cos(rows / 6)
    wide = np.repeat(wave[..., None], 3, axis=2).astype(np.uint8)
    flow = farneback(wide[:, :64], wide[:, 2:66])
    assert flow.shape == (64, 64, 2)
    assert np.median(flow[16:-16, 16:-16], axis=(0, 1)) == pytest.approx([-2, 0], abs=0.1)


def test_a_clip_has_every_metric_by_name() -> None:
    frames = panned(9)
    target = walker(9)
    values = evaluate_clip(frames, target, target, truth=frames, block_starts=[0, 5], flow=exact(frames))
    assert set(values) == set(METRICS)
    assert (values["psnr"], values["ssim"], values["tof"]) == (99, pytest.approx(1), 0)
    assert set(evaluate_clip(frames[:1])) < set(METRICS)
    assert set(evaluate_clip(frames[:1]).values()) == {None}


def test_target_joints_outside_of_the_frames_do_not_count() -> None:
    target = walker(3)  # a person far larger than the frames, of whom nothing is inside
    assert evaluate_clip(noise(3), target, target)["missing_rate"] is None
    assert evaluate_clip(noise(3, side=500), target, target)["missing_rate"] == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"frames": np.zeros((3, 8, 8), dtype=np.uint8)}, r"a clip is \[T, H, W, 3\] of uint8"),
        ({"frames": np.zeros((3, 8, 8, 3))}, "of float64"),
        ({"frames": np.zeros((0, 8, 8, 3), dtype=np.uint8)}, r"got \[0, 8, 8, 3\]"),
        ({"truth": noise(3, side=8)}, "both must agree"),
        ({"found": walker(2)}, "2 detected poses for 3 frames"),
        ({"target": walker(2)}, "poses of 2 and 3 frames"),
        ({"target": None}, "give both, or neither"),
    ],
)
def test_what_does_not_fit_together_is_refused(change: dict[str, object], message: str) -> None:
    given = {"frames": noise(3), "target": walker(3), "found": walker(3), "truth": None, **change}
    with pytest.raises(RequestError, match=message):
        evaluate_clip(**given)  # type: ignore[arg-type]


def test_a_bootstrap_is_the_same_for_the_same_seed_and_another_for_another() -> None:
    values = [*np.random.default_rng(0).normal(size=20)]
    assert interval(values, seed=3) == interval(values, seed=3)
    assert interval(values, seed=3) != interval(values, seed=4)


def test_a_bootstrap_covers_the_mean_about_as_often_as_it_says() -> None:
    random = np.random.default_rng(1)
    hits = 0
    for seed in range(200):
        found = interval(random.normal(size=40), seed=seed, resamples=300, level=0.9)
        assert found is not None
        hits += found.low <= 0 <= found.high  # type: ignore[operator]
    assert 0.82 < hits / 200 < 0.96


def test_a_bootstrap_is_as_wide_as_the_normal_of_many_clips() -> None:
    found = interval([0.0, 1.0] * 200)
    assert found is not None
    error = 0.5 / np.sqrt(400)
    assert (found.low, found.high) == (
        pytest.approx(0.5 - 1.96 * error, abs=0.004), pytest.approx(0.5 + 1.96 * error, abs=0.004)
    )  # fmt: skip


def test_a_bootstrap_of_equal_values_is_a_point_and_of_one_clip_none() -> None:
    found = interval([0.5] * 7)
    assert found is not None
    assert (found.mean, found.low, found.high, found.count) == (0.5, 0.5, 0.5, 7)
    single = interval([None, 2.0, None])
    assert single is not None
    assert (single.mean, single.low, single.high, single.count) == (2.0, None, None, 1)
    assert interval([None, None]) is None
    assert interval([]) is None


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        ([1.0, float("nan")], {}, "NaN or infinity"),
        ([1.0], {"resamples": 10}, "100 resamples or more"),
        ([1.0], {"level": 1.0}, "level in 0 to 1"),
    ],
)
def test_a_bootstrap_of_nonsense_is_refused(values: list[float], options: dict[str, float], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        interval(values, **options)  # type: ignore[arg-type]
