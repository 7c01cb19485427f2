"""First-order flow matching: ``x_next = x + (sigma_next - sigma) * velocity``; float timesteps ``1000 * sigma``."""

from collections.abc import Sequence

from wan_core.errors import ConfigError
from wan_core.sampling.schedule import (
    double_shifted_sigmas,
    explicit_sigmas,
    linear_sigmas,
    make_schedule,
    shifted_sigmas,
)
from wan_core.sampling.solvers.base import MultistepSolver

_GRIDS = ("flowmatch", "diffusers")


def make_euler(
    num_inference_steps: int, *, flow_shift: float, sigmas: Sequence[float] | None = None, grid: str = "flowmatch"
) -> MultistepSolver:
    """Euler steps over a shifted grid from sigma 1 to 0.

    ``grid``: "flowmatch" (Wan and Self-Forcing, recommended) or "diffusers" (shifts its low end twice).
    ``sigmas`` replaces the shifted grid. Raises ``ConfigError`` for another grid.
    """
    if grid not in _GRIDS:
        raise ConfigError(f"the Euler grid must be one of {', '.join(_GRIDS)}, got {grid!r}")
    if grid == "diffusers":
        default = double_shifted_sigmas(num_inference_steps, flow_shift)
    else:
        default = shifted_sigmas(linear_sigmas(num_inference_steps), flow_shift)
    schedule = make_schedule(explicit_sigmas(sigmas, num_inference_steps, default), truncate=False)
    steps = zip(schedule.sigmas, schedule.sigmas[1:], strict=False)
    return MultistepSolver(schedule, [{i: 1.0 - following / sigma} for i, (sigma, following) in enumerate(steps)])
