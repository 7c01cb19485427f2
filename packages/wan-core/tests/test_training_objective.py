import pytest
import torch

from wan_core.errors import ConfigError
from wan_core.training import NoiseLevels, draw_clean_frames, expert_levels, make_flow_batch


def test_noise_levels_follow_their_distribution() -> None:
    torch.manual_seed(0)
    assert NoiseLevels(kind="uniform").sample(2000).mean().item() == pytest.approx(0.5, abs=1e-3)
    shifted = NoiseLevels(kind="uniform", shift=3.0).sample(4000)
    # E[3u / (1 + 2u)] over uniform u is 3/2 - 3/4 ln 3.
    assert shifted.mean().item() == pytest.approx(1.5 - 0.75 * torch.log(torch.tensor(3.0)).item(), abs=2e-3)
    logits = torch.logit(NoiseLevels(mean=0.3, std=1.2).sample(4000))
    assert logits.mean().item() == pytest.approx(0.3, abs=0.01)
    assert logits.std().item() == pytest.approx(1.2, abs=0.02)


@pytest.mark.parametrize("kind", ["uniform", "logit_normal"])
def test_experts_train_only_on_their_side_of_the_boundary(kind) -> None:
    torch.manual_seed(1)
    levels = NoiseLevels(kind=kind, shift=3.0)
    high = expert_levels(levels, "high", 0.875).sample(500)
    low = expert_levels(levels, "low", 0.875).sample(500)
    assert high.min() >= 0.875
    assert low.max() <= 0.875
    assert expert_levels(levels, "both", 0.875) == levels
    # Cut, not squeezed: both sides together are the whole distribution.
    whole = levels.sample(20000)
    assert high.mean().item() == pytest.approx(whole[whole >= 0.875].mean().item(), abs=0.01)


def test_a_mixed_sample_lies_on_the_line_and_the_target_is_its_slope() -> None:
    clean, noise = torch.randn(2, 3, 2, 2, 2), torch.randn(2, 3, 2, 2, 2)
    sigmas = torch.tensor([0.25, 0.8])
    batch = make_flow_batch(clean, sigmas, noise)
    torch.testing.assert_close(batch.timesteps, sigmas * 1000)
    torch.testing.assert_close(batch.latents - sigmas.view(2, 1, 1, 1, 1) * batch.target, clean)
    assert batch.loss(batch.target).item() == 0.0
    assert batch.loss(batch.target + 2).item() == pytest.approx(4.0)


def test_every_frame_may_have_a_noise_level_of_its_own() -> None:
    clean, noise = torch.randn(2, 3, 4, 2, 2), torch.randn(2, 3, 4, 2, 2)
    sigmas = torch.rand(2, 4)
    batch = make_flow_batch(clean, sigmas, noise)
    torch.testing.assert_close(batch.timesteps, sigmas * 1000)
    for frame in range(4):
        alone = make_flow_batch(clean[:, :, frame : frame + 1], sigmas[:, frame], noise[:, :, frame : frame + 1])
        torch.testing.assert_close(batch.latents[:, :, frame : frame + 1], alone.latents)


def test_clean_leading_frames_have_timestep_zero_and_no_weight() -> None:
    clean, noise = torch.randn(2, 3, 4, 2, 2), torch.randn(2, 3, 4, 2, 2)
    batch = make_flow_batch(clean, torch.tensor([0.5, 0.9]), noise, torch.tensor([0, 2]))
    assert batch.timesteps.shape == (2, 4)
    assert batch.timesteps[1].tolist() == [0.0, 0.0, 900.0, 900.0]
    torch.testing.assert_close(batch.latents[1, :, :2], clean[1, :, :2])
    wrong = batch.target.clone()
    wrong[1, :, :2] += 5.0
    assert batch.loss(wrong).item() == 0.0


def test_drawn_clean_frames_leave_something_to_predict() -> None:
    torch.manual_seed(2)
    drawn = draw_clean_frames(4000, 5, 0.6)
    assert drawn.max() == 4
    assert (drawn == 0).float().mean().item() == pytest.approx(0.4, abs=0.03)
    assert (drawn == 1).float().mean().item() == pytest.approx(0.6 * (0.5 + 0.125), abs=0.03)
    assert draw_clean_frames(50, 1, 1.0).max() == 0


@pytest.mark.parametrize(
    "wrong", [{"kind": "cosine"}, {"shift": 0.0}, {"std": -1.0}, {"low": 0.5, "high": 0.5}, {"high": 1.5}]
)
def test_impossible_noise_levels_are_refused(wrong) -> None:
    with pytest.raises(ConfigError):
        NoiseLevels(**wrong)


def test_impossible_requests_are_refused() -> None:
    clean = torch.zeros(1, 1, 2, 1, 1)
    with pytest.raises(ConfigError, match="at most 1 of 2"):
        make_flow_batch(clean, torch.ones(1), clean, torch.tensor([2]))
    with pytest.raises(ConfigError, match="share"):
        draw_clean_frames(2, 3, 1.5)
    with pytest.raises(ConfigError, match="boundary"):
        expert_levels(NoiseLevels(), "high", 1.0)


def test_errors_count_by_the_weight_of_their_noise_level() -> None:
    latents, noise = torch.randn(2, 3, 4, 2, 2), torch.randn(2, 3, 4, 2, 2)
    shown = make_flow_batch(latents, torch.tensor([0.25, 0.5]), noise)
    velocity = torch.zeros_like(latents)
    single = [(noise[i] - latents[i]).square().mean() for i in range(2)]
    found = shown.loss(velocity, level_weights=torch.tensor([0.5, 3.0]))
    torch.testing.assert_close(found, (0.5 * single[0] + 3 * single[1]) / 2)
    torch.testing.assert_close(shown.loss(velocity), (single[0] + single[1]) / 2)
