"""The student's own videos in training: made as in sampling, with gradients through one step of each block."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from selfforcing_unianimate.causal_dit import CausalDiT, CausalInputs
from selfforcing_unianimate.distillation.past import Past
from selfforcing_unianimate.distillation.rollout import SelfForcing, draw_exits, draw_frames
from selfforcing_unianimate.frame_blocks import FrameBlocks
from selfforcing_unianimate.memory import CausalMemory
from wan_core import ConfigError, RequestError
from wan_core.runtime import prepare_model
from wan_core.sampling import Denoiser, FlowTable, make_solver, sample

from .small_student import drawn, new_network

FRAMES = 7
TABLE = FlowTable(5.0)
FORCING = SelfForcing(table=TABLE, timesteps=TABLE.warped([1000, 500]), noised_context=False)
LAYOUTS = [
    FrameBlocks(size=3),
    FrameBlocks(size=2, first_alone=True),
    FrameBlocks(size=2, window=3),
    FrameBlocks(size=1, window=3, sink=1),
    FrameBlocks(size=2, window=5, sink=2),
]


NOISE = drawn(2, 4, FRAMES, 4, 4)
CONDITIONS = CausalInputs(context=drawn(2, 3, 8), add_condition=drawn(2, FRAMES, 4, 10))


class Draws:
    """The same noise for the same call, sample by sample."""

    def __init__(self, first: int = 0) -> None:
        self.count, self.first = 0, first

    def __call__(self, latents: Tensor) -> Tensor:
        self.count += 1
        shape = latents.shape[1:]
        return torch.stack([drawn(*shape) + 0.1 * (self.first + i) * self.count for i in range(latents.shape[0])])


def exits_of(blocks: FrameBlocks, *steps: int) -> list[int]:
    """Last steps of all blocks, in turns."""
    return [steps[index % len(steps)] for index in range(blocks.count(FRAMES))]


@pytest.mark.parametrize("blocks", LAYOUTS, ids=str)
def test_a_rollout_to_the_last_step_is_what_sampling_makes(blocks: FrameBlocks) -> None:
    network, draw, again = new_network(), Draws(), Draws()
    inputs = replace(CONDITIONS, blocks=blocks)
    rolled = FORCING.roll(network, NOISE, inputs, exits_of(blocks, 1), draw=draw)
    memory, made = CausalMemory(blocks, FRAMES), []
    with torch.no_grad():
        for start, stop in blocks.spans(FRAMES):
            denoiser = Denoiser(network, replace(inputs, memory=memory).frames(start, stop))
            block = NOISE[:, :, start:stop]
            steps = {"timesteps": [1000, 500], "noise": lambda shape, like=block: again(like)}
            made.append(sample(denoiser, make_solver("renoise", 2, flow_shift=5.0, **steps), block))
            denoiser(made[-1], torch.tensor(0.0))
    torch.testing.assert_close(rolled.latents, torch.cat(made, dim=2), rtol=1e-4, atol=1e-4)
    assert (rolled.entered, rolled.left) == (500, 0)


def gradients(network: CausalDiT, blocks: FrameBlocks, noise: Tensor = NOISE) -> dict[str, Tensor]:
    """The gradients of all weights, with last steps that differ."""
    forcing = replace(FORCING, noised_context=True)
    inputs = replace(CONDITIONS, blocks=blocks)
    rolled = forcing.roll(network, noise, inputs, exits_of(blocks, 0, 1), draw=Draws())
    (rolled.latents * drawn(*rolled.latents.shape)).sum().backward()
    return {name: weight.grad for name, weight in network.named_parameters() if weight.grad is not None}


@pytest.mark.parametrize("blocks", LAYOUTS, ids=str)
def test_gradients_are_the_same_when_blocks_are_computed_again(blocks: FrameBlocks) -> None:
    expected, network = gradients(new_network(), blocks), new_network()
    prepare_model(network, inference=False, recompute=True)
    found = gradients(network, blocks)
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6)


def test_no_gradient_passes_from_a_block_to_an_earlier_one_or_to_an_earlier_step() -> None:
    network, blocks, noise = new_network(), FrameBlocks(size=3), NOISE.clone().requires_grad_()
    inputs = replace(CONDITIONS, blocks=blocks)
    first = FORCING.roll(network, noise, inputs, [0, 0, 0], draw=Draws()).latents
    (slope,) = torch.autograd.grad(first[:, :, 3:].square().sum(), noise)
    assert bool((slope[:, :, :3] == 0).all())
    assert bool((slope[:, :, 3:] != 0).any())
    later = FORCING.roll(network, noise, inputs, [1, 1, 1], draw=Draws()).latents
    assert torch.autograd.grad(later.square().sum(), noise, allow_unused=True) == (None,)


def test_the_last_step_learns_through_the_text_also_where_earlier_steps_kept_it() -> None:
    network = new_network()
    rolled = FORCING.roll(network, NOISE, replace(CONDITIONS, blocks=FrameBlocks(size=3)), [1, 1, 1], draw=Draws())
    rolled.latents.sum().backward()
    weight = network.get_parameter("blocks.0.cross_attn.k.weight")
    assert weight.grad is not None
    assert bool(weight.grad.abs().sum() > 0)


def test_a_batch_is_its_samples_one_by_one() -> None:
    network, blocks = new_network(), FrameBlocks(size=2, window=4)
    inputs, forcing = replace(CONDITIONS, blocks=blocks), replace(FORCING, noised_context=True, context_noise=50.0)
    exits = exits_of(blocks, 1, 0)
    both = forcing.roll(network, NOISE, inputs, exits, draw=Draws()).latents
    for index in range(2):
        one = slice(index, index + 1)
        assert inputs.add_condition is not None
        alone = replace(inputs, context=inputs.context[one], add_condition=inputs.add_condition[one])
        found = forcing.roll(network, NOISE[one], alone, exits, draw=Draws(index)).latents
        torch.testing.assert_close(found, both[one], rtol=1e-4, atol=1e-4)


def test_each_block_has_its_own_frames_of_the_pose() -> None:
    network, blocks = new_network(), FrameBlocks(size=3)
    assert CONDITIONS.add_condition is not None
    moved = CONDITIONS.add_condition.clone()
    moved[:, -1] += 1
    one, other = (
        FORCING.roll(
            network, NOISE, replace(CONDITIONS, blocks=blocks, add_condition=pose), [1, 1, 1], draw=Draws()
        ).latents
        for pose in (CONDITIONS.add_condition, moved)
    )
    assert torch.equal(one[:, :, :6], other[:, :, :6])
    assert not torch.equal(one[:, :, 6:], other[:, :, 6:])


def test_only_the_last_frames_learn() -> None:
    network, blocks = new_network(), FrameBlocks(size=2, first_alone=True)
    forcing = replace(FORCING, learned_frames=3)
    noise = NOISE.clone().requires_grad_()
    latents = forcing.roll(network, noise, replace(CONDITIONS, blocks=blocks), [0] * 4, draw=Draws()).latents
    (slope,) = torch.autograd.grad(latents.sum(), noise)
    assert slope.abs().sum(dim=(0, 1, 3, 4)).gt(0).tolist() == [False] * 5 + [True] * 2


def test_given_frames_come_first_and_are_seen() -> None:
    network, blocks = new_network(), FrameBlocks(size=3, first_alone=True)
    inputs = replace(CONDITIONS, blocks=blocks)
    given = drawn(2, 4, 1, 4, 4)
    one, other = (
        FORCING.roll(network, NOISE[:, :, 1:], inputs, [1, 1], given=frame, draw=Draws()).latents
        for frame in (given, given + 1)
    )
    assert torch.equal(one[:, :, :1], given)
    assert not torch.allclose(one[:, :, 1:], other[:, :, 1:])
    with pytest.raises(RequestError, match="7 latent frames, of which 2 are given, are 3 blocks"):
        FORCING.roll(network, NOISE[:, :, 2:], inputs, [1, 1], given=NOISE[:, :, :2])


def test_last_steps_are_drawn_for_all_blocks_or_for_each() -> None:
    one = draw_exits(50, 4, torch.Generator().manual_seed(3))
    assert len(set(one)) == 1
    assert one == draw_exits(50, 4, torch.Generator().manual_seed(3))
    assert set(draw_exits(50, 4, torch.Generator().manual_seed(3), same=False)) == {0, 1, 2, 3}
    assert draw_exits(3, 4, torch.Generator(), last_only=True) == [3, 3, 3]


def test_numbers_of_frames_are_whole_blocks_between_the_limits() -> None:
    generator = torch.Generator().manual_seed(0)
    assert {draw_frames(27, 3, generator) for _ in range(50)} == {21, 24, 27}
    assert {draw_frames(25, 4, generator, given=1) for _ in range(50)} == {20, 24}
    with pytest.raises(ConfigError, match="is not made of blocks of 3"):
        draw_frames(22, 3, generator)
    with pytest.raises(ConfigError, match="is not made of blocks of 3"):
        draw_frames(18, 3, generator)


@pytest.mark.parametrize("steps", [[], [500.0, 1000.0], [1000.0, 0.0], [1001.0]])
def test_steps_decrease_within_the_range(steps: list[float]) -> None:
    with pytest.raises(ConfigError, match="steps must decrease"):
        replace(FORCING, timesteps=steps)


def test_a_block_that_leaves_a_gap_is_refused() -> None:
    past = Past(FrameBlocks(size=3))
    with pytest.raises(RequestError, match="block at latent frame 3 leaves a gap"):
        past.place(3, 3, 4, 2)
