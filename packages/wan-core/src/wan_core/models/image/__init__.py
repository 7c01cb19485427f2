"""Image encoders."""

from typing import TYPE_CHECKING

from wan_core.lazy import on_demand

if TYPE_CHECKING:
    from wan_core.models.image.clip import CLIP_MEAN, CLIP_STD, CLIPVision, clip_pixels
    from wan_core.models.image.config import CLIP_VIT_H14, CLIPConfig
else:
    __getattr__, __dir__ = on_demand(__name__)

__all__ = ["CLIP_MEAN", "CLIP_STD", "CLIP_VIT_H14", "CLIPConfig", "CLIPVision", "clip_pixels"]
