"""All metrics of one clip, and what is to be known of each."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from selfforcing_unianimate.metrics import pose
from selfforcing_unianimate.metrics.fidelity import psnr, ssim
from selfforcing_unianimate.metrics.keypoints import Frames, Keypoints
from wan_core import RequestError
from wan_core.metrics import OpticalFlow, drift, farneback, flow_difference, seam_ratio, steadiness

Value = float | None


@dataclass(frozen=True)
class Metric:
    """What a number says: its ``unit`` (empty for a share or a ratio), and which value is ``better``: higher, lower, or
    the number to be near."""

    unit: str
    better: str


METRICS: Mapping[str, Metric] = {
    "pck_0.05": Metric("", "higher"),
    "pck_0.1": Metric("", "higher"),
    "pck_0.2": Metric("", "higher"),
    "pckh_0.5": Metric("", "higher"),
    "oks": Metric("", "higher"),
    "oks_ap": Metric("", "higher"),
    "missing_rate": Metric("", "lower"),
    "akd": Metric("px", "lower"),
    "akd_relative": Metric("", "lower"),
    "limb_angle": Metric("degrees", "lower"),
    "jitter": Metric("", "lower"),
    "velocity_correlation": Metric("", "higher"),
    "best_lag": Metric("frames", "0"),
    "warp_error": Metric("", "lower"),
    "warp_error_long": Metric("", "lower"),
    "flicker": Metric("", "higher"),
    "luminance_flicker": Metric("levels", "lower"),
    "seam_ratio": Metric("", "1"),
    "mean_drift": Metric("levels", "lower"),
    "contrast_drift": Metric("levels", "lower"),
    "psnr": Metric("dB", "higher"),
    "ssim": Metric("", "higher"),
    "tof": Metric("px", "lower"),
}
"""Every key of :func:`evaluate_clip`; formulas and sources are with the functions."""

_POSE: Mapping[str, Callable[[Keypoints, Keypoints], Value]] = {
    "pck_0.05": lambda target, found: pose.pck(target, found, 0.05),
    "pck_0.1": lambda target, found: pose.pck(target, found, 0.1),
    "pck_0.2": lambda target, found: pose.pck(target, found, 0.2),
    "pckh_0.5": pose.pckh,
    "oks": pose.oks,
    "oks_ap": pose.oks_ap,
    "missing_rate": pose.missing_rate,
    "akd": pose.akd,
    "akd_relative": pose.akd_relative,
    "limb_angle": pose.limb_angle,
    "jitter": pose.jitter,
    "velocity_correlation": pose.velocity_correlation,
    "best_lag": pose.best_lag,
}


def pose_metrics(target: Keypoints, found: Keypoints) -> dict[str, Value]:
    """The metrics of :mod:`.pose` by name. Raises RequestError for different numbers of frames."""
    return {name: metric(target, found) for name, metric in _POSE.items()}


def evaluate_clip(
    frames: Frames,
    target: Keypoints | None = None,
    found: Keypoints | None = None,
    *,
    truth: Frames | None = None,
    block_starts: Collection[int] = (),
    flow: OpticalFlow = farneback,
) -> dict[str, Value]:
    """Metrics of a clip [T, H, W, 3] of bytes, by the names of METRICS; None where one cannot be measured.

    ``target`` and ``found`` are the wanted and the detected pose of every frame: with both, those of the pose are
    given; target joints outside of the picture do not count. ``truth`` is the wanted video, of the same shape: with it,
    those of fidelity are. ``block_starts`` are the frames at which blocks begin, 0 or not: with another one, the seams
    are measured, and drift is from the first block to frames as many at the end; without, from tenth to tenth. Raises
    RequestError for what does not fit together, BackendError without OpenCV.
    """
    count, height, width = _checked(frames, truth)
    values: dict[str, Value] = {}
    if (target is None) != (found is None):
        raise RequestError("a pose is measured between a wanted and a detected one; give both, or neither")
    if target is not None and found is not None:
        if len(found) != count:
            raise RequestError(f"there are {len(found)} detected poses for {count} frames; give one for each frame")
        values |= pose_metrics(target.inside(width, height), found)
    steady = steadiness(frames, flow)
    values |= {name: getattr(steady, name) for name in ("warp_error", "warp_error_long", "flicker")}
    values["luminance_flicker"] = steady.luminance_flicker
    starts = sorted(start for start in block_starts if 0 < start < count)
    if starts:
        values["seam_ratio"] = seam_ratio(steady.warp_errors, starts)
    colours = drift(frames, starts[0] if starts else max(1, count // 10))
    values["mean_drift"] = None if colours is None else colours.mean
    values["contrast_drift"] = None if colours is None else colours.contrast
    if truth is not None:
        values |= {"psnr": psnr(frames, truth), "ssim": ssim(frames, truth)}
        values["tof"] = flow_difference(frames, truth, flow)
    return values


def _checked(frames: Frames, truth: Frames | None) -> tuple[int, int, int]:
    """Frames, rows and columns of a clip."""
    if frames.ndim != 4 or frames.shape[3] != 3 or frames.dtype != "uint8" or not frames.size:
        raise RequestError(f"a clip is [T, H, W, 3] of uint8, got {list(frames.shape)} of {frames.dtype}")
    if truth is not None and (truth.shape != frames.shape or truth.dtype != frames.dtype):
        raise RequestError(
            f"the wanted video is {list(truth.shape)} and the clip {list(frames.shape)}; both must agree"
        )
    count, height, width, _ = frames.shape
    return count, height, width
