"""What a student learns by: closed forms of the losses, masks, noise levels by block, the history, the critic."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from selfforcing_unianimate.causal_dit import CausalInputs
from selfforcing_unianimate.distillation.adversary import (
    GANCritic,
    discriminator_loss,
    generator_loss,
    roughness,
    watched_blocks,
)
from selfforcing_unianimate.distillation.forcing import (
    History,
    forcing_loss,
    path_latents,
    regression_loss,
    shared_by_block,
)
from selfforcing_unianimate.distillation.long_video import scored_end
from selfforcing_unianimate.distillation.matching import (
    ScoreTimes,
    critic_loss,
    dmd_gradient,
    dmd_loss,
    guided,
    match_distribution,
    match_scores,
    prediction,
)
from selfforcing_unianimate.frame_blocks import FrameBlocks
from wan_core import ConfigError, RequestError
from wan_core.models import VAEConfig, VideoVAE
from wan_core.sampling import FlowTable

from .small_student import drawn, new_network

TABLE = FlowTable(5.0)
BLOCKS = FrameBlocks(size=2)


LATENTS, NOISE = drawn(2, 4, 4, 4, 6), drawn(2, 4, 4, 6, 4).transpose(3, 4)
INPUTS = CausalInputs(context=drawn(2, 3, 8), add_condition=drawn(2, 4, 6, 10), blocks=BLOCKS)


def test_the_gradient_of_the_matching_loss_is_the_given_one_over_the_number_of_elements() -> None:
    latents, gradient = LATENTS.clone().requires_grad_(), drawn(2, 4, 4, 4, 6) * 3
    (found,) = torch.autograd.grad(dmd_loss(latents, gradient), latents)
    torch.testing.assert_close(found, gradient / latents.numel())
    mask = torch.ones(1, 1, 4, 1, 1, dtype=torch.bool)
    mask[:, :, :3] = False
    (found,) = torch.autograd.grad(dmd_loss(latents, gradient, mask), latents)
    torch.testing.assert_close(found, gradient * mask / (latents.numel() / 4))
    with pytest.raises(RequestError, match="every latent frame is left out"):
        dmd_loss(latents, gradient, mask & False)


def test_the_gradient_is_normalized_sample_by_sample() -> None:
    real, fake = LATENTS + 1, LATENTS + 3
    assert torch.allclose(dmd_gradient(LATENTS, real, fake), torch.full_like(LATENTS, 2))
    far = real.clone()
    far[1] += 3
    found = dmd_gradient(LATENTS, far, fake)
    assert torch.allclose(found[0], torch.full_like(found[0], 2))
    assert torch.allclose(found[1], found[1] * 0 - 0.25)
    assert torch.allclose(dmd_gradient(LATENTS, far, fake, normalized=False)[1], torch.full_like(found[1], -1))
    assert bool((dmd_gradient(LATENTS, LATENTS, LATENTS) == 0).all())  # 0 / 0


def test_guidance_counts_from_zero() -> None:
    def low(noisy: Tensor, timesteps: Tensor) -> Tensor:
        return torch.zeros(2)

    def high(noisy: Tensor, timesteps: Tensor) -> Tensor:
        return torch.ones(2)

    timesteps = torch.tensor([1.0])
    assert guided(high, low, 3.0)(NOISE, timesteps).tolist() == [4, 4]
    assert guided(high, low, 0.0) is high
    assert guided(high, None, 3.0) is high


def test_times_are_shifted_and_kept_within_their_limits() -> None:
    times = ScoreTimes(flow_shift=5.0)
    assert times.shifted(torch.tensor([0, 500, 999])).tolist() == pytest.approx([20, 833.333, 980], abs=1e-3)
    assert ScoreTimes(flow_shift=1.0).shifted(torch.tensor([500])).tolist() == [500]
    with pytest.raises(ConfigError, match="low < high"):
        ScoreTimes(low=980.0, high=20.0)


def linear(weight: Tensor) -> Any:
    return lambda noisy, timesteps: noisy * weight


def test_dmd_has_no_gradient_in_the_scores_and_sid_has() -> None:
    latents, weight = LATENTS.clone().requires_grad_(), torch.tensor(0.5, requires_grad=True)
    arguments = (latents, linear(weight), linear(2 * weight), NOISE, torch.tensor([400.0, 700.0]), TABLE)
    assert torch.autograd.grad(match_distribution(*arguments), [latents, weight], allow_unused=True)[1] is None
    slopes = torch.autograd.grad(match_scores(*arguments), [latents, weight])
    assert bool(slopes[0].abs().sum() > 0)
    assert float(slopes[1]) != 0


def test_the_critic_is_right_where_it_says_noise_minus_latents() -> None:
    assert float(critic_loss(NOISE - LATENTS, LATENTS, NOISE)) == 0
    assert float(critic_loss(NOISE - LATENTS + 2, LATENTS, NOISE)) == pytest.approx(4, rel=1e-5)


def test_a_prediction_is_the_clean_sample_of_the_velocity() -> None:
    class Right(nn.Module):
        def forward(self, latents: Tensor, timesteps: Tensor, inputs: CausalInputs) -> Tensor:
            return NOISE - LATENTS

    timesteps = torch.tensor([300.0, 900.0])
    noisy = TABLE.add_noise(LATENTS, NOISE, timesteps)
    found = prediction(Right(), INPUTS, TABLE)(noisy, timesteps)
    torch.testing.assert_close(found, LATENTS, rtol=1e-4, atol=1e-4)


def test_the_first_frame_of_a_block_speaks_for_it() -> None:
    values = torch.tensor([[1, 2, 3, 4, 5]])
    assert shared_by_block(values, FrameBlocks(size=2)).tolist() == [[1, 1, 3, 3, 5]]
    assert shared_by_block(values, FrameBlocks(size=2, first_alone=True)).tolist() == [[1, 2, 2, 4, 4]]
    assert values.tolist() == [[1, 2, 3, 4, 5]]


def test_history_is_noised_from_the_clean_end_of_the_table() -> None:
    entries = torch.zeros(2, 4, dtype=torch.long)
    little, times = History(entries=entries, noise=NOISE).apply(LATENTS, TABLE, BLOCKS)
    much, late = History(entries=entries, noise=NOISE, from_noisiest=True).apply(LATENTS, TABLE, BLOCKS)
    assert times is not None
    assert late is not None
    assert float(times.max()) < 6
    assert float(late.min()) == 1000
    assert torch.allclose(little, LATENTS, atol=0.05)
    assert torch.allclose(much, NOISE)
    assert History().apply(LATENTS, TABLE, BLOCKS) == (LATENTS, None)
    with pytest.raises(RequestError, match="needs the noise"):
        History(entries=entries).apply(LATENTS, TABLE, BLOCKS)


def test_teacher_forcing_differs_from_diffusion_forcing_by_what_a_block_sees() -> None:
    network, entries = new_network(num_layers=4), torch.tensor([[100, 0, 500, 0], [900, 0, 200, 0]])
    plain = forcing_loss(network, LATENTS, NOISE, entries, INPUTS, TABLE).clean
    forced = forcing_loss(network, LATENTS, NOISE, entries, INPUTS, TABLE, history=History()).clean
    torch.testing.assert_close(plain[:, :, :2], forced[:, :, :2], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(plain[:, :, 2:], forced[:, :, 2:], atol=1e-3)


def test_the_pose_of_an_earlier_block_is_seen_through_the_clean_half() -> None:
    network, entries = new_network(num_layers=4), torch.full((2, 4), 500)
    assert INPUTS.add_condition is not None
    moved = INPUTS.add_condition.clone()
    moved[:, 0] += 5
    one, other = (
        forcing_loss(
            network, LATENTS, NOISE, entries, replace(INPUTS, add_condition=pose), TABLE, history=History()
        ).clean
        for pose in (INPUTS.add_condition, moved)
    )
    assert not torch.allclose(one[:, :, 2:], other[:, :, 2:], atol=1e-4)


def test_a_batch_of_teacher_forcing_is_the_mean_of_its_samples() -> None:
    network, entries = new_network(num_layers=4), torch.tensor([[100, 0, 500, 0], [900, 0, 200, 0]])
    both = forcing_loss(network, LATENTS, NOISE, entries, INPUTS, TABLE, history=History()).loss
    assert INPUTS.add_condition is not None
    alone = [
        forcing_loss(
            network, LATENTS[i : i + 1], NOISE[i : i + 1], entries[i : i + 1],
            replace(INPUTS, context=INPUTS.context[i : i + 1], add_condition=INPUTS.add_condition[i : i + 1]),
            TABLE, history=History(),
        ).loss
        for i in range(2)
    ]  # fmt: skip
    torch.testing.assert_close(both, torch.stack(alone).mean(), rtol=1e-4, atol=1e-4)


def test_regression_takes_each_block_from_its_own_state_and_leaves_clean_frames_out() -> None:
    network, states = new_network(num_layers=4), drawn(2, 3, 4, 4, 4, 6)
    entries = torch.tensor([[0, 2, 2, 0], [1, 0, 0, 1]])
    taken = path_latents(states, shared_by_block(entries, BLOCKS))
    assert torch.equal(taken[0, :, :2], states[0, 0, :, :2])
    assert torch.equal(taken[0, :, 2:], states[0, 2, :, 2:])
    assert torch.equal(taken[1, :, :2], states[1, 1, :, :2])
    assert torch.equal(taken[1, :, 2:], states[1, 0, :, 2:])
    steps = [1000.0, 800.0, 0.0]
    judged = regression_loss(network, states, LATENTS, entries, steps, INPUTS, TABLE)
    error = (judged.clean - LATENTS).square()
    counted = torch.cat([error[0, :, :2], error[1, :, :2], error[1, :, 2:]])
    torch.testing.assert_close(judged.loss, counted.mean(), rtol=1e-4, atol=1e-5)
    with pytest.raises(RequestError, match="nothing to learn"):
        regression_loss(network, states, LATENTS, entries * 0 + 2, steps, INPUTS, TABLE)
    with pytest.raises(RequestError, match="3 states, the student 2 steps"):
        regression_loss(network, states, LATENTS, entries, steps[:2], INPUTS, TABLE)


def new_critic(**options: Any) -> GANCritic:
    network = new_network(num_layers=4)
    return GANCritic(network, ffn_dim=16, **options)


def test_the_critic_is_its_transformer_and_logits() -> None:
    critic, timesteps = new_critic(), torch.tensor([300.0, 900.0])
    inputs = replace(INPUTS, blocks=FrameBlocks(size=4))
    velocity, logits = critic(LATENTS, timesteps, inputs)
    assert torch.equal(velocity, critic.model(LATENTS, timesteps, inputs))
    assert logits.shape == (2, 4)
    assert inputs.add_condition is not None
    alone = replace(inputs, context=inputs.context[1:], add_condition=inputs.add_condition[1:])
    torch.testing.assert_close(critic(LATENTS[1:], timesteps[1:], alone)[1], logits[1:], rtol=1e-4, atol=1e-4)


def test_every_weight_of_the_critic_but_behind_its_last_look_moves_the_logits() -> None:
    critic = new_critic(watched=(1, 2, 3))
    critic(LATENTS, torch.tensor([300.0, 900.0]), INPUTS)[1].square().sum().backward()
    idle = {name for name, weight in critic.named_parameters() if weight.grad is None or not weight.grad.any()}
    # A softmax does not see what is added to all keys alike.
    idle -= {f"_gan_ca_blocks.{i}.cross_attn.k.bias" for i in range(3)}
    assert all(name.startswith("model.head.") or ".k.bias" in name for name in idle), idle


def test_the_critic_looks_at_the_reference_s_blocks() -> None:
    assert watched_blocks(30) == (13, 21, 29)
    assert watched_blocks(2) == (0, 1)
    assert len(set(watched_blocks(4))) == 3
    assert watched_blocks(40)[-1] == 39
    with pytest.raises(ConfigError, match="looks at blocks 0 to 3"):
        new_critic(watched=(1, 4))


def test_losses_of_the_critic_have_their_closed_forms() -> None:
    zero, one = torch.zeros(2, 4), torch.ones(2, 4)
    ln2, at_one = 0.6931472, 0.3132617
    assert float(generator_loss(zero)) == pytest.approx(ln2)
    assert float(generator_loss(one)) == pytest.approx(at_one)
    assert float(generator_loss(one, zero)) == pytest.approx(at_one)
    assert float(discriminator_loss(zero, zero)) == pytest.approx(2 * ln2)
    assert float(discriminator_loss(one, -one)) == pytest.approx(2 * at_one)
    assert float(discriminator_loss(one, zero, relativistic=True)) == pytest.approx(at_one)
    assert float(roughness(zero, 0.03 * one, 0.01)) == pytest.approx(9, rel=1e-5)


def test_of_a_long_video_the_end_is_scored_from_a_picture_on() -> None:
    torch.manual_seed(0)
    vae = VideoVAE(VAEConfig(dim=8, z_dim=4, dim_mult=(1, 1, 1), num_res_blocks=1, temporal_downsample=(True, True)))
    latents = drawn(2, 4, 9, 2, 2).requires_grad_()
    short, mask = scored_end(latents, vae, FrameBlocks(size=3), frames=9)
    assert short is latents
    assert mask is None
    end, mask = scored_end(latents, vae, FrameBlocks(size=3), frames=6)
    assert torch.equal(end[:, :, 1:], latents[:, :, -5:])
    assert end.shape[2] == 6
    with torch.no_grad():
        pixels = vae.decode(latents[:, :, :4])[:, :, -1:]
        torch.testing.assert_close(end[:, :, :1], vae.encode(pixels))
    assert mask is not None
    assert mask.flatten().tolist() == [False] * 3 + [True] * 3
    mask = scored_end(latents, vae, FrameBlocks(size=3, first_alone=True), frames=6)[1]
    assert mask is not None
    assert mask.flatten().tolist() == [False] + [True] * 5
    (slope,) = torch.autograd.grad(end.sum(), latents)
    assert slope.abs().sum(dim=(0, 1, 3, 4)).gt(0).tolist() == [False] * 4 + [True] * 5
