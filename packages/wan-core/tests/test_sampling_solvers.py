"""Solvers: accuracy, limits, and equality with diffusers where the noise levels coincide."""

from collections.abc import Callable
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from wan_core.errors import ConfigError
from wan_core.sampling import Solver, make_solver, sample, seeded_generator, seeded_noise
from wan_core.sampling.solvers.base import MultistepSolver

SOLVERS: list[tuple[str, dict[str, Any]]] = [
    ("unipc", {}),
    ("unipc", {"solver_order": 1}),
    ("unipc", {"solver_order": 3}),
    ("unipc", {"disable_corrector": [0, 1]}),
    ("unipc", {"grid": "diffusers"}),
    ("dpm++", {}),
    ("dpm++", {"solver_order": 1}),
    ("dpm++", {"solver_order": 3}),
    ("dpm++", {"solver_order": 3, "lower_order_final": False}),
    ("dpm++", {"solver_type": "heun"}),
    ("euler", {}),
    ("euler", {"grid": "diffusers"}),
]
SHAPE = (1, 2, 3, 4, 5)


def curved_field(solver: MultistepSolver) -> Callable[[Tensor, Tensor], Tensor]:
    """Velocity of data that are Gaussian (mean 0.3, deviation 0.2), at the solver's exact noise levels."""
    levels = iter(solver.sigmas)

    def field(latents: Tensor, timestep: Tensor) -> Tensor:
        sigma = next(levels)
        variance = (1 - sigma) ** 2 * 0.04 + sigma**2
        offset = (latents - (1 - sigma) * 0.3) / variance
        clean = 0.3 + (1 - sigma) * 0.04 * offset
        return sigma * offset - clean

    return field


def curved_error(name: str, steps: int, **options: Any) -> float:
    """Largest distance from the exact end point after ``steps`` steps, in float64."""
    solver = make_solver(name, steps, flow_shift=3.0, **options)
    assert isinstance(solver, MultistepSolver)
    start = seeded_noise(SHAPE, 0).double()
    sigma = solver.sigmas[0]
    scale = ((1 - sigma) ** 2 * 0.04 + sigma**2) ** 0.5
    exact = 0.3 + 0.2 * (start - (1 - sigma) * 0.3) / scale
    return (sample(curved_field(solver), solver, start) - exact).abs().max().item()


@pytest.mark.parametrize(("name", "options"), SOLVERS)
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 7, 20, 300])
@pytest.mark.parametrize("shift", [1.0, 5.0, 17.0])
def test_a_straight_path_is_followed_exactly(name: str, options: dict[str, Any], steps: int, shift: float) -> None:
    solver = make_solver(name, steps, flow_shift=shift, **options)
    start, velocity = seeded_noise(SHAPE, 0).double(), seeded_noise(SHAPE, 1).double()
    end = sample(lambda latents, timestep: velocity, solver, start)
    torch.testing.assert_close(end, start - solver.sigmas[0] * velocity, atol=1e-10, rtol=0)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("name", "options", "order"),
    [
        ("euler", {}, 1),
        ("unipc", {"solver_order": 1, "disable_corrector": range(99)}, 1),
        ("dpm++", {"solver_order": 1}, 1),
        ("dpm++", {}, 2),
        ("dpm++", {"solver_type": "heun"}, 2),
        ("unipc", {}, 2),
        ("unipc", {"disable_corrector": range(99)}, 2),
        ("unipc", {"solver_order": 3}, 2),
    ],
)
def test_halving_the_steps_changes_the_error_by_the_order(name: str, options: dict[str, Any], order: int) -> None:
    ratio = curved_error(name, 24, **options) / curved_error(name, 48, **options)
    assert ratio > 0.75 * 2**order


def test_the_corrector_makes_the_run_more_accurate() -> None:
    assert curved_error("unipc", 96) < 0.6 * curved_error("unipc", 96, disable_corrector=range(96))


def test_second_step_of_dpmpp_is_first_order_because_its_grid_starts_at_sigma_1() -> None:
    solver, first_order = (
        make_solver("dpm++", 6, flow_shift=5.0),
        make_solver("dpm++", 6, flow_shift=5.0, solver_order=1),
    )
    latents = seeded_noise(SHAPE, 0)
    for index in range(2):
        velocity = seeded_noise(SHAPE, index + 1)
        stepped = solver.step(velocity, index, latents, None)
        assert torch.equal(stepped, first_order.step(velocity, index, latents, None))
        latents = stepped
    velocity = seeded_noise(SHAPE, 9)
    assert not torch.equal(solver.step(velocity, 2, latents, None), first_order.step(velocity, 2, latents, None))


