"""The diffusion transformer."""

from wan_core.models.dit.attention import InnerAttention
from wan_core.models.dit.config import WanDiTConfig
from wan_core.models.dit.inputs import ContextCache, DiTInputs
from wan_core.models.dit.model import WanDiT
from wan_core.models.dit.rope import rotary_table, rotate

__all__ = ["ContextCache", "DiTInputs", "InnerAttention", "WanDiT", "WanDiTConfig", "rotary_table", "rotate"]
