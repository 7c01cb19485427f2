"""What the tiny BindWeave is trained on, made once: latents of scenes and of the pictures of their subjects."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from bindweave.presets import TINY_BINDWEAVE
from bindweave.references import Reference, letterbox, reference_frames
from tools.tiny.subjects import SUBJECTS_VERSION, training_scene
from tools.tiny.vae_stage import to_pixels
from wan_core.media import VideoGeometry
from wan_core.models import VideoVAE
from wan_core.training import Cache, write_cache

_SAMPLING = TINY_BINDWEAVE.sampling
GEOMETRY = VideoGeometry.for_video(
    TINY_BINDWEAVE.latent_spec, num_frames=_SAMPLING.num_frames, height=_SAMPLING.height, width=_SAMPLING.width
)
SCENES = 3000
DECODER_SCENES = 500
"""Of so many scenes the cache has the pixels too, for the decoder."""


def references_of(pictures: tuple[NDArray[np.uint8], ...]) -> list[Reference]:
    """Pictures as inference takes them in."""
    return [letterbox(Image.fromarray(picture), GEOMETRY.width, GEOMETRY.height) for picture in pictures]


def scene_cache(folder: Path, vae: VideoVAE, part: tuple[int, int] = (0, 1)) -> Cache:
    """Training scenes in the order of their seeds, made where they are missing, or a part of them.

    ``latents`` [24, 4, 8, 8] and ``references`` [28, N, 8, 8] float16 of N subjects; ``pictures`` [N, 64, 64, 3] uint8,
    and of the first scenes their ``video`` [13, 64, 64, 3].
    """
    settings = {"subjects": SUBJECTS_VERSION, "kind": "scenes"}
    return Cache(
        write_cache(folder / "scenes", SCENES, partial(encode_scene, vae), settings, shard_size=100, part=part)
    )


@torch.inference_mode()
def encode_scene(vae: VideoVAE, number: int) -> dict[str, Tensor]:
    """The tensors of one training scene in a `scene_cache`."""
    scene = training_scene(number)
    dtype = next(vae.parameters()).dtype
    latents = vae.encode(to_pixels([scene.video]).to(dtype), latents_per_chunk=None)[0]
    frames = reference_frames(references_of(scene.pictures), vae, GEOMETRY.spec, len(scene.pictures))[0]
    tensors = {"latents": latents.half(), "references": frames.half()}
    tensors["pictures"] = torch.from_numpy(np.stack(scene.pictures))
    if number < DECODER_SCENES:
        tensors["video"] = torch.from_numpy(scene.video)
    return tensors
