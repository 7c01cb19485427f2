"""The DINOv2 vision transformer, the image encoder of Pi3."""

from pi3.dinov2.vit import VisionTransformer

__all__ = ["DinoFeatures", "VisionTransformer"]
