"""Measures of finished videos: optical flow, steadiness, and means over clips with their intervals."""

from typing import TYPE_CHECKING

from wan_core.lazy import on_demand

if TYPE_CHECKING:
    from wan_core.metrics.bootstrap import interval
    from wan_core.metrics.flow import Flow, OpticalFlow, Pixels, farneback
    from wan_core.metrics.temporal import (
        LUMINANCE,
        drift,
        flow_difference,
        mean_of,
        pair_error,
        seam_ratio,
        steadiness,
        visible_pixels,
    )
else:
    __getattr__, __dir__ = on_demand(__name__)

__all__ = [
    "LUMINANCE",
    "Flow",
    "OpticalFlow",
    "Pixels",
    "drift",
    "farneback",
    "flow_difference",
    "interval",
    "mean_of",
    "pair_error",
    "seam_ratio",
    "steadiness",
    "visible_pixels",
]
