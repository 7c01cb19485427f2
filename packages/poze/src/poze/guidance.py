"""From a picture to guidance tokens: Pi3 looks at it, its patch tokens are averaged over views, the adapter pools them.

The path is that of the reference pipeline (spec of Pi3-guided TI2V-5B); the code is our own.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from pi3 import Pi3, Pi3Latents, Pi3Output, load_pi3, pictures_to_tensor
from pi3.checkpoints import find_weights, open_weights, read_config
from poze.adapter import Pi3FeatureAdapter
from wan_core import ConfigError

if TYPE_CHECKING:
    from PIL import Image

PI3_ID = "yyfz233/Pi3"


def open_pi3(source: str | Path | None, device: torch.device | str = "cpu", *, revision: str | None = None) -> Pi3:
    """Pi3 in float32, frozen: a file (``.safetensors``, ``.pt``), a folder, or a repository; None is the bundled one.

    Raises CheckpointError when it is not there, damaged or no Pi3.
    """
    return load_pi3(source, device=device, revision=revision)


def check_pi3(source: str | Path | None) -> int | None:
    """The width of Pi3's hidden states from a file's header; None where the source is still to be downloaded.

    Raises CheckpointError when a local source is not there, damaged or no Pi3.
    """
    if source is not None and not Path(source).exists():
        return None
    weights = open_weights(find_weights(source))
    read_config(weights)
    return 2 * weights.info("register_token").shape[-1]


def picture_views(picture: Image.Image, pi3: Pi3) -> Tensor:
    """A picture as Pi3 takes it, [1, 1, 3, H, W] in [0, 1], on the CPU: stretched by Pi3's size rule.

    The reference feeds the picture as it is, which fails unless its sides are multiples of 14.
    """
    views = pictures_to_tensor([picture], pixel_limit=pi3.config.pixel_limit, patch_size=pi3.config.encoder.patch_size)
    return views[None]


def small_frames(chunk: Tensor, height: int, width: int) -> Tensor:
    """A chunk of video [3, t, H, W] in [-1, 1] as colours of Pi3's points: [t, 3, height, width] in [0, 1]."""
    frames = chunk.detach().float().cpu().transpose(0, 1).clamp(-1, 1) / 2 + 0.5
    return functional.interpolate(frames, size=(height, width), mode="bilinear", antialias=True, align_corners=False)


@torch.no_grad()
def look(pi3: Pi3, views: Tensor) -> tuple[Pi3Latents, Pi3Output]:
    """What Pi3 knows about views [1, N, 3, H, W], and the geometry it decodes from that."""
    latents = pi3.encode(views.to(pi3.image_mean))
    return latents, pi3.decode(latents)


def pooled_tokens(latents: Pi3Latents) -> Tensor:
    """The decoder's patch tokens without registers, averaged over the views: [B, h * w, 2048] (twice Pi3's width)."""
    return latents.patch_hidden.mean(dim=1)


def guidance_tokens(adapter: Pi3FeatureAdapter, latents: Pi3Latents) -> Tensor:
    """Guidance tokens [B, K, width], float32; gradients reach the adapter."""
    tokens = pooled_tokens(latents).float()
    with torch.autocast(tokens.device.type, enabled=False):
        guidance: Tensor = adapter(tokens, latents.grid)
    return guidance


def check_adapter(adapter: Pi3FeatureAdapter, wanted: int | None, tokens: int | None = None) -> None:
    """Raise ConfigError when the adapter was made for a Pi3 of another width, or for another number of tokens."""
    found = adapter.proj[1].in_features
    if wanted is not None and found != wanted:
        raise ConfigError(
            f"the adapter takes features of width {found}, this Pi3 gives {wanted}: it was trained for another one"
        )
    if tokens is not None and tokens != adapter.target_tokens:
        raise ConfigError(
            f"the adapter was trained for --adapter-tokens {adapter.target_tokens}, got {tokens}; leave the option out"
        )


def is_silent(adapter: Pi3FeatureAdapter) -> bool:
    """Whether the last layer is still all zero, as it is before training."""
    return not any(bool(parameter.any()) for parameter in adapter.proj[3].parameters())
