"""Benchmark rows of Pi3: ours against a plain baseline of the same weights, and the published figures of a GPU.

No package on the registry holds Pi3, so the baseline is written here as the paper describes the network: all views in
one pass, rotary angles taken anew in every block, every block attending through `scaled_dot_product_attention`.
"""

import time
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional

from pi3 import DinoConfig, Pi3Config
from pi3.checkpoints import build
from tools.bench_peers import Settings, Sides, normal, outputs, synchronise

VIEWS, SIZE = 24, (140, 196)
PUBLISHED = {
    "pi3-4096x224x224": (4096, 224, 224, 520.0, 47.8),
    "pi3-2048x336x336": (2048, 336, 336, 644.0, None),
    "pi3-1024x364x504": (1024, 364, 504, 422.0, 43.7),
}
"""Views, height, width, seconds and GB of one forward in bfloat16 on an A800, as the Pi3 repository reports them."""


@cache
def network(settings: Settings, full: bool = False) -> nn.Module:
    """Seeded random weights: the published dims where ``full``, a sixth of the width otherwise, tiny with ``quick``."""
    torch.manual_seed(0)
    if full:
        return build(Pi3Config()).to(settings.device).eval().requires_grad_(False)
    dim, layers = (32, 2) if settings.quick else (192, 8)
    shared = {"decoder_layers": layers, "decoder_heads": dim // 16, "head_dim": dim, "head_heads": dim // 16}
    config = Pi3Config(
        encoder=DinoConfig(dim=dim, num_layers=layers, num_heads=dim // 16), head_layers=2, camera_dim=dim, **shared
    )
    return build(config).to(settings.device).eval().requires_grad_(False)


def pi3_forward(settings: Settings) -> Sides:
    """Points of 24 views of 140 x 196 pixels (quick: 2 of 28 x 28), float32."""
    model = network(settings)
    views, (height, width) = (2, (28, 28)) if settings.quick else (VIEWS, SIZE)
    images = normal(1, views, 3, height, width, seed=6, settings=settings).sigmoid()
    return outputs(lambda: model(images).points, lambda: plain_points(model, images), settings, torch.float32)


def pi3_published(name: str, settings: Settings) -> tuple[float, float]:
    """Seconds and GB of one forward of the published dims in bfloat16 on a GPU; random weights cost the same."""
    views, height, width, _, _ = PUBLISHED[name]
    model = network(settings, full=True)
    images = normal(1, views, 3, height, width, seed=6, settings=settings).sigmoid()
    torch.cuda.reset_peak_memory_stats(settings.device)
    with torch.no_grad(), torch.autocast("cuda", torch.bfloat16):
        model(images[:, :2])
        synchronise(settings.device)
        start = time.perf_counter()
        model(images)
        synchronise(settings.device)
    return time.perf_counter() - start, torch.cuda.max_memory_allocated(settings.device) / 1e9


def plain_points(model: nn.Module, images: Tensor) -> Tensor:
    """World points [1, N, H, W, 3] of images [1, N, 3, H, W], without any of our shortcuts."""
    _, count, _, height, width = images.shape
    rows, columns = height // model.config.patch_size, width // model.config.patch_size
    tokens = model.encoder.embed((images[0] - model.image_mean) / model.image_std)
    for block in model.encoder.blocks:
        tokens = plain_block(block, tokens, None)
    patches = model.encoder.norm(tokens)[:, 1 + model.encoder.config.num_registers :]
    tokens = torch.cat([model.register_token[0].expand(count, -1, -1), patches], dim=1)
    grid = torch.cartesian_prod(torch.arange(1, rows + 1), torch.arange(1, columns + 1)).to(tokens.device)
    one = torch.cat([grid.new_zeros(model.config.num_registers, 2), grid])
    states = [tokens]
    for index, block in enumerate(model.decoder):
        shape = tokens.shape
        joined = tokens if index % 2 == 0 else tokens.reshape(1, -1, shape[-1])
        tokens = plain_block(block, joined, one if index % 2 == 0 else one.repeat(count, 1)).reshape(shape)
        states = [states[-1], tokens]
    hidden = torch.cat(states, dim=-1)
    decoded = {}
    for name in ("point", "conf", "camera"):
        decoder = getattr(model, f"{name}_decoder")
        tokens = decoder.projects(hidden)
        for block in decoder.blocks:
            tokens = plain_block(block, tokens, one)
        decoded[name] = decoder.linear_out(tokens)[:, model.config.num_registers :]
    maps = model.point_head(decoded["point"], rows, columns)
    model.conf_head(decoded["conf"], rows, columns)
    poses = model.camera_head(decoded["camera"])
    depth = maps[..., 2:].exp()
    local = torch.cat([maps[..., :2] * depth, depth], dim=-1)
    return (torch.einsum("nij,nhwj->nhwi", poses[:, :3, :3], local) + poses[:, None, None, :3, 3])[None]


def plain_block(block: nn.Module, tokens: Tensor, positions: Tensor | None) -> Tensor:
    """A pre-norm block over [B, L, C]; ``positions`` [L, 2] turn queries and keys."""
    attention = block.attn
    hidden = attention.qkv(block.norm1(tokens))
    query, key, value = hidden.unflatten(-1, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)
    query, key = attention.q_norm(query), attention.k_norm(key)
    if positions is not None:
        query, key = plain_rotary(query, positions), plain_rotary(key, positions)
    mixed = functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
    tokens = tokens + block.ls1(attention.proj(mixed))
    return tokens + block.ls2(block.mlp.fc2(functional.gelu(block.mlp.fc1(block.norm2(tokens)))))


def plain_rotary(heads: Tensor, positions: Tensor, base: float = 100.0) -> Tensor:
    """Turn one half of each head [B, n, L, d] by the row, the other by the column, angles in float32."""
    turned = []
    for half, place in zip(heads.chunk(2, dim=-1), positions.unbind(-1), strict=True):
        size = half.shape[-1]
        rates = base ** (-torch.arange(0, size, 2, device=heads.device).float() / size)
        angles = torch.cat([place[:, None].float() * rates] * 2, dim=-1)
        first, second = half.chunk(2, dim=-1)
        turned.append(half * angles.cos() + torch.cat([-second, first], dim=-1) * angles.sin())
    return torch.cat(turned, dim=-1)
