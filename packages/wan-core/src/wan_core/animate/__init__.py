"""Preprocessing for Wan-Animate: persons, poses, skeletons, masks and faces of a driving video, as pure functions."""

from typing import TYPE_CHECKING

from wan_core.lazy import on_demand

if TYPE_CHECKING:
    from wan_core.animate.boxes import without_overlaps
    from wan_core.animate.draw import HUES, draw_hand, draw_limb
    from wan_core.animate.keypoints import LIMBS
else:
    __getattr__, __dir__ = on_demand(__name__)

__all__ = ["HUES", "LIMBS", "draw_hand", "draw_limb", "without_overlaps"]
