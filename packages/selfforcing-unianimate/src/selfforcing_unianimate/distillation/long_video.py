"""Videos longer than the scores were trained for: their end is scored, as if it began with a picture."""

from __future__ import annotations

import torch
from torch import Tensor

from selfforcing_unianimate.distillation.rollout import LEARNED_FRAMES
from selfforcing_unianimate.frame_blocks import FrameBlocks
from wan_core.models import VideoVAE


def scored_end(
    latents: Tensor, vae: VideoVAE, blocks: FrameBlocks, *, frames: int = LEARNED_FRAMES
) -> tuple[Tensor, Tensor | None]:
    """The last ``frames`` of latents [B, C, T, h, w] and the mask [1, 1, frames, 1, 1] of those that count.

    The first latent frame of a video stands for one pixel frame, all others for several. So the first of these is made
    anew, from the last pixel frame that it stands for. The block that begins with it does not count. A video of at most
    ``frames`` stays as it is, and all of it counts.
    """
    if latents.shape[2] <= frames:
        return latents, None
    with torch.no_grad():
        pixels = vae.decode(latents[:, :, : 1 - frames].float())
        first = vae.encode(pixels[:, :, -1:]).to(latents)
    mask = torch.ones(1, 1, frames, 1, 1, dtype=torch.bool, device=latents.device)
    mask[:, :, : blocks.span(0, frames)[1]] = False
    return torch.cat([first, latents[:, :, 1 - frames :]], dim=2), mask
