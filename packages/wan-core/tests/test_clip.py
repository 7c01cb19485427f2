"""The CLIP tower: names, preprocessing, which states it returns, and transformers' model as a live peer."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from wan_core.checkpoints.families.clip_names import CLIP_ORIGINAL_RENAMES, split_clip_tensor
from wan_core.errors import ConfigError
from wan_core.models import CLIP_VIT_H14, CLIPConfig, CLIPVision
from wan_core.models.image.clip import clip_pixels

from .networks import build

TINY = CLIPConfig(image_size=12, patch_size=4, dim=12, ffn_dim=20, num_heads=3, num_layers=3)

# ViT-H/14 as transformers 5 and as the original file name it: what each holds once, and in every one of 32 blocks.
TRANSFORMERS_ONCE = {
    "embeddings.class_embedding": (1280,),
    "embeddings.patch_embedding.weight": (1280, 3, 14, 14),
    "embeddings.position_embedding.weight": (257, 1280),
    "pre_layrnorm": (1280,),
    "post_layernorm": (1280,),
}
TRANSFORMERS_BLOCK = {
    "layer_norm1": (1280,),
    "self_attn.q_proj": (1280, 1280),
    "self_attn.k_proj": (1280, 1280),
    "self_attn.v_proj": (1280, 1280),
    "self_attn.out_proj": (1280, 1280),
    "layer_norm2": (1280,),
    "mlp.fc1": (5120, 1280),
    "mlp.fc2": (1280, 5120),
}
ORIGINAL_ONCE = {
    "visual.cls_embedding": (1, 1, 1280),
    "visual.pos_embedding": (1, 257, 1280),
    "visual.head": (1280, 1024),
    "visual.patch_embedding.weight": (1280, 3, 14, 14),
    "visual.pre_norm": (1280,),
    "visual.post_norm": (1280,),
    "textual.token_embedding.weight": (250002, 1024),
    "textual.blocks.0.attn.q": (1024, 1024),
    "textual.head.0.weight": (1024, 1024),
    "log_scale": (),
}
ORIGINAL_BLOCK = {
    "norm1": (1280,),
    "attn.to_qkv": (3840, 1280),
    "attn.proj": (1280, 1280),
    "norm2": (1280,),
    "mlp.0": (5120, 1280),
    "mlp.2": (1280, 5120),
}
Shapes = dict[str, tuple[int, ...]]
BARE = ("weight", "class_embedding", "cls_embedding", "pos_embedding", "visual.head", "log_scale")


def written_out(once: Shapes, block: Shapes, prefix: str) -> Shapes:
    """All tensors of the 32-block tower; a module's name stands for its weight and its bias."""
    modules = once | {f"{prefix}.{index}.{name}": shape for index in range(32) for name, shape in block.items()}
    tensors: Shapes = {}
    for name, shape in modules.items():
        if name.endswith(BARE):
            tensors[name] = shape
        else:
            tensors |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    return tensors


def make_tower(config: CLIPConfig = TINY) -> CLIPVision:
    torch.manual_seed(0)
    model = build(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def make_images(batch: int, height: int = 20, width: int = 15) -> Tensor:
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(3)) * 2 - 1


def shapes(model: CLIPVision) -> Shapes:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def test_vit_h14_has_the_names_and_shapes_of_transformers() -> None:
    with torch.device("meta"):
        built = shapes(build(CLIP_VIT_H14))
    assert built == written_out(TRANSFORMERS_ONCE, TRANSFORMERS_BLOCK, "encoder.layers")


def test_the_original_file_fills_the_tower_exactly() -> None:
    native: Shapes = {}
    for name, shape in written_out(ORIGINAL_ONCE, ORIGINAL_BLOCK, "visual.transformer").items():
        tensor = torch.empty(shape, device="meta")
        for target, piece in (split_clip_tensor(name, tensor) or rename(name, tensor)).items():
            assert target not in native
            native[target] = tuple(piece.shape)
    assert native == written_out(TRANSFORMERS_ONCE, TRANSFORMERS_BLOCK, "encoder.layers")


def rename(name: str, tensor: Tensor) -> dict[str, Tensor]:
    index = next((part for part in name.split(".") if part.isdigit()), "")
    path, _, suffix = name.rpartition(".")
    for source, target in CLIP_ORIGINAL_RENAMES:
        if target is None and (name == source or name.startswith(f"{source}.")):
            return {}
        if target is not None and path == source.replace("{}", index):
            return {f"{target.replace('{}', index)}.{suffix}": tensor}
    raise AssertionError(f"no rule for {name}")


def test_fused_projections_split_in_order() -> None:
    fused = torch.arange(6.0)[:, None] * torch.ones(2)
    parts = split_clip_tensor("visual.transformer.7.attn.to_qkv.weight", fused)
    assert parts is not None
    for part, start in zip("qkv", (0.0, 2.0, 4.0), strict=True):
        values = parts[f"encoder.layers.7.self_attn.{part}_proj.weight"]
        assert values[:, 0].tolist() == [start, start + 1]
    assert split_clip_tensor("encoder.layers.7.self_attn.q_proj.weight", fused) is None


