"""Guidance, experts and anchors in the one loop."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from wan_core.errors import ConfigError, RequestError
from wan_core.sampling import Anchors, Denoiser, ExpertDenoiser, make_solver, sample, seeded_noise
from wan_core.sampling.experts import count_high_noise_steps

SHAPE = (1, 2, 4, 3, 3)


@dataclass(frozen=True)
class Bias:
    """Stand-in for a model's inputs: one value per sample."""

    values: Tensor

    @classmethod
    def batch(cls, parts: Sequence[Self]) -> Self:
        return cls(torch.cat([part.values for part in parts]))


class Network:
    """Stand-in model; remembers the timesteps it saw."""

    def __init__(self) -> None:
        self.seen: list[Tensor] = []

    def __call__(self, latents: Tensor, timesteps: Tensor, inputs: Bias) -> Tensor:
        self.seen.append(timesteps)
        frames = timesteps[:, None] if timesteps.ndim == 1 else timesteps
        return torch.tanh(latents + inputs.values[:, None, None, None, None]) + (frames / 1000)[:, None, :, None, None]


POSITIVE, NEGATIVE = Bias(torch.tensor([0.7])), Bias(torch.tensor([-0.4]))


def test_guidance_extrapolates_from_the_negative_branch() -> None:
    latents, timestep = seeded_noise(SHAPE, 0), torch.tensor(900)
    network = Network()
    guided = Denoiser(network, POSITIVE, NEGATIVE, 5.0)(latents, timestep)
    positive = Denoiser(network, POSITIVE)(latents, timestep)
    negative = Denoiser(network, NEGATIVE)(latents, timestep)
    torch.testing.assert_close(guided, negative + 5.0 * (positive - negative))


@pytest.mark.parametrize(("negative", "scale"), [(None, 5.0), (NEGATIVE, 1.0)])
@pytest.mark.parametrize("batched", [False, True])
def test_without_guidance_there_is_one_forward(negative: Bias | None, scale: float, batched: bool) -> None:
    network = Network()
    velocity = Denoiser(network, POSITIVE, negative, scale, batched=batched)(seeded_noise(SHAPE, 0), torch.tensor(5))
    assert [timesteps.tolist() for timesteps in network.seen] == [[5]]
    torch.testing.assert_close(velocity, Network()(seeded_noise(SHAPE, 0), torch.tensor([5]), POSITIVE))


@pytest.mark.parametrize("anchored", [False, True])
def test_batched_guidance_equals_sequential(anchored: bool) -> None:
    anchors = Anchors.leading(torch.ones(1, 2, 1, 3, 3), 4) if anchored else None
    latents, timestep = seeded_noise(SHAPE, 0), torch.tensor(700)
    network = Network()
    sequential = Denoiser(network, POSITIVE, NEGATIVE, 4.0, anchors=anchors)(latents, timestep)
    batched = Denoiser(network, POSITIVE, NEGATIVE, 4.0, anchors=anchors, batched=True)(latents, timestep)
    torch.testing.assert_close(batched, sequential)
    assert [timesteps.shape[0] for timesteps in network.seen] == [1, 1, 2]


def test_a_scalar_timestep_becomes_one_per_sample() -> None:
    network = Network()
    bias = Bias(torch.zeros(3))
    Denoiser(network, bias)(seeded_noise((3, *SHAPE[1:]), 0), torch.tensor(999))
    assert network.seen[0].tolist() == [999, 999, 999]
    assert network.seen[0].dtype == torch.int64


def test_anchored_frames_get_timestep_zero() -> None:
    network = Network()
    anchors = Anchors.at(torch.ones(1, 2, 2, 3, 3), [0, 2], 4)
    Denoiser(network, Bias(torch.zeros(2)), anchors=anchors)(seeded_noise((2, *SHAPE[1:]), 0), torch.tensor(937.5))
    assert network.seen[0].tolist() == [[0, 937.5, 0, 937.5]] * 2


