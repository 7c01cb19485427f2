"""The DiT against diffusers' WanTransformer3DModel, run live on random weights through our checkpoint tables."""

import torch
from diffusers import WanTransformer3DModel
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from wan_core.checkpoints import MemorySource, load_model
from wan_core.models import DiTInputs, WanDiT, WanDiTConfig

PEER_TEXT_LEN = 512  # with an image branch the peer counts its image tokens as all but the last 512
SMALL = settings(max_examples=12, deadline=None, derandomize=True)
HEAD_DIMS = st.sampled_from([6, 8, 12, 16])
PATCHES = st.sampled_from([(1, 2, 2), (1, 1, 2), (2, 2, 1), (1, 2, 3)])


@st.composite
def dims(draw: st.DrawFn, *, image: bool = False) -> WanDiTConfig:
    heads = draw(st.integers(1, 3))
    in_dim = draw(st.integers(1, 5))
    return WanDiTConfig(
        in_dim=in_dim,
        out_dim=draw(st.integers(1, 4)),
        dim=heads * draw(HEAD_DIMS),
        ffn_dim=draw(st.integers(4, 40)),
        num_heads=heads,
        num_layers=draw(st.integers(1, 2)),
        freq_dim=2 * draw(st.integers(2, 9)),
        text_dim=draw(st.integers(2, 9)),
        text_len=PEER_TEXT_LEN if image else draw(st.integers(1, 7)),
        patch_size=draw(PATCHES),
        cross_attn_norm=draw(st.booleans()),
        image_dim=draw(st.integers(2, 9)) if image else None,
        image_tokens=draw(st.integers(1, 5)) if image else 257,
    )


def pair(config: WanDiTConfig) -> tuple[WanDiT, nn.Module]:
    """Our network and the peer with the same weights, every one of them random."""
    torch.manual_seed(5)
    peer = WanTransformer3DModel(
        patch_size=config.patch_size,
        num_attention_heads=config.num_heads,
        attention_head_dim=config.head_dim,
        in_channels=config.in_dim,
        out_channels=config.out_dim,
        text_dim=config.text_dim,
        freq_dim=config.freq_dim,
        ffn_dim=config.ffn_dim,
        num_layers=config.num_layers,
        cross_attn_norm=config.cross_attn_norm,
        eps=config.eps,
        image_dim=config.image_dim,
        added_kv_proj_dim=None if config.image_dim is None else config.dim,
    ).eval()
    for name, parameter in peer.named_parameters():
        nn.init.normal_(parameter, mean=float("norm" in name and "bias" not in name), std=0.2)
    return load_model(config, MemorySource(peer.state_dict()), family="dit"), peer.requires_grad_(False)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def assert_equal(ours: Tensor, theirs: Tensor) -> None:
    # The peer's sinusoid is float32, ours float64: up to 1e-5 of the output at large timesteps.
    torch.testing.assert_close(ours, theirs, atol=5e-5 * max(1.0, theirs.abs().max().item()), rtol=0)


@given(
    config=dims(),
    batch=st.integers(1, 2),
    grid=st.tuples(*[st.integers(1, 3)] * 3),
    timesteps=st.lists(st.integers(0, 1000), min_size=2, max_size=2),
    words=st.integers(1, 7),
)
@SMALL
def test_equals_the_peer(
    config: WanDiTConfig, batch: int, grid: tuple[int, int, int], timesteps: list[int], words: int
) -> None:
    ours, peer = pair(config)
    latents = noise(batch, config.in_dim, *(n * p for n, p in zip(grid, config.patch_size, strict=True)))
    context = noise(batch, min(words, config.text_len), config.text_dim, seed=1)
    padded = nn.functional.pad(context, (0, 0, 0, config.text_len - context.shape[1]))
    times = torch.tensor(timesteps[:batch])
    with torch.no_grad():
        velocity = ours(latents, times, DiTInputs(context=context))
        assert_equal(velocity, peer(latents, times, padded, return_dict=False)[0])


@given(config=dims(), grid=st.tuples(*[st.integers(1, 3)] * 3), first=st.integers(0, 999), rest=st.integers(0, 999))
@SMALL
def test_timesteps_per_frame_equal_the_peers_per_token(
    config: WanDiTConfig, grid: tuple[int, int, int], first: int, rest: int
) -> None:
    ours, peer = pair(config)
    latents = noise(1, config.in_dim, *(n * p for n, p in zip(grid, config.patch_size, strict=True)))
    context = noise(1, config.text_len, config.text_dim, seed=1)
    frames = torch.tensor([[float(first), *[float(rest)] * (grid[0] - 1)]])
    with torch.no_grad():
        velocity = ours(latents, frames.repeat_interleave(config.patch_size[0], dim=1), DiTInputs(context=context))
        tokens = frames.repeat_interleave(grid[1] * grid[2], dim=1)
        assert_equal(velocity, peer(latents, tokens, context, return_dict=False)[0])


@given(config=dims(image=True), batch=st.integers(1, 2), extra=st.integers(0, 3))
@settings(SMALL, max_examples=6)
def test_the_image_branch_equals_the_peer(config: WanDiTConfig, batch: int, extra: int) -> None:
    ours, peer = pair(config)
    concat = min(extra, config.in_dim - 1)
    size = tuple(2 * side for side in config.patch_size)
    latents, condition = noise(batch, config.in_dim - concat, *size), noise(batch, concat, *size, seed=2)
    context = noise(batch, PEER_TEXT_LEN, config.text_dim, seed=1)
    image = noise(batch, config.image_tokens, config.image_dim or 0, seed=3)
    times = torch.tensor([321, 9][:batch])
    inputs = DiTInputs(context=context, image_context=image, channel_concat=condition if concat else None)
    with torch.no_grad():
        theirs = peer(torch.cat([latents, condition], dim=1), times, context, image, return_dict=False)[0]
        assert_equal(ours(latents, times, inputs), theirs)