def test_coinciding_first_timesteps_skip_no_noise_level() -> None:
    solver = make_solver("unipc", 300, flow_shift=5.0)
    assert solver.timesteps[0] == solver.timesteps[1]
    velocity = torch.ones(SHAPE)
    first = solver.step(velocity, 0, torch.zeros(SHAPE), None)
    sigmas = solver.sigmas  # type: ignore[attr-defined]
    torch.testing.assert_close(first, torch.full(SHAPE, sigmas[1] - sigmas[0]))


@pytest.mark.parametrize(("name", "options"), SOLVERS)
def test_batch_2_equals_twice_batch_1(name: str, options: dict[str, Any]) -> None:
    start = seeded_noise((2, *SHAPE[1:]), 0)

    def field(latents: Tensor, timestep: Tensor) -> Tensor:
        return torch.sin(3 * latents) + timestep / 1000

    whole = sample(field, make_solver(name, 5, flow_shift=5.0, **options), start)
    parts = [sample(field, make_solver(name, 5, flow_shift=5.0, **options), part) for part in start.split(1)]
    assert torch.equal(whole, torch.cat(parts))


@pytest.mark.parametrize("name", ["unipc", "dpm++", "euler", "renoise"])
def test_half_precision_is_computed_and_returned_in_float32(name: str) -> None:
    solver = make_solver(name, 3, flow_shift=5.0)
    latents = solver.step(torch.ones(SHAPE, dtype=torch.bfloat16), 0, torch.zeros(SHAPE, dtype=torch.bfloat16), None)
    assert latents.dtype == torch.float32


def test_gradients_flow_through_a_whole_run() -> None:
    start = seeded_noise(SHAPE, 0).requires_grad_()
    sample(lambda latents, timestep: latents.square(), make_solver("unipc", 4, flow_shift=3.0), start).sum().backward()
    assert start.grad is not None
    assert start.grad.isfinite().all()


def test_steps_out_of_order_and_second_runs_are_refused() -> None:
    solver = make_solver("unipc", 2, flow_shift=5.0)
    with pytest.raises(ConfigError, match="expected 0 of 2, got 1"):
        solver.step(torch.zeros(SHAPE), 1, torch.zeros(SHAPE), None)
    sample(lambda latents, timestep: latents, solver, torch.zeros(SHAPE))
    with pytest.raises(ConfigError, match="build a new solver"):
        sample(lambda latents, timestep: latents, solver, torch.zeros(SHAPE))


def test_nothing_is_kept_after_the_last_step() -> None:
    solver = make_solver("unipc", 6, flow_shift=5.0, solver_order=3)
    assert isinstance(solver, MultistepSolver)
    sample(lambda latents, timestep: latents, solver, torch.zeros(SHAPE))
    assert not solver._predictions


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("heun", {}, "unknown solver 'heun'; there are unipc, dpm"),
        ("unipc", {"euler_at_final": True}, "solver unipc has no option 'euler_at_final'"),
        ("unipc", {"solver_type": "bh1"}, "non-finite at the last step"),
        ("unipc", {"lower_order_final": False}, "non-finite at the last step"),
        ("unipc", {"solver_order": 4}, "must be 1, 2 or 3, got 4"),
        ("unipc", {"grid": "karras"}, "one of wan, diffusers, got 'karras'"),
        ("dpm++", {"solver_order": 0}, "must be 1, 2 or 3, got 0"),
        ("dpm++", {"solver_type": "bh2"}, "one of midpoint, heun, got 'bh2'"),
        ("euler", {"grid": "wan"}, "one of flowmatch, diffusers, got 'wan'"),
        ("renoise", {"timesteps": [1000, 500]}, "4 steps need 4 timesteps, got 2"),
        ("renoise", {"timesteps": [1000, 500, 250, 0]}, r"within \(0, 1000\]"),
    ],
)
def test_options_that_cannot_work_are_refused(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_solver(name, 4, flow_shift=5.0, **options)


def test_lower_order_final_may_be_off_where_the_last_step_is_first_order_anyway() -> None:
    for steps, order in ((5, 1), (1, 2)):
        solver = make_solver("unipc", steps, flow_shift=5.0, solver_order=order, lower_order_final=False)
        assert sample(lambda latents, timestep: latents, solver, torch.ones(SHAPE)).isfinite().all()


# ---- diffusers as a live peer


def peer_trajectory(scheduler: Any, start: Tensor) -> list[Tensor]:
    latents, visited = start, []
    for timestep in scheduler.timesteps:
        velocity = torch.sin(2 * latents) + timestep / 1000
        latents = scheduler.step(velocity, timestep, latents, return_dict=False)[0]
        visited.append(latents)
    return visited


def own_trajectory(solver: Solver, start: Tensor) -> list[Tensor]:
    latents, visited = start, []
    for index, timestep in enumerate(solver.timesteps):
        latents = solver.step(torch.sin(2 * latents) + timestep / 1000, index, latents, None)
        visited.append(latents)
    return visited


def assert_same_run(solver: Solver, scheduler: Any) -> None:
    start = seeded_noise(SHAPE, 3)
    assert solver.timesteps.tolist() == pytest.approx(scheduler.timesteps.tolist(), rel=1e-6)
    for own, peer in zip(own_trajectory(solver, start), peer_trajectory(scheduler, start), strict=True):
        torch.testing.assert_close(own, peer, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
@pytest.mark.parametrize("shift", [1.0, 3.0, 8.0])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_unipc_equals_diffusers_on_its_grid(steps: int, shift: float, order: int) -> None:
    scheduler = diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift, solver_order=order
    )
    scheduler.set_timesteps(steps)
    assert_same_run(make_solver("unipc", steps, flow_shift=shift, solver_order=order, grid="diffusers"), scheduler)


@pytest.mark.parametrize("steps", [1, 2, 5, 20])
def test_unipc_equals_diffusers_on_our_sigmas(steps: int) -> None:
    solver = make_solver("unipc", steps, flow_shift=5.0)
    assert isinstance(solver, MultistepSolver)
    scheduler = diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=1.0
    )
    scheduler.set_timesteps(sigmas=torch.tensor(solver.sigmas[:-1]).double().numpy())
    assert_same_run(solver, scheduler)


