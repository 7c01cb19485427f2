"""Pose-driven video as a stream: causal Wan2.1 under UniAnimate's conditions, and its teacher."""

from typing import TYPE_CHECKING

from wan_core.lazy import on_demand

if TYPE_CHECKING:
    from selfforcing_unianimate.config import CausalDiTConfig
    from selfforcing_unianimate.families import CAUSAL_DIT
else:
    __getattr__, __dir__ = on_demand(__name__)

__all__ = ["CAUSAL_DIT", "CausalDiTConfig"]
