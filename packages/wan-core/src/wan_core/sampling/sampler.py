"""The one sampling loop. It has no options: conditions, experts and solvers are prepared before it starts."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from wan_core.sampling.anchors import Anchors
from wan_core.sampling.solvers.base import Solver


def sample(
    denoiser: Callable[[Tensor, Tensor], Tensor],
    solver: Solver,
    latents: Tensor,
    *,
    anchors: Anchors | None = None,
    generator: torch.Generator | None = None,
    progress: Callable[[Tensor], Iterable[Tensor]] = iter,
) -> Tensor:
    """Integrate ``latents`` [B, C, T, H, W] from noise to clean.

    ``denoiser(latents, timestep)`` gives the velocity, ``solver`` is fresh for this call, ``anchors`` are put in
    before every step and at the end, ``generator`` feeds solvers that draw noise, ``progress`` wraps the timesteps.
    """
    for index, timestep in enumerate(progress(solver.timesteps)):
        if anchors is not None:
            latents = anchors.apply(latents)
        latents = solver.step(denoiser(latents, timestep), index, latents, generator)
    return latents if anchors is None else anchors.apply(latents)
