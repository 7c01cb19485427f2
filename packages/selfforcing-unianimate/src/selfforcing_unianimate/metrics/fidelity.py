"""How near a video is to the one that it should be, pixel by pixel."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from selfforcing_unianimate.metrics.keypoints import Frames
from wan_core.metrics import LUMINANCE, mean_of

HIGHEST_PSNR = 99.0
"""What equal frames count as, in dB."""
WINDOW = 11
_DEVIATION = 1.5
_C1, _C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2


def psnr(frames: Frames, truth: Frames) -> float | None:
    """Peak signal-to-noise ratio in dB, higher is better: the mean over frames of ``10 log10(255^2 / MSE)``.

    At most 99 a frame, which is that of equal ones. Both are [T, H, W, 3]; None without a frame.
    """
    return mean_of([_psnr(first, second) for first, second in zip(frames, truth, strict=True)])


def _psnr(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> float:
    error = float(((first.astype(np.float64) - second) ** 2).mean())
    return HIGHEST_PSNR if error == 0 else min(HIGHEST_PSNR, float(10 * np.log10(255**2 / error)))


def ssim(frames: Frames, truth: Frames) -> float | None:
    """Structural similarity, -1 to 1, higher is better, of the luminance; the mean over frames (Wang et al. 2004).

    ``(2 m_x m_y + C1)(2 s_xy + C2) / ((m_x^2 + m_y^2 + C1)(s_x^2 + s_y^2 + C2))`` in windows of 11x11 pixels under a
    Gaussian of deviation 1.5 that lie whole in the picture; C1 = (0.01 * 255)^2, C2 = (0.03 * 255)^2. Both are
    [T, H, W, 3]; None for frames smaller than the window.
    """
    if min(frames.shape[1:3]) < WINDOW:
        return None
    return mean_of([_ssim(first @ LUMINANCE, second @ LUMINANCE) for first, second in zip(frames, truth, strict=True)])


def _ssim(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    mean_x, mean_y = _blurred(x), _blurred(y)
    variance_x, variance_y = _blurred(x * x) - mean_x**2, _blurred(y * y) - mean_y**2
    covariance = _blurred(x * y) - mean_x * mean_y
    numbers = (2 * mean_x * mean_y + _C1) * (2 * covariance + _C2)
    return float((numbers / ((mean_x**2 + mean_y**2 + _C1) * (variance_x + variance_y + _C2))).mean())


def _blurred(image: NDArray[np.float64]) -> NDArray[np.float64]:
    """Means under the Gaussian, where its window lies whole in the image."""
    offsets = np.arange(WINDOW) - WINDOW // 2
    weights = np.exp(-(offsets**2) / (2 * _DEVIATION**2))
    weights /= weights.sum()
    for axis in (0, 1):
        image = np.lib.stride_tricks.sliding_window_view(image, WINDOW, axis=axis) @ weights
    return image
