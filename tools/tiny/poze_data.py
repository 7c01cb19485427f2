"""What the tiny 3D-guided model is trained on, made once: latents, Pi3 tokens and frames of rooms in a cache."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from pi3 import Pi3, pictures_to_tensor
from tools.tiny.room_clips import CLIPS_VERSION, MOVES, TRAINING_SEEDS, RoomClip, opposite, room_clip
from tools.tiny.vae_stage import to_pixels
from wan_core.models import VideoVAE
from wan_core.training import Cache, write_cache


def pi3_images(frames: NDArray[np.uint8], pi3: Pi3) -> Tensor:
    """Frames [N, H, W, 3] as Pi3 sees them: float32 [N, 3, H', W'] in [0, 1], by its size rule."""
    return pictures_to_tensor((Image.fromarray(frame) for frame in frames), pixel_limit=pi3.config.pixel_limit)


@torch.inference_mode()
def first_image_tokens(videos: list[NDArray[np.uint8]], pi3: Pi3) -> tuple[Tensor, tuple[int, int]]:
    """Pi3's tokens of each clip's first frame alone [B, h * w, C], and (h, w)."""
    latents = pi3.encode(torch.stack([pi3_images(video[:1], pi3) for video in videos]))
    return latents.patch_hidden.mean(dim=1), latents.grid


def room_cache(folder: Path, vae: VideoVAE, pi3: Pi3) -> Cache:
    """Every rendered training clip (of seed k: number 2 k) and the same backwards (2 k + 1), made where missing.

    ``latents`` float16 [24, 5, 8, 8], ``tokens`` float16 [h * w, C], ``move`` [1] (its index in MOVES), and of rendered
    clips ``video`` uint8 [17, 64, 64, 3].
    """

    @torch.inference_mode()
    def encode(number: int) -> dict[str, Tensor]:
        clip = training_room(number)
        with torch.autocast("cpu", torch.bfloat16):
            latents = vae.encode(to_pixels([clip.video]), latents_per_chunk=None)[0]
        tokens = first_image_tokens([clip.video], pi3)[0][0]
        move = torch.tensor([list(MOVES).index(clip.move)])
        video = {} if number % 2 else {"video": torch.from_numpy(clip.video)}
        return {"latents": latents.half(), "tokens": tokens.half(), "move": move, **video}

    return Cache(write_cache(folder, 2 * len(TRAINING_SEEDS), encode, {"clips": CLIPS_VERSION}, shard_size=80))


_rendered = lru_cache(maxsize=1)(room_clip)  # both directions of a clip are asked for one after the other


def training_room(number: int) -> RoomClip:
    """Training clip ``number`` of a `room_cache`."""
    clip = _rendered(TRAINING_SEEDS[number // 2])
    return opposite(clip) if number % 2 else clip
