"""Pose-driven video as a stream: causal Wan2.1 under UniAnimate's conditions, and its teacher."""

from typing import TYPE_CHECKING

from wan_core.lazy import on_demand

if TYPE_CHECKING:
    from selfforcing_unianimate.causal_dit import CausalDiT, CausalDiTConfig, CausalInputs
    from selfforcing_unianimate.families import CAUSAL_DIT
    from selfforcing_unianimate.frame_blocks import FrameBlocks
    from selfforcing_unianimate.memory import CausalMemory
else:
    __getattr__, __dir__ = on_demand(__name__)

__all__ = [
    "CAUSAL_DIT",
    "CausalDiT",
    "CausalDiTConfig",
    "CausalInputs",
    "CausalMemory",
    "FrameBlocks",
]
