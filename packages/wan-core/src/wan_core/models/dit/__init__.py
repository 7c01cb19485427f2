"""The diffusion transformer."""

from typing import TYPE_CHECKING

from wan_core.lazy import on_demand

if TYPE_CHECKING:
    from wan_core.models.dit.animate import AnimateDiT, AnimateInputs
    from wan_core.models.dit.attention import InnerAttention
    from wan_core.models.dit.config import AnimateDiTConfig, FLF2VConfig, S2VConfig, WanDiTConfig
    from wan_core.models.dit.flf2v import FLF2VDiT
    from wan_core.models.dit.inputs import ContextCache, DiTInputs
    from wan_core.models.dit.layout import KeyRanges, TokenSequence
    from wan_core.models.dit.model import TimeRows, WanDiT
    from wan_core.models.dit.rope import forget_rotary_tables, shared_rotary_tables
    from wan_core.models.dit.s2v import S2VDiT, S2VInputs
else:
    __getattr__, __dir__ = on_demand(__name__)

__all__ = [
    "AnimateDiT",
    "AnimateDiTConfig",
    "AnimateInputs",
    "ContextCache",
    "DiTInputs",
    "FLF2VConfig",
    "FLF2VDiT",
    "InnerAttention",
    "KeyRanges",
    "S2VConfig",
    "S2VDiT",
    "S2VInputs",
    "TimeRows",
    "TokenSequence",
    "WanDiT",
    "WanDiTConfig",
    "forget_rotary_tables",
    "shared_rotary_tables",
]
