"""What the tiny 3D-guided model is trained on, made once: latents, Pi3 tokens and frames of rooms in shards on disk."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from pi3 import Pi3, pictures_to_tensor
from tools.tiny.room_clips import MOVES, TRAINING_SEEDS, RoomClip, opposite, room_clip
from tools.tiny.vae_stage import to_pixels
from wan_core.models import VideoVAE

SHARD = 40
CLIPS = 2 * len(TRAINING_SEEDS)  # every rendered clip is also read backwards


def pi3_pictures(frames: NDArray[np.uint8], pi3: Pi3) -> Tensor:
    """Frames [N, H, W, 3] as Pi3 sees them: float32 [N, 3, H', W'] in [0, 1], by its size rule."""
    return pictures_to_tensor((Image.fromarray(frame) for frame in frames), pixel_limit=pi3.config.pixel_limit)


@torch.inference_mode()
def first_picture_tokens(videos: list[NDArray[np.uint8]], pi3: Pi3) -> tuple[Tensor, tuple[int, int]]:
    """Pi3's tokens of each clip's first frame alone [B, h * w, C], and (h, w)."""
    pictures = torch.stack([pi3_pictures(video[:1], pi3) for video in videos])
    latents = pi3.encode(pictures)
    return latents.patch_hidden.mean(dim=1), latents.grid


@dataclass(frozen=True)
class RoomShards:
    """Shards of SHARD rendered clips and as many backwards ones; made when first asked for, by one process or several.

    Of clip ``2 k`` (seed k) and ``2 k + 1`` (the same backwards): ``latents`` float16 [24, 5, 8, 8], ``tokens`` float16
    [h * w, C], ``moves`` (its index in MOVES); of seed k ``videos`` uint8 [17, 64, 64, 3].
    """

    folder: Path
    vae: VideoVAE
    pi3: Pi3

    def shard(self, number: int) -> dict[str, Tensor]:
        """The tensors of one shard."""
        path = self.folder / f"rooms-{number:04d}.safetensors"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            draft = path.with_suffix(f".{os.getpid()}")
            save_file(self._make(number), draft)
            draft.rename(path)
        return load_file(path)

    def whole(self, names: tuple[str, ...]) -> dict[str, Tensor]:
        """Some tensors of all clips."""
        shards = [self.shard(number) for number in range(len(TRAINING_SEEDS) // SHARD)]
        return {name: torch.cat([shard[name] for shard in shards]) for name in names}

    def _make(self, number: int) -> dict[str, Tensor]:
        seeds = TRAINING_SEEDS[number * SHARD : (number + 1) * SHARD]
        clips: list[RoomClip] = []
        for seed in seeds:
            clip = room_clip(seed)
            clips += [clip, opposite(clip)]
        videos = [clip.video for clip in clips]
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            latents = torch.cat([self.vae.encode(to_pixels([video]), latents_per_chunk=None) for video in videos])
        return {
            "latents": latents.half(),
            "tokens": first_picture_tokens(videos, self.pi3)[0].half(),
            "moves": torch.tensor([list(MOVES).index(clip.move) for clip in clips]),
            "videos": torch.from_numpy(np.stack(videos[::2])),
        }
