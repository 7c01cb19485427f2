"""The network that speaks: what it hears, what it sees of the past, and what it refuses."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from wan_core.errors import ConfigError, RequestError
from wan_core.models import S2VConfig, S2VDiT, S2VInputs, WanDiT
from wan_core.models.dit.frame_packing import spread

from .dit_networks import BOTH, Half, network, noise, prepared

CONFIG = S2VConfig(
    in_dim=3, out_dim=3, dim=24, ffn_dim=20, num_heads=2, num_layers=3, freq_dim=8, text_dim=6, text_len=5,
    cond_dim=2, audio_dim=7, audio_layers=4, num_audio_token=2, audio_inject_layers=(0, 2),
)  # fmt: skip
PLAIN = replace(CONFIG, enable_adain=False, enable_framepack=False)
CONFIGS = pytest.mark.parametrize("config", [CONFIG, PLAIN], ids=["release", "plain"])
NOISY = (3, 2, 8, 16)


def inputs(config: S2VConfig = CONFIG, batch: int = 1, **more: Any) -> S2VInputs:
    values: dict[str, Any] = {
        "context": noise(batch, 4, config.text_dim),
        "audio": noise(batch, config.audio_layers, config.audio_dim, 8),
        "reference_latents": noise(batch, 3, 1, 8, 16),
        "motion_latents": noise(batch, 3, 5, 8, 16),
        "pose_latents": noise(batch, config.cond_dim, 2, 8, 16),
        "motion_frames": (17, 5),
    }
    return S2VInputs(**{**values, **more})


def speaker(config: S2VConfig = CONFIG, make: Callable[..., WanDiT] = network) -> S2VDiT:
    model = make(config, S2VDiT)
    assert isinstance(model, S2VDiT)
    return model


def velocity(model: S2VDiT, given: S2VInputs, timestep: float = 700.0) -> Tensor:
    batch = given.context.shape[0]
    with torch.no_grad():
        out: Tensor = model(noise(batch, *NOISY), torch.full((batch,), timestep), given)
    return out


@BOTH
@CONFIGS
def test_a_batch_of_two_is_twice_a_batch_of_one(built: Callable[..., WanDiT], config: S2VConfig) -> None:
    model, both = speaker(config, built), inputs(config, batch=2)
    noisy = noise(2, *NOISY)
    with torch.no_grad():
        out = model(noisy, torch.tensor([900.0, 14.0]), both)
        for index, timestep in enumerate((900.0, 14.0)):
            tensors = {
                name: value[index : index + 1] for name, value in vars(both).items() if isinstance(value, Tensor)
            }
            one = model(noisy[index : index + 1], torch.tensor([timestep]), replace(both, **tensors))
            torch.testing.assert_close(out[index : index + 1], one, atol=2e-5, rtol=1e-5)


@CONFIGS
def test_every_weight_influences_the_velocity(config: S2VConfig) -> None:
    model = speaker(config)
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    model(noise(1, *NOISY), torch.tensor([300.0]), inputs(config)).square().sum().backward()
    silent = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert silent == []


@CONFIGS
def test_prepared_for_inference_it_computes_the_same(config: S2VConfig) -> None:
    plain, fast = velocity(speaker(config), inputs(config)), velocity(speaker(config, prepared), inputs(config))
    torch.testing.assert_close(plain, fast, atol=2e-5, rtol=1e-5)


@BOTH
def test_a_cache_of_the_text_changes_nothing(built: Callable[..., WanDiT]) -> None:
    model, given = speaker(make=built), inputs()
    cached = given.with_cache()
    first, second = velocity(model, cached), velocity(model, cached)
    assert cached.context_cache is not None
    assert cached.context_cache.is_filled
    assert torch.equal(first, second)
    torch.testing.assert_close(first, velocity(model, given), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("cut", [1, 31, 32, 40, 64, 90])
def test_processes_that_divide_the_tokens_hear_what_one_hears(cut: int) -> None:
    model, given = speaker(), inputs()
    sequence = model.embed_latents(noise(1, *NOISY), given)
    tokens = noise(1, sequence.length, CONFIG.dim)
    whole = model.after_block(0, tokens.clone(), sequence, given)
    parts = []
    for start, stop in ((0, cut), (cut, sequence.length)):
        model.layout = Half(start, stop)
        parts.append(model.after_block(0, tokens[:, start:stop].clone(), sequence, given))
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, atol=1e-5, rtol=1e-5)


def test_only_the_listed_blocks_are_followed_by_sound() -> None:
    model, given = speaker(), inputs()
    sequence = model.embed_latents(noise(1, *NOISY), given)
    tokens = noise(1, sequence.length, CONFIG.dim)
    changed = [
        index for index in range(3) if not torch.equal(model.after_block(index, tokens, sequence, given), tokens)
    ]
    assert changed == [0, 2]


def test_later_sound_is_not_heard_earlier() -> None:
    model = speaker()
    late = inputs().audio.clone()
    late[..., 4:] += 1  # of the second latent frame
    before, after = (model.embed_latents(noise(1, *NOISY), each).sound for each in (inputs(), inputs(audio=late)))
    assert torch.equal(before[:, 0], after[:, 0])
    assert not torch.equal(before[:, 1], after[:, 1])


def test_without_a_history_there_are_no_tokens_of_it() -> None:
    with_it, without = (
        speaker().embed_latents(noise(1, *NOISY), each).length for each in (inputs(), inputs(motion_latents=None))
    )
    assert with_it - without == 32 + 8 + 4 * 2  # newest, two before it, 16 before those
    assert without == 3 * 32


def test_no_poses_are_poses_of_zero() -> None:
    zero = torch.zeros(1, CONFIG.cond_dim, 2, 8, 16)
    model = speaker()
    torch.testing.assert_close(velocity(model, inputs(pose_latents=None)), velocity(model, inputs(pose_latents=zero)))


@pytest.mark.parametrize(("last", "padded", "dropped"), [(2, 48, 48), (1, 48, 16), (0, 48, 8)])
def test_what_is_left_out_of_the_history_is_zero_or_has_no_tokens(last: int, padded: int, dropped: int) -> None:
    for mode, count in (("padd", padded), ("drop", dropped)):
        model = speaker(replace(CONFIG, framepack_drop_mode=mode))
        assert model.embed_latents(noise(1, *NOISY), inputs(last_motion=last)).length == 3 * 32 + count


def test_a_network_without_time_zero_gives_all_tokens_one_time() -> None:
    model, given = speaker(replace(CONFIG, zero_timestep=False)), inputs()
    assert not torch.equal(velocity(model, given), velocity(speaker(), given))
    rows = model.embed_timesteps(torch.tensor([5.0]), model.embed_latents(noise(1, *NOISY), given), given)
    assert rows.head.shape == (1, 1, CONFIG.dim)


def test_given_frames_have_time_zero() -> None:
    model, given = speaker(), inputs()
    sequence = model.embed_latents(noise(1, *NOISY), given)
    at, still = (model.embed_timesteps(torch.tensor([t]), sequence, given) for t in (7.0, 0.0))
    assert at.lengths == (64, sequence.length - 64)
    torch.testing.assert_close(at.blocks[:, 1], still.blocks[:, 0])


def test_a_new_network_hears_nothing_yet() -> None:
    model = S2VDiT(CONFIG).eval()
    torch.nn.init.normal_(model.head.head.weight)
    assert torch.equal(velocity(model, inputs()), velocity(model, inputs(audio=inputs().audio * 3)))
    assert torch.equal(velocity(model, inputs()), velocity(model, inputs(pose_latents=None)))


def test_positions_of_coarse_tokens_are_cut_to_whole_numbers() -> None:
    assert spread(-19, 16, 4) == (-19, -14, -9, -4)
    assert spread(-3, 2, 1) == (-3,)
    assert spread(0, 8, 4) == (0, 2, 4, 7)


def test_two_branches_become_one_batch() -> None:
    one = inputs()
    joined = S2VInputs.batch([one, replace(one, audio=one.audio * 0)])
    assert joined.audio.shape[0] == 2
    assert joined.motion_frames == (17, 5)
    with pytest.raises(RequestError, match="motion_frames must be the same"):
        S2VInputs.batch([one, replace(one, motion_frames=(9, 3))])


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"audio": noise(1, 4, 7, 12)}, "makes 3 latent frames"),
        ({"audio": noise(1, 5, 7, 8)}, r"audio must be \[1, 4, 7, 8\]"),
        ({"reference_latents": noise(1, 3, 2, 8, 16)}, "reference_latents must be"),
        ({"motion_latents": noise(1, 3, 5, 4, 16)}, "motion_latents must be"),
        ({"pose_latents": noise(1, 2, 3, 8, 16)}, "pose_latents must be"),
        ({"last_motion": 3}, "last_motion must be 0 to 2"),
    ],
)
def test_conditions_that_do_not_fit_are_refused(more: dict[str, Any], words: str) -> None:
    with pytest.raises(RequestError, match=words):
        velocity(speaker(), inputs(**more))


def test_a_clip_that_reaches_the_place_of_the_reference_is_refused() -> None:
    with pytest.raises(RequestError, match="at most 30 latent frames, got 31"):
        speaker()(noise(1, 3, 31, 8, 16), torch.tensor([1.0]), inputs())


def test_a_timestep_for_each_frame_is_refused() -> None:
    with pytest.raises(RequestError, match="share one timestep"):
        speaker()(noise(1, *NOISY), torch.ones(1, 2), inputs())


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"audio_inject_layers": (2, 0)}, "must rise"),
        ({"audio_inject_layers": (0, 3)}, "within 0 to 2"),
        ({"audio_inject_layers": "0"}, "numbers of blocks"),
        ({"adain_mode": "head"}, "attn_norm"),
        ({"framepack_drop_mode": "cut"}, "padd or drop"),
        ({"audio_layers": 0}, "audio_layers"),
        ({"zero_timestep": 1}, "zero_timestep must be true or false"),
    ],
)
def test_dims_that_cannot_work_are_refused(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        replace(CONFIG, **wrong)
