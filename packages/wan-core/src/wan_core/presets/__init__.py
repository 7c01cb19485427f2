"""Models by name. The table holds addresses, so that listing names imports no network code."""

from importlib.metadata import entry_points
from typing import TYPE_CHECKING

from wan_core.errors import RequestError
from wan_core.lazy import load, on_demand

if TYPE_CHECKING:
    from wan_core.presets.base import Preset, wan_parts
else:
    __getattr__, __dir__ = on_demand(__name__)

_PRESETS = {
    "t2v-A14B": "wan_core.presets.wan22:T2V_A14B",
    "i2v-A14B": "wan_core.presets.wan22:I2V_A14B",
    "ti2v-5B": "wan_core.presets.wan22:TI2V_5B",
    "s2v-14B": "wan_core.presets.wan22:S2V_14B",
    "animate-14B": "wan_core.presets.wan22:ANIMATE_14B",
    "t2v-1.3B": "wan_core.presets.wan21:T2V_1_3B",
    "t2v-14B": "wan_core.presets.wan21:T2V_14B",
    "i2v-14B-480P": "wan_core.presets.wan21:I2V_14B_480P",
    "i2v-14B-720P": "wan_core.presets.wan21:I2V_14B_720P",
    "flf2v-14B": "wan_core.presets.wan21:FLF2V_14B",
    "tiny-t2v": "wan_core.presets.tiny:TINY_T2V",
    "tiny-ti2v": "wan_core.presets.tiny:TINY_TI2V",
    "tiny-i2v": "wan_core.presets.tiny:TINY_I2V",
    "tiny-s2v": "wan_core.presets.tiny:TINY_S2V",
    "tiny-animate": "wan_core.presets.tiny:TINY_ANIMATE",
    "tiny-moe": "wan_core.presets.tiny:TINY_MOE",
}
ENTRY_POINT_GROUP = "wan_core.tasks"
"""Project packages add presets as entry points of this group: name = "module:PRESET"."""


def list_presets() -> list[str]:
    """The names of all presets: the core's, then those of installed project packages."""
    added = sorted(point.name for point in entry_points(group=ENTRY_POINT_GROUP))
    return [*_PRESETS, *(name for name in added if name not in _PRESETS)]


def get_preset(name: str) -> "Preset":
    """The preset called ``name``. Raises ``RequestError`` naming all when there is none."""
    address = _PRESETS.get(name)
    if address is None:
        for point in entry_points(group=ENTRY_POINT_GROUP):
            if point.name == name:
                address = point.value
    if address is None:
        raise RequestError(f"there is no model {name!r}; known: {', '.join(list_presets())}")
    preset: Preset = load(address)
    return preset


__all__ = ["Preset", "get_preset", "list_presets", "wan_parts"]