def test_batch_2_equals_twice_batch_1() -> None:
    start = seeded_noise((2, *SHAPE[1:]), 0)
    bias = torch.tensor([0.3, -0.2])

    def run(latents: Tensor, values: Tensor) -> Tensor:
        anchors = Anchors.leading(latents[:, :, :1] * 0.5, 4)
        denoiser = Denoiser(Network(), Bias(values), Bias(-values), 3.0, anchors=anchors, batched=True)
        return sample(denoiser, make_solver("unipc", 4, flow_shift=5.0), latents, anchors=anchors)

    parts = [run(start[i : i + 1], bias[i : i + 1]) for i in range(2)]
    torch.testing.assert_close(run(start, bias), torch.cat(parts))


def test_a_guidance_scale_that_is_no_number_is_refused() -> None:
    with pytest.raises(ConfigError, match="guidance_scale must be a finite number, got nan"):
        Denoiser(Network(), POSITIVE, NEGATIVE, float("nan"))


# ---- anchors in the loop


@pytest.mark.parametrize("name", ["unipc", "dpm++", "euler", "renoise"])
@pytest.mark.parametrize("positions", [[0], [0, 1, 2], [3], [1, 3], [0, 1, 2, 3]])
def test_anchors_stay_exactly_what_they_are(name: str, positions: list[int]) -> None:
    fixed = seeded_noise((1, 2, len(positions), 3, 3), 5)
    anchors = Anchors.at(fixed, positions, 4)
    seen: list[Tensor] = []

    def denoiser(latents: Tensor, timestep: Tensor) -> Tensor:
        seen.append(latents)
        return torch.sin(latents) + timestep / 1000

    result = sample(denoiser, make_solver(name, 4, flow_shift=5.0), seeded_noise(SHAPE, 0), anchors=anchors)
    for latents in [*seen, result]:
        assert torch.equal(latents[:, :, positions], fixed)


@pytest.mark.parametrize("name", ["unipc", "dpm++", "euler", "renoise"])
def test_nan_on_anchored_frames_cannot_leak(name: str) -> None:
    anchors = Anchors.leading(seeded_noise((1, 2, 1, 3, 3), 5), 4)

    def denoiser(latents: Tensor, timestep: Tensor) -> Tensor:
        velocity = torch.sin(latents)
        velocity[:, :, 0] = float("nan")
        return velocity

    start = seeded_noise(SHAPE, 0)
    start[:, :, 0] = float("nan")
    assert sample(denoiser, make_solver(name, 4, flow_shift=5.0), start, anchors=anchors).isfinite().all()


def test_free_frames_do_not_depend_on_how_anchored_frames_were_predicted() -> None:
    anchors = Anchors.leading(seeded_noise((1, 2, 1, 3, 3), 5), 4)

    def run(junk: float) -> Tensor:
        def denoiser(latents: Tensor, timestep: Tensor) -> Tensor:
            velocity = torch.sin(latents)
            velocity[:, :, 0] += junk
            return velocity

        return sample(denoiser, make_solver("unipc", 5, flow_shift=5.0), seeded_noise(SHAPE, 0), anchors=anchors)

    assert torch.equal(run(0.0), run(1e9))


def test_one_anchor_of_batch_1_serves_a_larger_batch() -> None:
    anchors = Anchors.leading(torch.full((1, 2, 1, 3, 3), 7.0), 4)
    assert anchors.apply(torch.zeros(3, *SHAPE[1:]))[:, :, 0].eq(7.0).all()


