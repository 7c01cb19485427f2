"""The diffusion transformer."""

from wan_core.models.dit.attention import InnerAttention
from wan_core.models.dit.config import WanDiTConfig
from wan_core.models.dit.flf2v import FLF2VConfig, FLF2VDiT
from wan_core.models.dit.inputs import ContextCache, DiTInputs
from wan_core.models.dit.model import WanDiT

__all__ = [
    "ContextCache",
    "DiTInputs",
    "FLF2VConfig",
    "FLF2VDiT",
    "InnerAttention",
    "WanDiT",
    "WanDiTConfig",
]
