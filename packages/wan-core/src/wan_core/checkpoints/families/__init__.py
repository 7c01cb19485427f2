"""Families of networks: what there is to know of each to recognise, read, build and write its weights."""

from functools import cache
from importlib.metadata import entry_points

from wan_core.checkpoints.families.animate import ANIMATE
from wan_core.checkpoints.families.clip import CLIP
from wan_core.checkpoints.families.dit import DIT, FLF2V, dit_config_reader
from wan_core.checkpoints.families.record import Expert, Family
from wan_core.checkpoints.families.s2v import S2V
from wan_core.checkpoints.families.sam2 import SAM2
from wan_core.checkpoints.families.umt5 import UMT5
from wan_core.checkpoints.families.vae import VAE
from wan_core.checkpoints.families.wav2vec2 import WAV2VEC2
from wan_core.errors import CheckpointError

ENTRY_POINT_GROUP = "wan_core.families"
"""Project packages add families as entry points of this group: name = "module:FAMILY"."""

OTHER_TITLES = {"lora": "a LoRA", "": "weights of something else"}


@cache
def families() -> tuple[Family, ...]:
    """Every family whose weights can be recognised: the core's, then those of installed project packages."""
    added = sorted(entry_points(group=ENTRY_POINT_GROUP), key=lambda point: point.name)
    return (DIT, FLF2V, S2V, ANIMATE, VAE, UMT5, CLIP, WAV2VEC2, SAM2, *(point.load() for point in added))


def get_family(family: Family | str) -> Family:
    """The family of a name; a record as it is. Raises CheckpointError for an unknown name."""
    if isinstance(family, Family):
        return family
    for candidate in families():
        if candidate.name == family:
            return candidate
    raise CheckpointError(f"there is no family {family!r}; known: {', '.join(each.name for each in families())}")


def title_of(name: str) -> str:
    """The name of a family, ``lora`` or ``""``, for people."""
    return OTHER_TITLES[name] if name in OTHER_TITLES else get_family(name).title


__all__ = [
    "ANIMATE",
    "CLIP",
    "DIT",
    "FLF2V",
    "S2V",
    "SAM2",
    "UMT5",
    "VAE",
    "WAV2VEC2",
    "Expert",
    "Family",
    "dit_config_reader",
    "families",
    "get_family",
    "title_of",
]
