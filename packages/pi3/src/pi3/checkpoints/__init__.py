"""Weights of Pi3 and Pi3X: found in a file, a folder or on the hub, read safely, loaded strictly."""

from typing import TYPE_CHECKING

from wan_core.lazy import on_demand

if TYPE_CHECKING:
    from pi3.checkpoints.load import PI3, build, freeze, load_pi3
    from pi3.checkpoints.locate import HUB_IDS, bundled_weights, download_weights, find_weights
else:
    __getattr__, __dir__ = on_demand(__name__)

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
