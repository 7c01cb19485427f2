"""TI2V-5B and its tiny sibling under the guidance of Pi3."""

from dataclasses import replace
from importlib.resources import files
from pathlib import Path

from pi3.checkpoints import PI3, bundled_weights
from poze.guidance import PI3_ID
from poze.task import GuidedImageToVideo
from wan_core.checkpoints import Part
from wan_core.presets import Preset, get_preset

WEIGHTS = Path(str(files("poze") / "weights"))
BUNDLED_ADAPTER = WEIGHTS / "adapter.safetensors"


def with_pi3(preset: Preset, source: str) -> Preset:
    """A model with Pi3 as a further part, from a file, a folder or a repository."""
    return replace(preset, parts=(*preset.parts, Part(name="pi3", family=PI3, source=source)))


POZE_5B = replace(
    with_pi3(get_preset("ti2v-5B"), PI3_ID),
    name="poze-5B",
    summary="picture to video with Wan2.2 TI2V-5B, guided by Pi3's features of the picture",
    task=GuidedImageToVideo(),
)

_TINY = with_pi3(get_preset("tiny-ti2v"), str(bundled_weights()))
# Their files are found by their full paths. The transformer is whole, the autoencoder a change of the tiny one.
# The transformer was trained from the first tiny-ti2v, which had these patches.
TINY_POZE = replace(
    _TINY.with_part("dit", file=str(WEIGHTS / "dit"), config=replace(_TINY.dit, patch_size=(1, 2, 2))).with_part(
        "vae", file=str(WEIGHTS / "vae.safetensors")
    ),
    name="tiny-poze",
    summary="camera moves in rendered rooms guided by Pi3, in seconds on a CPU",
    task=GuidedImageToVideo(adapter=BUNDLED_ADAPTER),
)


def is_tiny(folder: Path | None) -> bool:
    """Whether a folder of weights, or None for the bundled ones, is of the tiny model: its network says so where
    finetuning has written it. Raises CheckpointError for a damaged one."""
    place = None if folder is None else folder / TINY_POZE.part("dit").place
    if place is None or not place.is_dir():
        return place is None
    from wan_core.checkpoints import read_weights

    return read_weights(place).metadata.get("base_model") == TINY_POZE.name
