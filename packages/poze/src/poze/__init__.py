"""3D-guided video: Pi3 features of a picture guide Wan2.2 TI2V-5B."""

from typing import TYPE_CHECKING

from wan_core.lazy import on_demand

if TYPE_CHECKING:
    from poze.adapter import Pi3FeatureAdapter, load_adapter, save_adapter
    from poze.guidance import guidance_tokens
    from poze.presets import POZE_5B, TINY_POZE
    from poze.request import PozeRequest
    from poze.task import GuidedImageToVideo
else:
    __getattr__, __dir__ = on_demand(__name__)

__all__ = [
    "POZE_5B",
    "TINY_POZE",
    "GuidedImageToVideo",
    "Pi3FeatureAdapter",
    "PozeRequest",
    "guidance_tokens",
    "load_adapter",
    "save_adapter",
]
