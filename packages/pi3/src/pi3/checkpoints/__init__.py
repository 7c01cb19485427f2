"""Weights of Pi3 and Pi3X: found in a file, a folder or on the hub, read safely, loaded strictly."""

from pi3.checkpoints.load import load_pi3, open_weights, read_config
from pi3.checkpoints.locate import HUB_IDS, WEIGHTS_FILE, bundled_weights, download_weights, find_weights

__all__ = [
    "HUB_IDS",
    "WEIGHTS_FILE",
    "bundled_weights",
    "download_weights",
    "find_weights",
    "load_pi3",
    "open_weights",
    "read_config",
]
