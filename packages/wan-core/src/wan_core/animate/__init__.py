"""Preprocessing for Wan-Animate: persons, poses, skeletons, masks and faces of a driving video, as pure functions."""

from typing import TYPE_CHECKING

from wan_core.lazy import on_demand

if TYPE_CHECKING:
    from wan_core.animate.boxes import without_overlaps
    from wan_core.animate.draw import HUES, draw_hand, draw_limb
    from wan_core.animate.keypoints import LIMBS
    from wan_core.animate.prepare import Preparation
    from wan_core.animate.preview import preview_sheet
    from wan_core.animate.request import PrepareModels, PrepareRequest
else:
    __getattr__, __dir__ = on_demand(__name__)

__all__ = [
    "HUES",
    "LIMBS",
    "Preparation",
    "PrepareModels",
    "PrepareRequest",
    "draw_hand",
    "draw_limb",
    "preview_sheet",
    "without_overlaps",
]
