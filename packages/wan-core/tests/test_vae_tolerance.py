"""A tiled decode is the plain one within the tolerance that docs/performance.md states."""

import math

import pytest
import torch
from torch import Tensor

from wan_core.loading import RuntimeOptions, load_pipeline
from wan_core.models import VideoVAE
from wan_core.models.vae.tiling import Tiling

COLOURS = torch.tensor([[1.0, -1, -1], [-1, 1, -1], [-1, -1, 1], [1, 1, -1], [1, 1, 1]])


def scene(height: int, width: int, frames: int) -> Tensor:
    """Discs and squares that move on black, [1, 3, T, H, W] in [-1, 1]: what the bundled autoencoder was trained on."""
    generator = torch.Generator().manual_seed(0)
    video = torch.full((1, 3, frames, height, width), -1.0)
    rows, columns = torch.arange(height)[:, None], torch.arange(width)[None]
    for index in range(40):
        top, left, size, colour = (int(torch.randint(0, n, (), generator=generator)) for n in (height, width, 12, 5))
        down, right = (int(torch.randint(-3, 4, (), generator=generator)) for _ in range(2))
        for time in range(frames):
            down_by, right_by = (rows - top - down * time).abs(), (columns - left - right * time).abs()
            inside = torch.maximum(down_by + 0 * right_by, right_by + 0 * down_by)
            if index % 2:
                inside = (down_by**2 + right_by**2).sqrt()
            video[0, :, time, inside <= size + 8] = COLOURS[colour][:, None]
    return video


def decibels(found: Tensor, expected: Tensor) -> float:
    """The peak signal-to-noise ratio of videos in [-1, 1]."""
    return 20 * math.log10(2) - 10 * math.log10((found - expected).square().mean().item())


@pytest.fixture(scope="module")
def vae() -> VideoVAE:
    found: VideoVAE = load_pipeline("tiny-t2v", options=RuntimeOptions(device="cpu")).components.vae.module()
    return found


@torch.inference_mode()
def test_a_tiled_decode_is_the_plain_one_within_the_stated_tolerance(vae: VideoVAE) -> None:
    latents = vae.encode(scene(272, 288, 1))
    plain = vae.decode(latents).clamp(-1, 1)
    tiled = vae.decode(latents, tiling=Tiling()).clamp(-1, 1)
    hard = vae.decode(latents, tiling=Tiling(stride_height=256, stride_width=256)).clamp(-1, 1)
    assert not torch.equal(tiled, plain)
    assert decibels(tiled, plain) > 45
    assert (tiled - plain).abs().flatten().quantile(0.999) < 0.1
    assert decibels(tiled, plain) > decibels(hard, plain) + 10  # what blending is for