@pytest.mark.parametrize("steps", [1, 2, 4, 8, 20])
@pytest.mark.parametrize("options", [{}, {"solver_order": 3}, {"solver_type": "heun"}, {"solver_order": 1}])
def test_dpmpp_equals_diffusers_on_our_sigmas(steps: int, options: dict[str, Any]) -> None:
    solver = make_solver("dpm++", steps, flow_shift=5.0, **options)
    assert isinstance(solver, MultistepSolver)
    scheduler = diffusers.DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, final_sigmas_type="zero", **options
    )
    scheduler.set_timesteps(steps)
    scheduler.sigmas, scheduler.timesteps = torch.tensor(solver.sigmas), solver.timesteps.clone()
    assert_same_run(solver, scheduler)


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
@pytest.mark.parametrize("shift", [1.0, 3.0, 12.0])
def test_euler_equals_diffusers_on_both_grids(steps: int, shift: float) -> None:
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(steps)
    assert_same_run(make_solver("euler", steps, flow_shift=shift, grid="diffusers"), scheduler)
    own = make_solver("euler", steps, flow_shift=shift)
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(sigmas=[1 - i / steps for i in range(steps)])
    assert_same_run(own, scheduler)


# ---- few steps with fresh noise


def test_renoise_uses_the_shifted_times_of_self_forcing() -> None:
    solver = make_solver("renoise", 4, flow_shift=5.0)
    assert solver.timesteps.tolist() == pytest.approx([1000, 937.5, 2500 / 3, 625])
    listed = make_solver("renoise", 4, flow_shift=8.0, timesteps=[1000, 750, 500, 250])
    assert listed.timesteps.tolist() == pytest.approx([1000, 960, 888.8889, 727.27277])


def test_renoise_without_shift_shows_the_times_and_looks_the_levels_up() -> None:
    solver = make_solver("renoise", 4, flow_shift=5.0, timesteps=[1000, 750, 500, 250], shift_timesteps=False)
    assert solver.timesteps.tolist() == [1000, 750, 500, 250]
    levels = torch.tensor(solver.sigmas[:-1])  # type: ignore[attr-defined]
    assert 0 < (levels - solver.timesteps / 1000).abs().max() < 0.0025


def test_renoise_mixes_the_prediction_with_the_generators_next_noise() -> None:
    solver = make_solver("renoise", 2, flow_shift=5.0)
    latents, velocity, generator = seeded_noise(SHAPE, 1), seeded_noise(SHAPE, 2), seeded_generator(3)
    sigma, following, _ = solver.sigmas  # type: ignore[attr-defined]
    fresh = torch.randn(SHAPE, generator=seeded_generator(3))
    expected = (1 - following) * (latents - sigma * velocity) + following * fresh
    stepped = solver.step(velocity, 0, latents, generator)
    torch.testing.assert_close(stepped, expected)
    torch.testing.assert_close(solver.step(velocity, 1, stepped, generator), stepped - following * velocity)


def test_renoise_takes_given_noise() -> None:
    draws = iter([torch.full(SHAPE, 5.0)])
    solver = make_solver("renoise", 2, flow_shift=1.0, noise=lambda shape: next(draws))
    stepped = solver.step(torch.zeros(SHAPE), 0, torch.zeros(SHAPE), None)
    torch.testing.assert_close(stepped, torch.full(SHAPE, 2.5))
