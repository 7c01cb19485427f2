"""Standard poses by FLUX.1 Kontext: persons are redrawn facing forward, so that their proportions can be measured.

FLUX.1 Kontext (Black Forest Labs, 2025, arXiv:2506.15742) as diffusers runs it; guidance and steps are those of
Wan-Animate, the prompts are our own.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from wan_core.animate.keypoints import (
    LEFT_ANKLE,
    LEFT_ELBOW,
    LEFT_KNEE,
    LEFT_WRIST,
    RIGHT_ANKLE,
    RIGHT_ELBOW,
    RIGHT_KNEE,
    RIGHT_WRIST,
    PosePoints,
)
from wan_core.animate.opencv import REMEDY
from wan_core.errors import CheckpointError, RequestError
from wan_core.files import plain_text, read_text
from wan_core.hub.pretrained import LIBRARY_ERRORS, first_line
from wan_core.runtime import optional_package

if TYPE_CHECKING:
    import torch

GUIDANCE_SCALE = 2.5
NUM_STEPS = 28
_PIPELINE = "FluxKontextPipeline"
_EXTRA = "wan-core[flux]"
_SURE = 0.75
_LEGS = [RIGHT_KNEE, RIGHT_ANKLE, LEFT_KNEE, LEFT_ANKLE]
_ARMS = [RIGHT_ELBOW, RIGHT_WRIST, LEFT_ELBOW, LEFT_WRIST]

_WIDE = "Redraw this person in a T-pose: facing the camera, both arms stretched out level to the sides"
_TALL = "Redraw this person in a neutral pose: facing the camera, both arms hanging straight down beside the body"
_SAME = "keep the face, the clothes and the background as they are."
_STANDING = "The person stands upright on both legs, with both hands and both feet in the picture;"
_HANDS = "Both hands are in the picture;"
_FACING = "Turn this person to face the camera; keep the clothes and the background as they are."


def standard_pose(frames: Iterable[PosePoints], *, is_wide: bool) -> str:
    """The prompt for a picture, ``is_wide`` or not, by what of the body any of the driving ``frames`` shows."""
    limbs = np.stack([person.body[[*_LEGS, *_ARMS]] for person in frames])
    is_sure = (limbs[..., :2] <= 1).all(axis=-1) & (limbs[..., 2] >= _SURE)
    if not is_sure.any():
        return _FACING
    shown = _STANDING if is_sure[:, : len(_LEGS)].any() else _HANDS
    return f"{_WIDE if is_wide else _TALL}. {shown} {_SAME}"


def check_editor(folder: Path) -> None:
    """Check, without reading a weight, that pictures can be edited by the pipeline in a folder.

    Raises CheckpointError for a folder without one, BackendError without diffusers.
    """
    index = folder / "model_index.json"
    if not index.is_file():
        raise CheckpointError(f"{plain_text(folder)} holds no FLUX.1 Kontext: it lacks {index.name}; fetch it {REMEDY}")
    try:
        content: Any = json.loads(read_text(index))
    except (RequestError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{plain_text(index)} is damaged ({first_line(error)}); fetch it {REMEDY}") from error
    kind = content.get("_class_name") if isinstance(content, dict) else None
    if kind != _PIPELINE:
        raise CheckpointError(
            f"{plain_text(folder)} is a {plain_text(kind)[:80]}, not a {_PIPELINE}; fetch it {REMEDY}"
        )
    _diffusers()


class PoseEditor:
    """The pipeline in a folder, computing in ``dtype`` on ``device``, to which its parts go one at a time.

    Raises CheckpointError for a folder that cannot be read, BackendError without diffusers.
    """

    def __init__(self, folder: Path, device: torch.device, dtype: torch.dtype) -> None:
        diffusers = _diffusers()
        diffusers.utils.logging.disable_progress_bar()
        kind = getattr(diffusers, _PIPELINE)
        try:
            self._pipeline = kind.from_pretrained(
                folder, torch_dtype=dtype, local_files_only=True, use_safetensors=True
            )
        except LIBRARY_ERRORS as error:
            raise CheckpointError(
                f"{plain_text(folder)} cannot be read ({first_line(error)}); fetch it again"
            ) from error
        self._pipeline.set_progress_bar_config(disable=True)
        if device.type != "cpu":
            self._pipeline.enable_model_cpu_offload(device=device)

    def edit(self, image: Image.Image, prompt: str, seed: int) -> Image.Image:
        """The picture as the prompt says, about a megapixel of nearly its aspect."""
        import torch

        made = self._pipeline(
            image=image,
            prompt=prompt,
            width=image.width,
            height=image.height,
            guidance_scale=GUIDANCE_SCALE,
            num_inference_steps=NUM_STEPS,
            generator=torch.Generator().manual_seed(seed),
        )
        edited: Image.Image = made.images[0]
        return edited.convert("RGB")


def _diffusers() -> Any:
    return optional_package("diffusers", "diffusers", what="Edited poses (--use_flux)", extra=_EXTRA)
