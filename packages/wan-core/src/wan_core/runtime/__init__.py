"""Everything applied to models from outside: devices, placement, attention backends."""

from wan_core.runtime.devices import DTYPES, resolve_device, resolve_dtype
from wan_core.runtime.placement import Between, Placed, release_cached_memory

__all__ = ["DTYPES", "Between", "Placed", "release_cached_memory", "resolve_device", "resolve_dtype"]