@pytest.mark.parametrize(
    ("positions", "message"),
    [
        ([0, 0], "distinct and within 0..3"),
        ([0, 4], "distinct and within 0..3"),
        ([-1, 0], "distinct and within 0..3"),
        ([0], "2 anchored latent frames need as many positions, got 1"),
    ],
)
def test_positions_that_make_no_sense_are_refused(positions: list[int], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        Anchors.at(torch.zeros(1, 2, 2, 3, 3), positions, 4)


def test_more_anchors_than_frames_are_refused() -> None:
    with pytest.raises(RequestError, match="5 anchored latent frames do not fit into 4"):
        Anchors.leading(torch.zeros(1, 2, 5, 3, 3), 4)


# ---- experts


@pytest.mark.parametrize(
    ("steps", "shift", "boundary", "high_steps"), [(40, 12.0, 0.875, 26), (40, 5.0, 0.9, 15)], ids=["t2v", "i2v"]
)
def test_the_real_defaults_switch_once_after_the_known_number_of_steps(
    steps: int, shift: float, boundary: float, high_steps: int
) -> None:
    calls: list[str] = []

    def expert(name: str) -> Denoiser:
        def model(latents: Tensor, timesteps: Tensor, inputs: Bias) -> Tensor:
            calls.append(name)
            return latents

        return Denoiser(model, POSITIVE)

    solver = make_solver("unipc", steps, flow_shift=shift)
    assert count_high_noise_steps(solver.timesteps, boundary) == high_steps
    sample(ExpertDenoiser(expert("high"), expert("low"), boundary), solver, seeded_noise(SHAPE, 0))
    assert calls == ["high"] * high_steps + ["low"] * (steps - high_steps)


@pytest.mark.parametrize(("timestep", "expert"), [(875, 1.0), (874, 2.0), (875.9, 1.0), (874.9, 2.0)])
def test_the_boundary_itself_is_high_noise(timestep: float, expert: float) -> None:
    denoiser = ExpertDenoiser(lambda latents, t: torch.tensor(1.0), lambda latents, t: torch.tensor(2.0), 0.875)
    assert denoiser(torch.zeros(SHAPE), torch.tensor(timestep)).item() == expert


def test_a_boundary_outside_0_to_1_is_refused() -> None:
    with pytest.raises(ConfigError, match="boundary must be within 0"):
        ExpertDenoiser(lambda latents, t: latents, lambda latents, t: latents, 875)


def test_progress_sees_every_timestep() -> None:
    seen: list[int] = []

    def progress(timesteps: Tensor) -> list[Tensor]:
        seen.extend(timesteps.tolist())
        return list(timesteps)

    solver = make_solver("euler", 3, flow_shift=1.0)
    sample(lambda latents, timestep: latents, solver, torch.zeros(SHAPE), progress=progress)
    assert seen == pytest.approx([1000, 2000 / 3, 1000 / 3])


# ---- what a step costs


@pytest.mark.parametrize("name", ["unipc", "dpm++", "euler", "renoise"])
def test_a_run_never_reads_values_back_from_the_device(name: str) -> None:
    anchors = Anchors.leading(torch.zeros(1, 2, 1, 3, 3, device="meta"), 4)
    inputs = Bias(torch.zeros(1, device="meta"))
    branch = Denoiser(Network(), inputs, inputs, 5.0, anchors=anchors)
    denoiser = ExpertDenoiser(branch, Denoiser(Network(), inputs, inputs, 3.0, batched=True))
    start = torch.zeros(SHAPE, device="meta")  # has no values: reading one would raise
    result = sample(denoiser, make_solver(name, 5, flow_shift=5.0), start, anchors=anchors)
    assert result.shape == SHAPE
    assert result.is_meta


class OperationCount(TorchDispatchMode):
    """Counts tensor operations."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("name", "limit"), [("unipc", 6.0), ("dpm++", 5.0), ("euler", 2.5)])
def test_a_step_is_a_handful_of_operations(name: str, limit: float) -> None:
    velocity, start = seeded_noise(SHAPE, 1), seeded_noise(SHAPE, 0)
    with OperationCount() as operations:
        sample(lambda latents, timestep: velocity, make_solver(name, 20, flow_shift=5.0), start)
    assert operations.count / 20 <= limit
