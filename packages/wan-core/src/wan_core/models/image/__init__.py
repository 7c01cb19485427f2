"""Image encoders."""

from wan_core.models.image.clip import CLIP_VIT_H14, CLIPConfig, CLIPVision

__all__ = ["CLIP_VIT_H14", "CLIPConfig", "CLIPVision"]
