"""DPM-Solver++ multistep (orders 1 to 3) in clean-prediction form.

Lu et al., "DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic Models" (2022), for flow matching
as in Wan. The grid starts at sigma 1, where the log-SNR is -inf: differences to the first prediction then vanish, so
the second step is of first order. The reference does the same, and it is kept for parity.
"""

import math
from collections.abc import Callable, Mapping, Sequence

from wan_core.errors import ConfigError
from wan_core.sampling.schedule import explicit_sigmas, linear_sigmas, make_schedule, shifted_sigmas
from wan_core.sampling.solvers.base import MultistepSolver, StepWeights, log_snr

# diffusers and Wan lower the order before the end only when there are fewer steps than this.
_FEW_STEPS = 15


def make_dpmpp(
    num_inference_steps: int,
    *,
    flow_shift: float,
    sigmas: Sequence[float] | None = None,
    solver_order: int = 2,
    solver_type: str = "midpoint",
    lower_order_final: bool = True,
    euler_at_final: bool = False,
) -> MultistepSolver:
    """DPM-Solver++; the model sees truncated integer timesteps.

    ``solver_type``: "midpoint" or "heun", the form of the second-order steps. ``lower_order_final``: with fewer than
    15 steps, order 3 falls to 2 before the end. The last step is of first order in any case, because sigma ends at 0,
    so ``euler_at_final`` changes nothing and is accepted for the sake of shared settings. ``sigmas`` replaces the
    shifted grid. Raises ``ConfigError`` for other values.
    """
    if solver_order not in (1, 2, 3):
        raise ConfigError(f"solver_order of DPM++ must be 1, 2 or 3, got {solver_order}")
    if solver_type not in _SECOND_ORDER:
        raise ConfigError(f"solver_type of DPM++ must be one of {', '.join(_SECOND_ORDER)}, got {solver_type!r}")
    default = shifted_sigmas(linear_sigmas(num_inference_steps), flow_shift)
    schedule = make_schedule(explicit_sigmas(sigmas, num_inference_steps, default), truncate=True)
    lowered = lower_order_final and num_inference_steps < _FEW_STEPS
    return MultistepSolver(schedule, dpmpp_weights(schedule.sigmas, solver_order, solver_type, lowered))


def dpmpp_weights(sigmas: Sequence[float], order: int, solver_type: str, lowered: bool) -> list[StepWeights]:
    """Weights of each step over clean predictions; ``sigmas`` [N + 1] end with 0."""
    num_steps = len(sigmas) - 1
    lambdas = [log_snr(sigma) for sigma in sigmas]
    rows: list[StepWeights] = []
    for step in range(num_steps):
        span = lambdas[step + 1] - lambdas[step]
        alpha = 1.0 - sigmas[step + 1]
        allowed = min(order, step + 1)
        if step + 1 == num_steps:
            allowed = 1
        elif step + 2 == num_steps and lowered:
            allowed = min(allowed, 2)
        row = {step: -alpha * math.expm1(-span)}
        if allowed == 2:
            ratio = (lambdas[step] - lambdas[step - 1]) / span
            _add_difference(row, step, step - 1, alpha * _SECOND_ORDER[solver_type](span) / ratio)
        elif allowed == 3:
            _add_third_order(row, step, alpha, span, lambdas)
        rows.append(row)
    return rows


def _midpoint(span: float) -> float:
    return -0.5 * math.expm1(-span)


def _heun(span: float) -> float:
    return math.expm1(-span) / span + 1.0


_SECOND_ORDER: Mapping[str, Callable[[float], float]] = {"midpoint": _midpoint, "heun": _heun}


def _add_third_order(row: dict[int, float], step: int, alpha: float, span: float, lambdas: Sequence[float]) -> None:
    """Add the terms of the first and second divided differences of the last three predictions."""
    ratio = (lambdas[step] - lambdas[step - 1]) / span
    ratio_before = (lambdas[step - 1] - lambdas[step - 2]) / span
    first = alpha * _heun(span)
    second = -alpha * ((math.expm1(-span) + span) / span**2 - 0.5)
    # difference of the two slopes: enters the first derivative extrapolated to this step, and the second derivative
    bend = (first * ratio + second) / (ratio + ratio_before)
    _add_difference(row, step, step - 1, (first + bend) / ratio)
    _add_difference(row, step - 1, step - 2, -bend / ratio_before)


def _add_difference(row: dict[int, float], newer: int, older: int, weight: float) -> None:
    """Add ``weight * (m_newer - m_older)``."""
    row[newer] = row.get(newer, 0.0) + weight
    row[older] = row.get(older, 0.0) - weight
