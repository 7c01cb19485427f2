"""Several images to video: each is a fixed latent frame of Wan2.2 TI2V-5B, the rest is generated."""

from typing import TYPE_CHECKING

from wan_core.lazy import on_demand

if TYPE_CHECKING:
    from wan_mi2v.presets import MI2V_5B
    from wan_mi2v.preview import AnchorMatch, compare_anchors
    from wan_mi2v.request import MI2VRequest
    from wan_mi2v.task import MultiImageToVideo
else:
    __getattr__, __dir__ = on_demand(__name__)

__all__ = [
    "MI2V_5B",
    "AnchorMatch",
    "MI2VRequest",
    "MultiImageToVideo",
    "compare_anchors",
]
