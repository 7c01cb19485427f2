"""Everything applied to models from outside: devices, placement, attention backends."""

from wan_core.runtime.attention_backends import (
    ATTENTION_BACKENDS,
    apply_attention_backend,
    choose_attention_backend,
)
from wan_core.runtime.devices import DTYPES, peak_memory, resolve_device, resolve_dtype
from wan_core.runtime.placement import Between, Placed, release_cached_memory
from wan_core.runtime.recompute import RecomputedBlocks, apply_recompute

__all__ = [
    "ATTENTION_BACKENDS",
    "DTYPES",
    "Between",
    "Placed",
    "RecomputedBlocks",
    "apply_attention_backend",
    "apply_recompute",
    "choose_attention_backend",
    "peak_memory",
    "release_cached_memory",
    "resolve_device",
    "resolve_dtype",
]
