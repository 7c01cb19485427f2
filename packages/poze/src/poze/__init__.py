"""3D-guided video: Pi3 features of a picture guide Wan2.2 TI2V-5B."""

from poze.adapter import Pi3FeatureAdapter, load_adapter, save_adapter
from poze.fusion import Recover, Stitch, fuse, recovered, widen_input
from poze.guidance import guidance_tokens, look, open_pi3, picture_views, pooled_tokens
from poze.outputs import Findings
from poze.presets import POZE_5B, TINY_POZE
from poze.request import PozeRequest
from poze.task import GuidedImageToVideo, PozeInputs, guide

__all__ = [
    "POZE_5B",
    "TINY_POZE",
    "Findings",
    "GuidedImageToVideo",
    "Pi3FeatureAdapter",
    "PozeInputs",
    "PozeRequest",
    "Recover",
    "Stitch",
    "fuse",
    "guidance_tokens",
    "guide",
    "load_adapter",
    "look",
    "open_pi3",
    "picture_views",
    "pooled_tokens",
    "recovered",
    "save_adapter",
    "widen_input",
]
