"""The dims of a DiT: which are accepted, and that every released size has exactly the released tensors."""

from typing import Any

import pytest
import torch

from wan_core.errors import ConfigError
from wan_core.models import WanDiTConfig

from .networks import build

TINY = {"dim": 12, "ffn_dim": 20, "num_heads": 2, "num_layers": 1, "freq_dim": 8, "text_dim": 6, "text_len": 4}
A14B = {"dim": 5120, "ffn_dim": 13824, "num_heads": 40, "num_layers": 40}
RELEASES = {
    "t2v-A14B": (A14B, None, 1095, 14.288),
    "i2v-A14B": (A14B | {"in_dim": 36}, None, 1095, 14.289),
    "ti2v-5B": (
        {"in_dim": 48, "out_dim": 48, "dim": 3072, "ffn_dim": 14336, "num_heads": 24, "num_layers": 30},
        None,
        825,
        5.000,
    ),
    "t2v-1.3B": ({"dim": 1536, "ffn_dim": 8960, "num_heads": 12, "num_layers": 30}, None, 825, 1.419),
    "i2v-14B": (A14B | {"in_dim": 36}, 1280, 1303, 16.395),
}
LINEARS = ("q", "k", "v", "o")


def official_shapes(config: WanDiTConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the released files, written down from their manifests."""
    c, image = config.dim, config.image_dim
    shapes: dict[str, tuple[int, ...]] = {
        "patch_embedding.weight": (c, config.in_dim, *config.patch_size),
        "patch_embedding.bias": (c,),
        "head.modulation": (1, 2, c),
    }
    linears = {
        "text_embedding.0": (c, config.text_dim),
        "text_embedding.2": (c, c),
        "time_embedding.0": (c, config.freq_dim),
        "time_embedding.2": (c, c),
        "time_projection.1": (6 * c, c),
        "head.head": (config.out_dim * 4, c),
    }
    if image is not None:
        linears |= {"img_emb.proj.1": (image, image), "img_emb.proj.3": (c, image)}
        norms = {"img_emb.proj.0": image, "img_emb.proj.4": c}
        shapes |= {f"{name}.{kind}": (width,) for name, width in norms.items() for kind in ("weight", "bias")}
    for index in range(config.num_layers):
        block = f"blocks.{index}."
        shapes |= {f"{block}modulation": (1, 6, c), f"{block}norm3.weight": (c,), f"{block}norm3.bias": (c,)}
        cross = [*LINEARS, *(("k_img", "v_img") if image else ())]
        linears |= {f"{block}self_attn.{name}": (c, c) for name in LINEARS}
        linears |= {f"{block}cross_attn.{name}": (c, c) for name in cross}
        linears |= {f"{block}ffn.0": (config.ffn_dim, c), f"{block}ffn.2": (c, config.ffn_dim)}
        normed = ["self_attn.norm_q", "self_attn.norm_k", "cross_attn.norm_q", "cross_attn.norm_k"]
        normed += ["cross_attn.norm_k_img"] if image else []
        shapes |= {f"{block}{name}.weight": (c,) for name in normed}
    for name, shape in linears.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    return shapes


@pytest.mark.parametrize("name", RELEASES)
def test_a_released_size_has_the_released_tensors(name: str) -> None:
    options, image_dim, tensors, billions = RELEASES[name]
    config = WanDiTConfig(**options, image_dim=image_dim)
    with torch.device("meta"):
        state = build(config).state_dict()
    assert {key: tuple(value.shape) for key, value in state.items()} == official_shapes(config)
    assert len(state) == tensors
    assert round(sum(value.numel() for value in state.values()) / 1e9, 3) == billions


def test_lists_of_json_become_tuples() -> None:
    config = WanDiTConfig(**{**TINY, "patch_size": [1, 2, 2]})
    assert config.patch_size == (1, 2, 2)
    assert config == WanDiTConfig(**TINY)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"dim": 10**9}, "dim must be a whole number"),
        ({"dim": "12"}, "got '12'"),
        ({"dim": True}, "dim must be"),
        ({"num_layers": 0}, "num_layers must be"),
        ({"num_layers": 100000}, "num_layers must be"),
        ({"num_heads": 5}, "12 / 5"),
        ({"num_heads": 4}, "whole even number"),
        ({"freq_dim": 7}, "freq_dim must be even"),
        ({"patch_size": (1, 2)}, "patch_size"),
        ({"patch_size": (1, 2, 0)}, "patch_size"),
        ({"patch_size": 2}, "patch_size"),
        ({"qk_norm": "yes"}, "qk_norm"),
        ({"eps": 0.0}, "eps"),
        ({"eps": float("nan")}, "eps"),
        ({"image_dim": 0}, "image_dim"),
    ],
)
def test_dims_that_cannot_work_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        WanDiTConfig(**{**TINY, **options})
