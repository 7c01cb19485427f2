"""The DINOv2 vision transformer, the image encoder of Pi3."""
