"""Schedules, shift, noise."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from wan_core.errors import ConfigError
from wan_core.sampling import make_solver, seeded_generator, seeded_noise
from wan_core.sampling.schedule import (
    flow_match_table,
    linear_sigmas,
    make_schedule,
    nearest_sigmas,
    shift_sigma,
    shifted_sigmas,
)


def test_known_timesteps_of_both_solvers() -> None:
    assert make_solver("unipc", 5, flow_shift=5.0).timesteps.tolist() == [999, 952, 882, 768, 555]
    assert make_solver("dpm++", 5, flow_shift=5.0).timesteps.tolist() == [1000, 952, 882, 769, 555]


def test_euler_shows_the_model_float_timesteps() -> None:
    timesteps = make_solver("euler", 4, flow_shift=5.0).timesteps
    assert timesteps.dtype == torch.float32
    assert timesteps.tolist() == pytest.approx([1000, 937.5, 2500 / 3, 625])


@given(sigma=st.floats(0.0, 1.0), shift=st.floats(1.0, 17.0))
def test_shift_keeps_the_ends_and_raises_the_rest(sigma: float, shift: float) -> None:
    assert shift_sigma(0.0, shift) == 0.0
    assert shift_sigma(1.0, shift) == pytest.approx(1.0)
    assert sigma - 1e-12 <= shift_sigma(sigma, shift) <= 1.0 + 1e-12


@given(steps=st.integers(1, 1200), shift=st.floats(1.0, 17.0), name=st.sampled_from(["unipc", "dpm++", "euler"]))
def test_every_schedule_decreases_strictly_to_zero(steps: int, shift: float, name: str) -> None:
    solver = make_solver(name, steps, flow_shift=shift)
    assert solver.timesteps.shape == (steps,)
    assert all(a > b for a, b in zip(solver.sigmas, solver.sigmas[1:], strict=False))  # type: ignore[attr-defined]
    assert solver.sigmas[-1] == 0.0  # type: ignore[attr-defined]


@pytest.mark.parametrize("shift", [0.0, -1.0, math.nan, math.inf])
def test_a_shift_that_is_no_positive_number_is_refused(shift: float) -> None:
    with pytest.raises(ConfigError, match="flow_shift must be a positive number"):
        shifted_sigmas([0.5], shift)


@pytest.mark.parametrize("name", ["unipc", "dpm++", "euler", "renoise"])
def test_zero_steps_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="num_inference_steps must be at least 1, got 0"):
        make_solver(name, 0, flow_shift=5.0)


@pytest.mark.parametrize("sigmas", [[], [0.5, 0.7], [0.5, 0.5], [1.1, 0.5], [0.5, 0.0], [0.5, math.nan]])
def test_sigmas_that_do_not_decrease_within_0_and_1_are_refused(sigmas: list[float]) -> None:
    with pytest.raises(ConfigError):
        make_schedule(sigmas, truncate=True)


def test_explicit_sigmas_replace_the_grid() -> None:
    for name in ("unipc", "dpm++", "euler"):
        solver = make_solver(name, 3, flow_shift=5.0, sigmas=[0.9, 0.5, 0.25])
        assert solver.sigmas == pytest.approx((0.9, 0.5, 0.25, 0.0))  # type: ignore[attr-defined]
        assert [int(t) for t in solver.timesteps] == [900, 500, 250]
        with pytest.raises(ConfigError, match="3 steps need 3 sigmas, got 2"):
            make_solver(name, 3, flow_shift=5.0, sigmas=[0.9, 0.5])


def test_table_entry_i_is_the_shifted_time_of_1000_minus_i() -> None:
    table = flow_match_table(5.0)
    assert table.shape == (1000,)
    assert [1000 * table[i].item() for i in (0, 250, 500, 750)] == pytest.approx([1000, 937.5, 2500 / 3, 625])


def test_nearest_table_entry_is_within_half_a_spacing_and_never_zero() -> None:
    times = torch.tensor([[0.0, 250.0], [750.0, 1000.0]])
    found = nearest_sigmas(times, 8.0)
    assert found.shape == times.shape
    assert found[0, 0].item() == pytest.approx(flow_match_table(8.0)[-1].item())
    assert (found - times / 1000).abs().max() < 0.008


def test_linear_grid_leaves_its_end_out() -> None:
    assert linear_sigmas(4) == [1.0, 0.75, 0.5, 0.25]


def test_noise_of_a_seed_is_the_same_for_every_dtype_and_call() -> None:
    noise = seeded_noise((1, 2, 3, 4, 5), 7)
    assert torch.equal(noise, seeded_noise((1, 2, 3, 4, 5), 7))
    assert torch.equal(noise.bfloat16(), seeded_noise((1, 2, 3, 4, 5), 7, dtype=torch.bfloat16))
    assert not torch.equal(noise, seeded_noise((1, 2, 3, 4, 5), 8))
    assert torch.equal(noise[0], torch.randn(2, 3, 4, 5, generator=seeded_generator(7)))