@settings(max_examples=8, deadline=None)
@given(
    heads=st.integers(1, 3),
    head_dim=st.sampled_from([2, 4, 8]),
    num_layers=st.integers(2, 4),
    grid=st.integers(1, 4),
    patch=st.integers(2, 5),
    batch=st.integers(1, 3),
    activation=st.sampled_from(["gelu", "quick_gelu"]),
)
def test_states_equal_the_penultimate_ones_of_transformers(
    heads: int, head_dim: int, num_layers: int, grid: int, patch: int, batch: int, activation: str
) -> None:
    from transformers import CLIPVisionConfig, CLIPVisionModel

    dim = heads * head_dim
    config = CLIPConfig(
        image_size=grid * patch + 1,  # a border smaller than a patch is not seen
        patch_size=patch,
        dim=dim,
        ffn_dim=dim + 2,
        num_heads=heads,
        num_layers=num_layers,
        activation=activation,
    )
    model = make_tower(config)
    peer = CLIPVisionModel(
        CLIPVisionConfig(
            hidden_size=dim,
            intermediate_size=dim + 2,
            num_hidden_layers=num_layers,
            num_attention_heads=heads,
            image_size=config.image_size,
            patch_size=patch,
            hidden_act=activation,
        )
    ).eval()
    getattr(peer, "vision_model", peer).load_state_dict(model.state_dict())
    images = make_images(batch)
    with torch.no_grad():
        ours = model(images)
        theirs = peer(clip_pixels(images, config.image_size), output_hidden_states=True).hidden_states
        last = model.hidden_states(clip_pixels(images, config.image_size), num_layers)
    assert ours.shape == (batch, config.num_tokens, dim)
    torch.testing.assert_close(ours, theirs[-2], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(last, theirs[-1], atol=1e-5, rtol=1e-5)


def test_images_are_stretched_and_normalised() -> None:
    grey = clip_pixels(torch.zeros(1, 3, 9, 30), 8)
    expected = (0.5 - torch.tensor([0.48145466, 0.4578275, 0.40821073])) / torch.tensor(
        [0.26862954, 0.26130258, 0.27577711]
    )
    torch.testing.assert_close(grey, expected.view(1, 3, 1, 1).expand(1, 3, 8, 8))
    # Without antialiasing a 1-pixel checkerboard shrinks to large values instead of grey.
    board = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).repeat(12, 12).expand(1, 3, 24, 24)
    assert (clip_pixels(board, 8) - grey[..., :1, :1]).abs().min() > 1.0


def test_preprocessing_is_float32_for_any_input() -> None:
    assert clip_pixels(make_images(1).bfloat16(), 8).dtype == torch.float32


def test_batch_equals_single_images() -> None:
    model, images = make_tower(), make_images(2)
    with torch.no_grad():
        torch.testing.assert_close(model(images), torch.cat([model(images[:1]), model(images[1:])]))


@pytest.mark.parametrize("name", [name for name, _ in build(TINY).named_parameters()])
def test_every_weight_before_the_last_block_influences_the_states(name: str) -> None:
    model, images = make_tower(), make_images(1)
    with torch.no_grad():
        before = model(images)
        parameter = model.get_parameter(name)
        parameter.add_(torch.randn_like(parameter) * 0.1)
        change = (model(images) - before).abs().max()
    is_unused = name.startswith(("encoder.layers.2.", "post_layernorm."))
    # A key's bias shifts all logits of a query alike, which softmax ignores.
    is_invisible = name.endswith("k_proj.bias")
    assert change == 0 if is_unused else change < 1e-4 if is_invisible else change > 1e-4


@pytest.mark.parametrize(("dtype", "bound"), [(torch.bfloat16, 0.3), (torch.float16, 0.05)])
def test_half_precision_stays_close_to_float32(dtype: torch.dtype, bound: float) -> None:
    model, images = make_tower(), make_images(2)
    with torch.no_grad():
        exact = model(images)
        half = model.to(dtype)(images)
    assert half.dtype == dtype
    assert (half.float() - exact).abs().max() < bound


def test_a_tower_built_on_meta_holds_nothing_but_its_weights() -> None:
    with torch.device("meta"):
        model = build(TINY)
    weights = make_tower().state_dict()
    model.load_state_dict(weights, assign=True)
    with torch.no_grad():
        torch.testing.assert_close(model.to("cpu").eval()(make_images(1)), make_tower()(make_images(1)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_layers": 0}, "num_layers must be at least 1, got 0"),
        ({"patch_size": 300}, r"image_size must be at least patch_size \(300\), got 224"),
        ({"num_heads": 7}, "dim must be a multiple of num_heads, got 1280 and 7"),
        ({"activation": "relu"}, "activation must be one of gelu, quick_gelu, got 'relu'"),
    ],
)
def test_impossible_dims_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        CLIPConfig(**options)  # type: ignore[arg-type]
