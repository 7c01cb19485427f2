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

TINY_POZE = replace(
    get_preset("tiny-ti2v"),
    name="tiny-poze",
    summary="picture to video guided by Pi3, in seconds on a CPU",
    task=GuidedImageToVideo(adapter=BUNDLED_ADAPTER if BUNDLED_ADAPTER.is_file() else None),
)
