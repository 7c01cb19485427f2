"""Two models: TI2V-5B as it is and the tiny one of wan-core, with this package's task; no weights of our own."""

from dataclasses import replace

from wan_core.presets import get_preset
from wan_mi2v.task import MultiImageToVideo

MI2V_5B = replace(
    get_preset("ti2v-5B"),
    name="mi2v-5B",
    summary="several pictures to video with Wan2.2 TI2V-5B, 720p at 24 fps",
    task=MultiImageToVideo(),
)

TINY_MI2V = replace(
    get_preset("tiny-ti2v"),
    name="tiny-mi2v",
    summary="several pictures to video in seconds on a CPU",
    task=MultiImageToVideo(),
)
