"""Metrics of pose-driven video: of poses, steadiness and fidelity, each a closed formula with its source."""

from typing import TYPE_CHECKING

from wan_core.lazy import on_demand

if TYPE_CHECKING:
    from selfforcing_unianimate.metrics.clip import METRICS, evaluate_clip
    from selfforcing_unianimate.metrics.keypoints import KeypointDetector, Keypoints
else:
    __getattr__, __dir__ = on_demand(__name__)

__all__ = ["METRICS", "KeypointDetector", "Keypoints", "evaluate_clip"]
