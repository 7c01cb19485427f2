"""3D-guided video: Pi3 features of a picture guide Wan2.2 TI2V-5B."""

from poze.adapter import Pi3FeatureAdapter, load_adapter, save_adapter
from poze.guidance import guidance_tokens, image_views, look
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
    "guidance_tokens",
    "guide",
    "image_views",
    "load_adapter",
    "look",
    "save_adapter",
]
