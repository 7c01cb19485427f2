"""Weights of Pi3 and Pi3X: found in a file, a folder or on the hub, read safely, loaded strictly."""

from pi3.checkpoints.load import PI3, build, freeze, load_pi3
from pi3.checkpoints.locate import HUB_IDS, bundled_weights, download_weights, find_weights

__all__ = [
    "HUB_IDS",
    "PI3",
    "build",
    "bundled_weights",
    "download_weights",
    "find_weights",
    "freeze",
    "load_pi3",
]
