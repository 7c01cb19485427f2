"""Pose-driven video as a stream: causal Wan2.1 under UniAnimate's conditions, and its teacher."""

from typing import TYPE_CHECKING

from wan_core.lazy import on_demand

if TYPE_CHECKING:
    from selfforcing_unianimate.causal_dit import CausalDiT, CausalInputs
    from selfforcing_unianimate.config import CausalDiTConfig
    from selfforcing_unianimate.families import CAUSAL_DIT
    from selfforcing_unianimate.memory import CausalMemory
    from selfforcing_unianimate.presets import TINY_SFU
else:
    __getattr__, __dir__ = on_demand(__name__)

__all__ = [
    "CAUSAL_DIT",
    "TINY_SFU",
    "CausalDiT",
    "CausalDiTConfig",
    "CausalInputs",
    "CausalMemory",
]
