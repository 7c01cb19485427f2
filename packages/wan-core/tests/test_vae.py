"""The video autoencoder on its own: clips, chunks, caches, gradients, requests."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from wan_core.errors import ConfigError, RequestError
from wan_core.models import WAN21_VAE, WAN22_VAE, VAEConfig, VideoVAE
from wan_core.models.vae.causal import DecoderCache, EncoderCache
from wan_core.models.vae.tiling import Tiling
from wan_core.runtime import prepare_model

from .networks import build

PLAIN = VAEConfig(
    dim=4,
    z_dim=4,
    num_res_blocks=1,
    latents_mean=(0.3, -0.2, 0.1, 0.5),
    latents_std=(1.2, 0.8, 2.0, 1.5),
)
RESIDUAL = VAEConfig(
    dim=4,
    dec_dim=6,
    z_dim=6,
    num_res_blocks=1,
    patch_size=2,
    residual=True,
)
SMALL = VAEConfig(
    dim=8,
    z_dim=16,
    dim_mult=(1, 2, 2),
    num_res_blocks=1,
    temporal_downsample=(True, True),
    patch_size=2,
    residual=True,
)
CONFIGS = {"plain": PLAIN, "residual": RESIDUAL, "small": SMALL}
BOTH = pytest.mark.parametrize("config", [PLAIN, RESIDUAL], ids=["plain", "residual"])
ALL = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)


def built(config: VAEConfig, seed: int = 0) -> VideoVAE:
    """A model whose zero-initialised branches have random weights too."""
    torch.manual_seed(seed)
    model = build(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, 1.0 if parameter.ndim == 1 else 0.0, 0.1 if parameter.ndim == 1 else 0.2)
    return model


def some_video(frames: int, height: int, width: int, batch: int = 1) -> Tensor:
    return torch.rand(batch, 3, frames, height, width, generator=torch.Generator().manual_seed(frames)) * 2 - 1


def some_latents(model: VideoVAE, frames: int, height: int = 2, width: int = 3, batch: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(frames)
    return torch.randn(batch, model.config.z_dim, frames, height, width, generator=generator)


@pytest.fixture(scope="module")
def models() -> dict[str, VideoVAE]:
    return {name: built(config) for name, config in CONFIGS.items()}


@ALL
@torch.inference_mode()
def test_shapes_follow_the_strides(config: VAEConfig) -> None:
    model, stride = built(config), config.spatial_stride
    latents = model.encode(some_video(9, 2 * stride, 3 * stride, batch=2))
    assert latents.shape == (2, config.z_dim, 3, 2, 3)
    assert latents.dtype == torch.float32
    video = model.decode(latents)
    assert video.shape == (2, 3, 9, 2 * stride, 3 * stride)
    assert -1 <= video.min() <= video.max() <= 1


def test_released_models_have_the_published_sizes() -> None:
    for config, tensors, parameters in ((WAN21_VAE, 194, 126_892_531), (WAN22_VAE, 196, 704_688_668)):
        with torch.device("meta"):
            state = build(config).state_dict()
        assert len(state) == tensors
        assert sum(tensor.numel() for tensor in state.values()) == parameters
    assert (WAN21_VAE.temporal_stride, WAN21_VAE.spatial_stride) == (4, 8)
    assert (WAN22_VAE.temporal_stride, WAN22_VAE.spatial_stride) == (4, 16)


def test_small_residual_config_has_stride_4_8_8() -> None:
    assert (SMALL.temporal_stride, SMALL.spatial_stride) == (4, 8)


@ALL
@torch.inference_mode()
def test_a_batch_of_two_equals_twice_one(config: VAEConfig) -> None:
    model, stride = built(config), config.spatial_stride
    video, latents = some_video(5, stride, 2 * stride, batch=2), some_latents(model, 3, batch=2)
    alone = torch.cat([model.encode(clip) for clip in video.split(1)])
    torch.testing.assert_close(model.encode(video), alone, atol=1e-5, rtol=1e-5)
    alone = torch.cat([model.decode(clip) for clip in latents.split(1)])
    torch.testing.assert_close(model.decode(latents), alone, atol=1e-5, rtol=1e-5)


@ALL
@torch.inference_mode()
def test_a_prefix_does_not_see_what_follows(config: VAEConfig) -> None:
    model, stride = built(config), config.spatial_stride
    video, latents = some_video(9, stride, stride), some_latents(model, 3)
    torch.testing.assert_close(model.encode(video)[:, :, :2], model.encode(video[:, :, :5]), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(model.decode(latents)[:, :, :5], model.decode(latents[:, :, :2]), atol=1e-5, rtol=1e-5)


@given(
    name=st.sampled_from(sorted(CONFIGS)), sizes=st.lists(st.integers(1, 2), min_size=1, max_size=3), side=st.booleans()
)
@settings(max_examples=8, deadline=None)
@torch.inference_mode()
def test_chunks_of_any_size_equal_the_whole(
    models: dict[str, VideoVAE], name: str, sizes: list[int], side: bool
) -> None:
    model, cache, side_latents = models[name], DecoderCache(), 5 if side else 2
    latents = some_latents(model, sum(sizes), side_latents, side_latents)
    pieces = [model.decode_chunk(piece, cache) for piece in latents.split(sizes, dim=2)]
    whole = model.decode(latents)
    torch.testing.assert_close(torch.cat(pieces, dim=2), whole, atol=2e-5, rtol=1e-4)
    assert [piece.shape[2] for piece in pieces] == [
        4 * size - (3 if index == 0 else 0) for index, size in enumerate(sizes)
    ]

    video, encoder_cache = whole, EncoderCache()
    bounds = [0, *(1 + 4 * (sum(sizes[: index + 1]) - 1) for index in range(len(sizes)))]
    chunks = [model.encode_chunk(video[:, :, start:stop], encoder_cache) for start, stop in pairwise(bounds)]
    torch.testing.assert_close(torch.cat(chunks, dim=2), model.encode(video), atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(model.encode(video, latents_per_chunk=None), model.encode(video), atol=2e-5, rtol=1e-4)


@BOTH
@torch.inference_mode()
def test_interleaved_clips_do_not_disturb_each_other(config: VAEConfig) -> None:
    model = built(config)
    clips = [some_latents(model, 3), some_latents(model, 3).flip(2) * 0.5]
    streams = [model.stream_decode(clip) for clip in clips]
    turns = [[next(stream) for stream in streams] for _ in range(3)]
    for index, clip in enumerate(clips):
        mixed = torch.cat([turn[index] for turn in turns], dim=2)
        torch.testing.assert_close(mixed, model.decode(clip), atol=0, rtol=0)


@BOTH
def test_every_weight_influences_the_output(config: VAEConfig) -> None:
    model, stride = built(config), config.spatial_stride
    moments = model.encode_moments(some_video(9, stride, 2 * stride))
    video = model.decode(some_latents(model, 3), clamp=False)
    (moments.square().sum() + video.square().sum()).backward()
    silent = [name for name, weight in model.named_parameters() if weight.grad is None or not weight.grad.any()]
    assert silent == []


@ALL
def test_prepared_for_inference_the_result_is_the_same(config: VAEConfig) -> None:
    model, fast, stride = built(config), built(config), config.spatial_stride
    prepare_model(fast, inference=True)
    video, latents = some_video(9, 4 * stride, 4 * stride), some_latents(model, 3, 8, 8)
    before = video.clone(), latents.clone()
    trained = model.encode(video), model.decode(latents), model.decode(latents, latents_per_chunk=None)
    inferred = fast.encode(video), fast.decode(latents), fast.decode(latents, latents_per_chunk=None)
    assert all(tensor.requires_grad for tensor in trained)
    assert all(map(torch.equal, before, (video, latents)))
    for one, other in zip(trained, inferred, strict=True):
        torch.testing.assert_close(one, other, atol=2e-5, rtol=1e-4)


def test_gradients_do_not_depend_on_the_chunks() -> None:
    model = built(RESIDUAL)
    latents = some_latents(model, 3).requires_grad_()
    gradients = []
    for latents_per_chunk in (1, 2, None):
        video = model.decode(latents, clamp=False, latents_per_chunk=latents_per_chunk)
        gradients.append(torch.autograd.grad(video.square().mean(), latents)[0])
    torch.testing.assert_close(gradients[0], gradients[2], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(gradients[1], gradients[2], atol=1e-5, rtol=1e-4)


def test_training_from_the_seeded_start_learns() -> None:
    model = build(SMALL)
    model.reset_parameters(seed=3)
    video = some_video(5, 16, 16, batch=2)
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    losses = []
    for _ in range(12):
        mean, _log_variance = model.encode_moments(video, latents_per_chunk=None).chunk(2, dim=1)
        loss = (model.decode(mean, clamp=False, latents_per_chunk=None) - video).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] < 3.0
    assert losses[-1] < 0.7 * losses[0]


def test_equal_seeds_give_equal_weights() -> None:
    states = []
    for seed in (1, 1, 2):
        model = build(SMALL)
        model.reset_parameters(seed)
        states.append(torch.cat([tensor.flatten() for tensor in model.state_dict().values()]))
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


@BOTH
@torch.inference_mode()
def test_bfloat16_stays_close_to_float32(config: VAEConfig) -> None:
    model, stride = built(config), config.spatial_stride
    video, latents = some_video(5, stride, stride), some_latents(model, 2)
    wanted = model.encode(video), model.decode(latents)
    model.to(torch.bfloat16)
    for result, reference in zip((model.encode(video), model.decode(latents)), wanted, strict=True):
        assert result.dtype == torch.float32
        assert (result - reference).abs().mean() < 0.03 * max(1.0, float(reference.abs().max()))


@torch.no_grad()
def test_cache_size_is_constant_and_buffers_are_reused() -> None:
    model, cache = built(PLAIN), DecoderCache()
    latents = some_latents(model, 4)
    sizes, places = [], []
    for latent in latents.split(1, dim=2):
        model.decode_chunk(latent, cache)
        sizes.append(cache.nbytes)
        places.append([frames.data_ptr() for frames in cache._frames.values()])
    assert len(set(sizes)) == 1
    assert places[1] == places[0] == places[3]


def test_a_cache_survives_a_change_of_the_gradient_mode() -> None:
    model, cache = built(PLAIN), DecoderCache()
    latents = some_latents(model, 4)
    modes = (torch.inference_mode, torch.no_grad, torch.enable_grad, torch.no_grad)
    pieces = []
    for latent, mode in zip(latents.split(1, dim=2), modes, strict=True):
        with mode():
            pieces.append(model.decode_chunk(latent, cache).detach())
    with torch.no_grad():
        torch.testing.assert_close(torch.cat(pieces, dim=2), model.decode(latents), atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_zero_history_gives_full_groups_from_the_start() -> None:
    for config in (PLAIN, RESIDUAL):
        model, cache = built(config), DecoderCache(zero_history=True)
        latents = some_latents(model, 3)
        assert model.decode_chunk(latents[:, :, :1], cache).shape[2] == 4
        assert model.decode_chunk(latents[:, :, 1:], cache).shape[2] == 8


@torch.inference_mode()
def test_caches_of_other_clips_and_models_are_rejected() -> None:
    model, cache = built(PLAIN), DecoderCache()
    model.decode_chunk(some_latents(model, 1), cache)
    with pytest.raises(RequestError, match="clip of another size"):
        model.decode_chunk(some_latents(model, 1, height=3), cache)
    with pytest.raises(RequestError, match="another model"):
        built(PLAIN).decode_chunk(some_latents(model, 1), cache)


@torch.inference_mode()
def test_frame_counts_are_checked_unless_the_tail_may_go() -> None:
    model = built(PLAIN)
    with pytest.raises(RequestError, match=r"4n\+1, got 7; nearest are 5 and 9"):
        model.encode(some_video(7, 8, 8))
    with pytest.raises(RequestError, match="empty"):
        model.encode(some_video(5, 8, 8)[:, :, :0])
    video = some_video(7, 8, 8)
    torch.testing.assert_close(model.encode(video, drop_tail=True), model.encode(video[:, :, :5]), atol=0, rtol=0)
    cache = EncoderCache()
    with pytest.raises(RequestError, match="1 \\+ n \\* 4 frames, got 4"):
        model.encode_chunk(video[:, :, :4], cache)
    model.encode_chunk(video[:, :, :1], cache)
    with pytest.raises(RequestError, match="n \\* 4 frames, got 5"):
        model.encode_chunk(video[:, :, :5], cache)


@torch.inference_mode()
def test_shapes_are_checked() -> None:
    plain, residual = built(PLAIN), built(RESIDUAL)
    for video in (some_video(1, 8, 8)[0], some_video(1, 8, 8)[:, :2], torch.zeros(1, 3, 1, 8, 8, dtype=torch.uint8)):
        with pytest.raises(RequestError, match="video must be"):
            plain.encode(video)
    with pytest.raises(RequestError, match="at least 8, got 7x8"):
        plain.encode(some_video(1, 7, 8))
    with pytest.raises(RequestError, match="multiples of 16, got 16x24"):
        residual.encode(some_video(1, 16, 24))
    with pytest.raises(RequestError, match=r"latents must be float \[B, 4"):
        plain.decode(torch.zeros(1, 5, 1, 2, 2))
    with pytest.raises(RequestError, match="latents are empty"):
        plain.decode(torch.zeros(1, 4, 0, 2, 2))
    with pytest.raises(RequestError, match="latents_per_chunk"):
        plain.decode(torch.zeros(1, 4, 1, 2, 2), latents_per_chunk=0)
    assert plain.encode(some_video(1, 21, 27)).shape[-2:] == (2, 3)  # rounded down level by level


def test_dims_that_cannot_work_are_config_errors() -> None:
    wrong = (
        {"attn_scales": (0.5,)},
        {"dim_mult": (1,), "temporal_downsample": ()},
        {"temporal_downsample": (True, True)},
        {"patch_size": 3},
        {"num_res_blocks": 0},
        {"latents_mean": (0.0,)},
        {"latents_std": (0.0,) * 16},
        {"dropout": 1.0},
        {"dim": 5, "dim_mult": (1, 1, 1, 1)},
        {"dim": 4, "dim_mult": (1, 3, 4, 4), "residual": True},
    )
    for values in wrong:
        with pytest.raises(ConfigError):
            VAEConfig(**values)  # type: ignore[arg-type]


@BOTH
@torch.inference_mode()
def test_a_tiled_stream_equals_tiled_decode(config: VAEConfig) -> None:
    model, stride = built(config), config.spatial_stride
    tiling = Tiling(tile_height=2 * stride, tile_width=3 * stride, stride_height=stride, stride_width=2 * stride)
    latents, video = some_latents(model, 2, 3, 4), some_video(5, 5 * stride, 3 * stride)
    streamed = torch.cat(list(model.stream_decode(latents, tiling=tiling)), dim=2)
    torch.testing.assert_close(streamed, model.decode(latents, tiling=tiling), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(streamed, model.decode(latents), atol=1e-3)
    cache = EncoderCache()
    chunks = [model.encode_chunk(chunk, cache, tiling=tiling) for chunk in video.split([1, 4], dim=2)]
    torch.testing.assert_close(torch.cat(chunks, dim=2), model.encode(video, tiling=tiling), atol=1e-5, rtol=1e-5)


def test_tiles_that_cannot_work_are_rejected() -> None:
    with pytest.raises(RequestError, match="stride_width must be in"):
        Tiling(tile_width=64, stride_width=128)
    with pytest.raises(RequestError, match="multiple of 16, got 24; try 32"):
        built(RESIDUAL).decode(torch.zeros(1, 6, 1, 2, 2), tiling=Tiling(stride_height=24))
