"""TI2V-5B and its tiny sibling under the guidance of Pi3."""

from dataclasses import replace
from importlib.resources import files
from pathlib import Path

from poze.guidance import PI3_ID
from poze.task import GuidedImageToVideo
from wan_core.presets import get_preset

WEIGHTS = Path(str(files("poze") / "weights"))
BUNDLED_ADAPTER = WEIGHTS / "adapter.safetensors"

POZE_5B = replace(
    get_preset("ti2v-5B"),
    name="poze-5B",
    summary="picture to video with Wan2.2 TI2V-5B, guided by Pi3's features of the picture",
    task=GuidedImageToVideo(PI3_ID),
)

_TINY = get_preset("tiny-ti2v")
# Changes of the tiny model's weights, which the core's loader finds by their full paths.
_FILES = replace(_TINY.files, dit=str(WEIGHTS / "dit"), vae=str(WEIGHTS / "vae.safetensors"))

TINY_POZE = replace(
    _TINY,
    name="tiny-poze",
    summary="camera moves in rendered rooms guided by Pi3, in seconds on a CPU",
    task=GuidedImageToVideo(adapter=BUNDLED_ADAPTER),
    files=_FILES,
)
