"""The rewrites and layers of the video autoencoder against their plain definitions."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from wan_core.models.vae.causal import CausalConv3d, FeatureCache
from wan_core.models.vae.layers import ChannelNorm
from wan_core.models.vae.shortcuts import average_downsample, duplicate_upsample, patchify, unpatchify
from wan_core.runtime.kernels import winograd

CHANNELS = st.sampled_from([2, 4, 6])
RATIOS = st.sampled_from([(1, 1), (2, 1), (1, 2), (3, 2)])  # out channels over in channels
FACTORS = st.integers(1, 2)


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("frames", [1, 2, 3, 4, 5, 8, 11])
def test_temporal_filtering_equals_the_convolution(frames: int, kernel: int) -> None:
    torch.manual_seed(frames)
    x = torch.randn(2, 24, frames + 2, 7, 9)
    weight, bias = torch.randn(5, 24, 3, kernel, kernel) / (72 * kernel**2) ** 0.5, torch.randn(5)
    wanted = functional.conv3d(x.double(), weight.double(), bias.double(), padding=(0, kernel // 2, kernel // 2))
    computed = winograd.temporal_conv(x.unbind(2), weight, bias)
    assert computed.shape == wanted.shape
    assert (computed - wanted).abs().max() < 2e-5
    assert (computed - wanted).square().mean().sqrt() < 3e-6


def test_upsampling_folds_into_one_transposed_convolution() -> None:
    torch.manual_seed(0)
    x, weight, bias = torch.randn(3, 8, 5, 7), torch.randn(6, 8, 3, 3), torch.randn(6)
    wanted = functional.conv2d(functional.interpolate(x, scale_factor=2.0, mode="nearest"), weight, bias, padding=1)
    torch.testing.assert_close(winograd.upsampled_conv(x, weight, bias), wanted, atol=2e-5, rtol=1e-5)


def test_rewrites_serve_float32_on_large_maps_only() -> None:
    large, small = torch.zeros(1, 4, 1, 16, 16), torch.zeros(1, 4, 1, 4, 4)
    assert winograd.pays_off(large)
    assert not winograd.pays_off(small)
    assert not winograd.pays_off(large.bfloat16())


@given(chunks=st.lists(st.integers(1, 5), min_size=1, max_size=4), size=st.sampled_from([3, 16]), fast=st.booleans())
@settings(max_examples=20, deadline=None)
def test_causal_convolution_in_chunks_equals_the_padded_one(chunks: list[int], size: int, fast: bool) -> None:
    torch.manual_seed(size)
    conv = (winograd.FilteredConv3d if fast else CausalConv3d)(3, 4)
    x = torch.randn(1, 3, sum(chunks), size, size)
    wanted = functional.conv3d(functional.pad(x, (1, 1, 1, 1, 2, 0)), conv.weight, conv.bias)
    cache = FeatureCache()
    outputs = []
    with torch.set_grad_enabled(not fast):
        for chunk in x.split(chunks, dim=2):
            outputs.append(conv(chunk, cache))
            cache.finish_chunk()
        torch.testing.assert_close(torch.cat(outputs, dim=2), wanted, atol=2e-5, rtol=1e-5)
        torch.testing.assert_close(conv(x), wanted, atol=2e-5, rtol=1e-5)


def test_norm_has_a_floor_and_is_computed_in_float32() -> None:
    norm = ChannelNorm(4)
    x = torch.zeros(1, 4, 1, 1, 3)
    x[..., 1], x[..., 2] = 1e-13, 3e18
    with torch.no_grad():
        out = norm(x)
        torch.testing.assert_close(out[0, :, 0, 0].T, torch.tensor([[0.0] * 4, [0.2] * 4, [1.0] * 4]))
        assert norm.bfloat16()(x.bfloat16())[0, 0, 0, 0, 2] == 1


@given(channels=CHANNELS, ratio=RATIOS, ft=FACTORS, fs=FACTORS, frames=st.integers(1, 3))
@settings(max_examples=40, deadline=None)
def test_averaging_follows_its_definition(channels: int, ratio: tuple[int, int], ft: int, fs: int, frames: int) -> None:
    out_channels, folded = channels * ratio[0] // ratio[1], channels * ft * fs**2
    if folded % out_channels:
        return
    x = torch.randn(1, channels, frames, 2 * fs, fs)
    padded = functional.pad(x, (0, 0, 0, 0, -frames % ft, 0))
    pixels = padded.unfold(2, ft, ft).unfold(3, fs, fs).unfold(4, fs, fs)  # [B, C, T, H, W, ft, fs, fs]
    stacked = pixels.permute(0, 2, 3, 4, 1, 5, 6, 7).reshape(*pixels.shape[:1], *pixels.shape[2:5], out_channels, -1)
    wanted = stacked.mean(-1).movedim(-1, 1)
    torch.testing.assert_close(average_downsample(x, out_channels, ft, fs), wanted)


@given(channels=CHANNELS, ratio=RATIOS, ft=FACTORS, fs=FACTORS, first=st.booleans())
@settings(max_examples=40, deadline=None)
def test_duplication_follows_its_definition(
    channels: int, ratio: tuple[int, int], ft: int, fs: int, first: bool
) -> None:
    out_channels = channels * ratio[0] // ratio[1]
    factor = ft * fs**2
    if out_channels * factor % channels:
        return
    x = torch.randn(2, channels, 2, 3, 2)
    out = duplicate_upsample(x, out_channels, ft, fs, is_first_chunk=first)
    repeats, dropped = out_channels * factor // channels, ft - 1 if first else 0
    assert out.shape == (2, out_channels, 2 * ft - dropped, 3 * fs, 2 * fs)
    for channel in range(out_channels):
        for offset in range(factor):
            a, q, s = offset // fs**2, offset // fs % fs, offset % fs
            read = out[:, channel, :, q::fs, s::fs]
            frames = range(a, 2 * ft, ft)
            for index, frame in enumerate(frames):
                if frame >= dropped:
                    source = x[:, (channel * factor + offset) // repeats, index]
                    assert torch.equal(read[:, frame - dropped], source)


def test_patches_vary_by_row_fastest() -> None:
    x = torch.arange(4.0).view(1, 1, 1, 2, 2).expand(1, 3, 1, 2, 2)
    assert patchify(x, 2)[0, :4, 0, 0, 0].tolist() == [0.0, 2.0, 1.0, 3.0]
    assert torch.equal(unpatchify(patchify(x, 2), 2), x)
