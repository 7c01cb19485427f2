"""From a picture to guidance tokens: Pi3 looks at it, its patch tokens are averaged over views, the adapter pools them.

The path is that of the reference pipeline (spec of Pi3-guided TI2V-5B); the code is our own.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from wan_core import ConfigError

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from pi3 import Pi3, Pi3Config, Pi3Latents, Pi3Output
    from poze.adapter import Pi3FeatureAdapter
    from wan_core.models import DiTInputs, WanDiTConfig

PI3_ID = "yyfz233/Pi3"


def image_views(image: Image.Image, pi3: Pi3) -> Tensor:
    """An image as Pi3 takes it, [1, 1, 3, H, W] in [0, 1], on the CPU: stretched by Pi3's size rule.

    The reference feeds the image as it is, which fails unless its sides are multiples of 14.
    """
    from pi3 import pictures_to_tensor

    views = pictures_to_tensor([image], pixel_limit=pi3.config.pixel_limit, patch_size=pi3.config.encoder.patch_size)
    return views[None]


def look(pi3: Pi3, views: Tensor) -> tuple[Pi3Latents, Pi3Output]:
    """What Pi3 knows about views [1, N, 3, H, W], and the geometry it decodes from that."""
    import torch

    with torch.no_grad():
        latents = pi3.encode(views.to(pi3.image_mean))
        return latents, pi3.decode(latents)


def pooled_tokens(latents: Pi3Latents) -> Tensor:
    """The decoder's patch tokens without registers, averaged over the views: [B, h * w, 2048] (twice Pi3's width)."""
    return latents.patch_hidden.mean(dim=1)


def guidance_tokens(adapter: Pi3FeatureAdapter, latents: Pi3Latents) -> Tensor:
    """Guidance tokens [B, K, width], float32; gradients reach the adapter."""
    return project_tokens(adapter, pooled_tokens(latents), latents.grid)


def project_tokens(adapter: Pi3FeatureAdapter, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """Guidance tokens [B, K, width] of `pooled_tokens` [B, h * w, C], computed in float32 whatever autocast says."""
    import torch

    with torch.autocast(tokens.device.type, enabled=False):
        guidance: Tensor = adapter(tokens.float(), grid)
    return guidance


def with_guidance(inputs: DiTInputs, tokens: Tensor, *, space: str) -> DiTInputs:
    """Conditions with guidance tokens [B, K, width] behind the embedded text.

    In the ``text`` space they are rows of the text states, which the text embedding then projects.
    """
    import torch

    if space == "text":
        return replace(inputs, context=torch.cat([inputs.context, tokens.to(inputs.context)], dim=1))
    return replace(inputs, extra_context=tokens)


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


def check_widths(adapter: Pi3FeatureAdapter, pi3: Pi3Config, network: WanDiTConfig) -> None:
    """Raise ConfigError when the adapter does not lead from this Pi3 to this transformer."""
    wanted = (2 * pi3.encoder.dim, network.text_dim if adapter.context_space == "text" else network.dim)
    width, in_dim = int(adapter.proj[1].out_features), adapter.in_dim  # type: ignore[arg-type]
    if (in_dim, width) != wanted:
        raise ConfigError(
            f"the adapter leads from width {in_dim} to {width}; this Pi3 and this transformer need {wanted[0]} to "
            f"{wanted[1]}: it was trained for others"
        )


def is_silent(adapter: Pi3FeatureAdapter) -> bool:
    """Whether the last layer is still all zero, as it is before training."""
    return not any(bool(parameter.any()) for parameter in adapter.proj[3].parameters())
