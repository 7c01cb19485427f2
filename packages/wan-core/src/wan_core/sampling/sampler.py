"""The one sampling loop. It has no options: conditions, experts and solvers are prepared before it starts."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from wan_core.sampling.anchors import Anchors
from wan_core.sampling.solvers.base import Solver


def sampling_steps(
    denoiser: Callable[[Tensor, Tensor], Tensor],
    solver: Solver,
    latents: Tensor,
    *,
    anchors: Anchors | None = None,
    generator: torch.Generator | None = None,
    progress: Callable[[Tensor], Iterable[Tensor]] = iter,
) -> Iterator[Tensor]:
    """Integrate ``latents`` [B, C, T, H, W] from noise to clean, one step when it is asked for; yields them after each.

    ``denoiser(latents, timestep)`` gives the velocity, ``solver`` is fresh for this call, ``anchors`` are put in
    before every step and at the end, ``generator`` feeds solvers that draw noise, ``progress`` wraps the timesteps.
    """
    last = len(solver.timesteps) - 1
    for index, timestep in enumerate(progress(solver.timesteps)):
        if anchors is not None:
            latents = anchors.apply(latents)
        latents = solver.step(denoiser(latents, timestep), index, latents, generator)
        if anchors is not None and index == last:
            latents = anchors.apply(latents)
        yield latents


def sample(
    denoiser: Callable[[Tensor, Tensor], Tensor],
    solver: Solver,
    latents: Tensor,
    *,
    anchors: Anchors | None = None,
    generator: torch.Generator | None = None,
    progress: Callable[[Tensor], Iterable[Tensor]] = iter,
) -> Tensor:
    """The clean latents of :func:`sampling_steps`."""
    steps = sampling_steps(denoiser, solver, latents, anchors=anchors, generator=generator, progress=progress)
    return deque(steps, maxlen=1).pop()
