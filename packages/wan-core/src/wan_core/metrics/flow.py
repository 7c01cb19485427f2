"""Optical flow: where each pixel of a frame is in another one, by OpenCV's Farneback."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from wan_core.runtime import optional_package

Pixels = NDArray[np.uint8]
Flow = NDArray[np.float32]
"""[H, W, 2]: how far to the right and down each pixel of the first frame is in the second one, in pixels."""

OpticalFlow = Callable[[Pixels, Pixels], Flow]
"""From two frames [H, W, 3] to the flow from the first to the second."""


def farneback(first: Pixels, second: Pixels) -> Flow:
    """Dense flow by polynomial expansion (Farneback 2003), on grey levels, as OpenCV computes it.

    A pyramid of 3 levels, windows of 15 pixels, 3 iterations, polynomials of 5 pixels with deviation 1.2. Raises
    BackendError without OpenCV.
    """
    cv2 = optional_package("cv2", "opencv-python-headless", what="Farneback's flows", extra="wan-core[metrics]")
    grey = (cv2.cvtColor(each, cv2.COLOR_RGB2GRAY) for each in (first, second))
    return np.asarray(cv2.calcOpticalFlowFarneback(*grey, None, 0.5, 3, 15, 3, 5, 1.2, 0), dtype=np.float32)
