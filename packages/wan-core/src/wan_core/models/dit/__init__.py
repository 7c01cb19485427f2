"""The diffusion transformer."""

from wan_core.models.dit.attention import InnerAttention
from wan_core.models.dit.config import WanDiTConfig
from wan_core.models.dit.flf2v import FLF2VConfig, FLF2VDiT
from wan_core.models.dit.inputs import ContextCache, DiTInputs
from wan_core.models.dit.layout import BlockShared, KeyValueMemory, TokenLayout, TokenSequence
from wan_core.models.dit.model import TimeRows, WanDiT
from wan_core.models.dit.modulation import sinusoidal_embedding
from wan_core.models.dit.rope import rotary_positions, rotary_table, rotate

__all__ = [
    "BlockShared",
    "ContextCache",
    "DiTInputs",
    "FLF2VConfig",
    "FLF2VDiT",
    "InnerAttention",
    "KeyValueMemory",
    "TimeRows",
    "TokenLayout",
    "TokenSequence",
    "WanDiT",
    "WanDiTConfig",
    "rotary_positions",
    "rotary_table",
    "rotate",
    "sinusoidal_embedding",
]
