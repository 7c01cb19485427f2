"""UniPC, predictor-corrector in clean-prediction form with B(h) = e^h - 1 (the field's "bh2").

Zhao et al., "UniPC: A Unified Predictor-Corrector Framework for Fast Sampling of Diffusion Models" (2023), for flow
matching as in Wan. Own formulation: predictor and corrector of one interval differ only in the weights of the
predictions, so a corrected sample is never stored; correction and next prediction are one linear combination.
"""

import math
from collections.abc import Collection, Mapping, Sequence

import numpy as np
import torch

from wan_core.errors import ConfigError
from wan_core.sampling.schedule import (
    LARGEST_FINITE_SIGMA,
    NUM_TRAIN_TIMESTEPS,
    explicit_sigmas,
    linear_sigmas,
    make_schedule,
    shifted_sigmas,
)
from wan_core.sampling.solvers.base import MultistepSolver, StepWeights, log_snr

# Wan starts below 1, at the noise level of its table's first entry, which that table holds in float32.
_FIRST_SIGMA = float(torch.tensor(1.0 - 1.0 / NUM_TRAIN_TIMESTEPS, dtype=torch.float32))
_GRIDS: Mapping[str, tuple[float, float]] = {"wan": (_FIRST_SIGMA, 0.0), "diffusers": (1.0, 1.0 / NUM_TRAIN_TIMESTEPS)}


def make_unipc(
    num_inference_steps: int,
    *,
    flow_shift: float,
    sigmas: Sequence[float] | None = None,
    grid: str = "wan",
    solver_order: int = 2,
    solver_type: str = "bh2",
    disable_corrector: Collection[int] = (),
    lower_order_final: bool = True,
) -> MultistepSolver:
    """UniPC of order 1 to 3; the model sees truncated integer timesteps.

    ``grid``: "wan" (from 0.999 to 0) or "diffusers" (from 1 to 0.001, newer releases). ``sigmas`` replaces the shifted
    grid. ``disable_corrector``: steps whose result is not corrected afterwards. Raises ``ConfigError`` for options
    that have no finite result: "bh1", and ``lower_order_final=False`` above order 1.
    """
    if grid not in _GRIDS:
        raise ConfigError(f"the UniPC grid must be one of {', '.join(_GRIDS)}, got {grid!r}")
    if solver_order not in (1, 2, 3):
        raise ConfigError(f"solver_order of UniPC must be 1, 2 or 3, got {solver_order}")
    if solver_type != "bh2":
        raise ConfigError(f"solver_type of UniPC must be bh2, got {solver_type!r}; bh1 is non-finite at the last step")
    if not lower_order_final and min(solver_order, num_inference_steps) > 1:
        raise ConfigError("lower_order_final=False makes UniPC non-finite at the last step (sigma 0); leave it on")
    default = shifted_sigmas(linear_sigmas(num_inference_steps, *_GRIDS[grid]), flow_shift)
    levels = explicit_sigmas(sigmas, num_inference_steps, default)
    schedule = make_schedule([min(level, LARGEST_FINITE_SIGMA) for level in levels], truncate=True)
    return MultistepSolver(schedule, unipc_weights(schedule.sigmas, solver_order, disable_corrector))


def unipc_weights(sigmas: Sequence[float], order: int, disable_corrector: Collection[int] = ()) -> list[StepWeights]:
    """Weights of each step over clean predictions; ``sigmas`` [N + 1] end with 0."""
    num_steps = len(sigmas) - 1
    lambdas = [log_snr(sigma) for sigma in sigmas]
    rows: list[StepWeights] = []
    correction: dict[int, float] = {}
    for step in range(num_steps):
        span = lambdas[step + 1] - lambdas[step]
        earlier = min(order, num_steps - step, step + 1) - 1
        nodes = {step - k: (lambdas[step - k] - lambdas[step]) / span for k in range(1, earlier + 1)}
        scale = -(1.0 - sigmas[step + 1]) * math.expm1(-span)
        predictor = _interval_weights(scale, step, nodes, span)
        ratio = sigmas[step + 1] / sigmas[step]
        rows.append(_sum(predictor, correction, ratio))
        if step in disable_corrector or step + 1 == num_steps:
            correction = {}
        else:
            corrector = _interval_weights(scale, step, {**nodes, step + 1: 1.0}, span)
            correction = _sum(corrector, predictor, -1.0)
    return rows


def _interval_weights(scale: float, step: int, nodes: Mapping[int, float], span: float) -> dict[int, float]:
    """Weights over one interval from divided differences between ``nodes`` (step: relative position) and ``step``."""
    weights = {step: scale}
    for (other, position), coefficient in zip(nodes.items(), _coefficients(list(nodes.values()), span), strict=True):
        weights[other] = scale * coefficient / position
        weights[step] -= scale * coefficient / position
    return weights


def _coefficients(positions: Sequence[float], span: float) -> list[float]:
    """Coefficients of the differences; with one node the method takes 1/2 for any span, its limit for small ones."""
    if len(positions) < 2:
        return [0.5] * len(positions)
    phi = _phi_functions(-span, len(positions) + 1)
    moments = [math.factorial(k) * phi[k] / phi[0] for k in range(1, len(positions) + 1)]
    return [float(value) for value in np.linalg.solve(np.vander(positions, increasing=True).T, moments)]


def _phi_functions(z: float, count: int) -> list[float]:
    """``phi_k(z) = sum_n z^n / (n + k)!`` for k = 1..count; by series near 0, where the recursion would cancel."""
    if abs(z) < 1.0:
        return [sum(z**n / math.factorial(n + k) for n in range(20)) for k in range(1, count + 1)]
    values = [math.expm1(z) / z]
    for k in range(1, count):
        values.append((values[-1] - 1.0 / math.factorial(k)) / z)
    return values


def _sum(weights: Mapping[int, float], others: Mapping[int, float], factor: float) -> dict[int, float]:
    return {step: weights.get(step, 0.0) + factor * others.get(step, 0.0) for step in {**weights, **others}}
