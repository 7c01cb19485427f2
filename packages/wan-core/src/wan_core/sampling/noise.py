"""Seeded Gaussian noise that does not depend on the machine."""

from collections.abc import Sequence

import torch
from torch import Tensor


def seeded_generator(seed: int, noise_device: str | torch.device = "cpu") -> torch.Generator:
    """A random generator on ``noise_device`` with a resolved seed (0 <= seed < 2**63)."""
    return torch.Generator(noise_device).manual_seed(seed)


def seeded_noise(
    shape: Sequence[int],
    seed: int,
    *,
    device: str | torch.device = "cpu",
    noise_device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Standard normal noise of ``shape`` on ``device``.

    Drawn in float32 by a generator on ``noise_device``, then moved and cast, so that one seed gives the same noise for
    every compute device and dtype. Generators of different device types give different noise for one seed.
    """
    return draw_noise(shape, seeded_generator(seed, noise_device)).to(device=device, dtype=dtype)


def draw_noise(
    shape: Sequence[int], generator: torch.Generator | None, device: str | torch.device | None = None
) -> Tensor:
    """The next float32 draw of ``generator``, moved to ``device``; without a generator, drawn on ``device`` itself."""
    if generator is None:
        return torch.randn(*shape, device=device, dtype=torch.float32)
    noise = torch.randn(*shape, generator=generator, device=generator.device, dtype=torch.float32)
    return noise if device is None else noise.to(device)
