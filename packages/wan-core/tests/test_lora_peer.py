"""LoRA files in diffusers, run live: the peer with its own loader computes what our merged network computes."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import WanTransformer3DModel
from diffusers.loaders import WanLoraLoaderMixin
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from torch import Tensor, nn

from wan_core.checkpoints import LoRA, MemorySource, in_format, load_model, with_loras
from wan_core.models import DiTInputs, WanDiT, WanDiTConfig
from wan_core.training import LoRASettings, attach_lora, lora_tensors, trained_tensors
from wan_core.training.lora import adapters, save_lora

from .lora_files import Halves, spelt, updates, write
from .networks import build

CONFIG = WanDiTConfig(
    in_dim=4, out_dim=4, dim=24, ffn_dim=40, num_heads=2, num_layers=2, freq_dim=16, text_dim=8, text_len=6
)
TRAINED = LoRASettings(rank=3, alpha=6.0)


def weights() -> dict[str, Tensor]:
    torch.manual_seed(1)
    model = build(CONFIG)
    for name, parameter in model.named_parameters():
        nn.init.normal_(parameter, mean=float("norm" in name and "bias" not in name), std=0.2)
    return dict(model.state_dict())


WEIGHTS = weights()
LATENTS = torch.randn(1, 4, 2, 4, 4, generator=torch.Generator().manual_seed(2))
TIMES = torch.tensor([400])
CONTEXT = torch.randn(1, 6, 8, generator=torch.Generator().manual_seed(3))


def peer() -> WanTransformer3DModel:
    model = WanTransformer3DModel(
        patch_size=CONFIG.patch_size, num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4,
        text_dim=8, freq_dim=16, ffn_dim=40, num_layers=2, cross_attn_norm=True,
    )  # fmt: skip
    source = in_format(MemorySource(WEIGHTS), "dit", "diffusers")
    model.load_state_dict({name: source.read(name) for name in source})
    return model.eval()


@torch.no_grad()
def theirs(path: Path, strength: float = 1.0) -> Tensor:
    """The peer's velocity with the LoRA that its own pipeline code read from a file."""
    model = peer()
    state = WanLoraLoaderMixin.lora_state_dict(path.parent, weight_name=path.name, return_lora_metadata=True)
    model.load_lora_adapter(state[0], metadata=state[1], adapter_name="ours")
    model.set_adapters(["ours"], [strength])
    return model(LATENTS, TIMES, CONTEXT, return_dict=False)[0]


@torch.no_grad()
def velocity(model: WanDiT) -> Tensor:
    return model(LATENTS, TIMES, DiTInputs(context=CONTEXT))


def ours(path: Path, strength: float = 1.0) -> Tensor:
    return velocity(load_model(CONFIG, with_loras(MemorySource(WEIGHTS), [LoRA(path, strength)]), family="dit"))


def assert_same(left: Tensor, right: Tensor) -> None:
    plain = velocity(load_model(CONFIG, MemorySource(WEIGHTS), family="dit"))
    changed = (right - plain).abs().max().item()
    assert changed > 0.05, "the LoRA does nothing"
    torch.testing.assert_close(left, right, atol=1e-4 * max(1.0, right.abs().max().item()), rtol=0)


def trained() -> WanDiT:
    """Our network with adapters that have been trained for a while, so to speak."""
    model = load_model(CONFIG, MemorySource(WEIGHTS), family="dit")
    attach_lora(model, TRAINED)
    torch.manual_seed(4)
    for parameter in trained_tensors(model).values():
        nn.init.normal_(parameter, std=0.2)
    return model


@pytest.mark.parametrize("strength", [1.0, -0.6])
def test_what_we_train_and_save_is_the_same_in_diffusers_and_merged(tmp_path: Path, strength: float) -> None:
    model = trained()
    path = save_lora(model, tmp_path / "trained.safetensors")
    merged = ours(path, strength)
    if strength == 1.0:
        torch.testing.assert_close(merged, velocity(model), rtol=1e-4, atol=1e-4)
    assert_same(merged, theirs(path, strength))


def blocks_only() -> dict[str, Halves]:
    """Updates of the layers that every program's LoRA has."""
    kinds = ("self_attn.", "cross_attn.", "ffn.")
    return {layer: halves for layer, halves in updates(WEIGHTS, 2).items() if any(kind in layer for kind in kinds)}


FILES: dict[str, Callable[[], dict[str, Tensor]]] = {
    "diffusers": lambda: spelt(blocks_only(), "diffusers"),
    "ComfyUI": lambda: spelt(blocks_only(), "ComfyUI"),
    "ComfyUI with alpha": lambda: spelt(blocks_only(), "ComfyUI", 5.0),
    "kohya and musubi": lambda: spelt(blocks_only(), "kohya and musubi", 3.0),
    "lightx2v": lambda: {
        **spelt(blocks_only(), "lightx2v"),
        **{
            f"diffusion_model.{layer}.diff_b": torch.full_like(WEIGHTS[f"{layer}.bias"], 0.3) for layer in blocks_only()
        },
    },
    "lightx2v with embeddings": lambda: spelt(
        {layer: halves for layer, halves in updates(WEIGHTS, 2).items() if not layer.startswith("patch_embedding")},
        "lightx2v",
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_files_of_other_programs_give_the_peers_output(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / "lora.safetensors", FILES[name]())
    assert_same(ours(path, 0.7), theirs(path, 0.7))


def test_what_the_peer_trains_and_saves_is_the_same_merged(tmp_path: Path) -> None:
    model = peer()
    settings = LoraConfig(r=4, lora_alpha=6, target_modules=["to_q", "to_v", "ffn.net.2"], init_lora_weights=False)
    torch.manual_seed(6)
    model.add_adapter(settings, adapter_name="theirs")
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter, std=0.2)
    model.save_lora_adapter(tmp_path / "adapter", adapter_name="theirs")
    WanLoraLoaderMixin.save_lora_weights(
        tmp_path / "pipeline",
        transformer_lora_layers=get_peft_model_state_dict(model, adapter_name="theirs"),
        transformer_lora_adapter_metadata=settings.to_dict(),
    )
    with torch.no_grad():
        expected = model(LATENTS, TIMES, CONTEXT, return_dict=False)[0]
    for folder in ("adapter", "pipeline"):
        assert_same(ours(tmp_path / folder), expected)


# -- whatever was trained ----------------------------------------------------------------------------------------------

# diffusers takes everything beyond 512 places of text for an image's.
WITH_IMAGE = replace(CONFIG, in_dim=6, image_dim=5, image_tokens=3, text_len=512)
IMAGE_STATES = torch.randn(1, 3, 5, generator=torch.Generator().manual_seed(7))
TEXT = torch.cat([CONTEXT, torch.zeros(1, 506, 8)], dim=1)
MASK = torch.randn(1, 2, 2, 4, 4, generator=torch.Generator().manual_seed(8))

TARGETS = {
    "the default": ("blocks.*.self_attn.[qkvo]", "blocks.*.cross_attn.[qkvo]", "blocks.*.ffn.[02]"),
    "every linear layer": ("*",),
    "the head": ("head.head",),
    "a time embedding": ("time_embedding.0",),
    "the other time embedding": ("time_embedding.2",),
    "the time projection": ("time_projection.1",),
    "a text embedding": ("text_embedding.0",),
    "the other text embedding": ("text_embedding.2",),
    "an image embedding": ("img_emb.proj.1",),
    "the other image embedding": ("img_emb.proj.3",),
    "all embeddings": ("*_embedding.*", "img_emb.*", "time_projection.*", "head.*"),
    "keys of the image": ("*.k_img",),
    "values of the image in one block": ("blocks.1.*.v_img",),
    "the last block alone": ("blocks.1.ffn.0",),
    "a block and the head": ("blocks.1.ffn.0", "head.head"),
}


def random_weights(config: WanDiTConfig) -> dict[str, Tensor]:
    torch.manual_seed(11)
    model = build(config)
    for name, parameter in model.named_parameters():
        nn.init.normal_(parameter, mean=float("norm" in name and "bias" not in name), std=0.3)
    return dict(model.state_dict())


IMAGE_WEIGHTS = {name: tensor * (4 if "_img" in name else 1) for name, tensor in random_weights(WITH_IMAGE).items()}


@torch.no_grad()
def image_velocity(model: WanDiT) -> Tensor:
    inputs = DiTInputs(context=CONTEXT, image_context=IMAGE_STATES, channel_concat=MASK)
    return model(LATENTS, TIMES, inputs)


@torch.no_grad()
def their_image_velocity(path: Path) -> Tensor:
    """The peer's output, with the file that its pipeline's own code read and attached."""
    model = WanTransformer3DModel(
        patch_size=CONFIG.patch_size, num_attention_heads=2, attention_head_dim=12, in_channels=6, out_channels=4,
        text_dim=8, freq_dim=16, ffn_dim=40, num_layers=2, cross_attn_norm=True, image_dim=5, added_kv_proj_dim=24,
    )  # fmt: skip
    source = in_format(MemorySource(IMAGE_WEIGHTS), "dit", "diffusers")
    model.load_state_dict({name: source.read(name) for name in source})
    state, metadata = WanLoraLoaderMixin.lora_state_dict(path.parent, weight_name=path.name, return_lora_metadata=True)
    state = WanLoraLoaderMixin._maybe_expand_t2v_lora_for_i2v(model, state)
    assert all("lora" in name for name in state)
    WanLoraLoaderMixin.load_lora_into_transformer(state, model, adapter_name="ours", metadata=metadata)
    attached = {name.partition(".lora_A.")[0] for name, _ in model.named_parameters() if ".lora_A." in name}
    assert attached == {
        name.removeprefix("transformer.").partition(".lora_A.")[0] for name in state if "lora_A" in name
    }
    hidden = torch.cat([LATENTS, MASK], dim=1)
    return model.eval()(hidden, TIMES, TEXT, encoder_hidden_states_image=IMAGE_STATES, return_dict=False)[0]


@pytest.mark.parametrize("alpha", [None, 7.0], ids=["alpha is the rank", "alpha is not the rank"])
@pytest.mark.parametrize("name", TARGETS)
def test_whatever_was_trained_diffusers_attaches_what_we_merge(tmp_path: Path, name: str, alpha: float | None) -> None:
    model = load_model(WITH_IMAGE, MemorySource(IMAGE_WEIGHTS), family="dit")
    plain = image_velocity(model)
    attach_lora(model, LoRASettings(rank=3, alpha=alpha, targets=TARGETS[name]))
    torch.manual_seed(4)
    for parameter in trained_tensors(model).values():
        nn.init.normal_(parameter, std=1.0)
    path = save_lora(model, tmp_path / "trained.safetensors")
    trained_output = image_velocity(model)
    tolerance = 1e-4 * max(1.0, trained_output.abs().max().item())
    assert (trained_output - plain).abs().max() > 20 * tolerance, "the LoRA does nothing"
    merged = load_model(WITH_IMAGE, with_loras(MemorySource(IMAGE_WEIGHTS), [LoRA(path)]), family="dit")
    torch.testing.assert_close(image_velocity(merged), trained_output, atol=tolerance, rtol=0)
    torch.testing.assert_close(their_image_velocity(path), trained_output, atol=tolerance, rtol=0)


def comfy_layers(names: set[str]) -> set[str]:
    """What ComfyUI looks for before ``.lora_A.weight``, by its own rule: a weight's whole name without ``.weight``.

    The rule is ``model_lora_keys_unet`` of its ``comfy/lora.py`` ("generic lora format"); it holds a Wan network under
    ``diffusion_model.`` with the official names. A scale is ``alpha`` over the rank, 1 where there is no alpha.
    """
    return {f"diffusion_model.{name}".removesuffix(".weight") for name in names}


@pytest.mark.parametrize("alpha", [None, 7.0])
@pytest.mark.parametrize("name", TARGETS)
def test_every_tensor_that_we_save_has_a_place_in_comfyui(name: str, alpha: float | None) -> None:
    model = load_model(WITH_IMAGE, MemorySource(IMAGE_WEIGHTS), family="dit")
    attach_lora(model, LoRASettings(rank=3, alpha=alpha, targets=TARGETS[name]))
    torch.manual_seed(4)
    for parameter in trained_tensors(model).values():
        nn.init.normal_(parameter, std=0.4)
    saved = lora_tensors(model)
    known = comfy_layers(set(IMAGE_WEIGHTS))
    left = set(saved)
    changes: dict[str, Tensor] = {}
    for layer in known:
        if f"{layer}.lora_B.weight" not in saved:
            continue
        scale = saved[f"{layer}.alpha"].item() / 3 if f"{layer}.alpha" in saved else 1.0
        changes[layer.removeprefix("diffusion_model.")] = (
            scale * saved[f"{layer}.lora_B.weight"] @ saved[f"{layer}.lora_A.weight"]
        )
        left -= {f"{layer}.{role}" for role in ("lora_A.weight", "lora_B.weight", "alpha")}
    assert not left
    for layer, adapter in adapters(model).items():
        torch.testing.assert_close(changes.pop(layer), adapter.update().detach(), rtol=1e-5, atol=1e-6)
    assert all(not change.any() for change in changes.values())  # what diffusers looks for changes nothing
    assert len(changes) <= 1


def test_an_alpha_that_is_the_rank_is_not_written() -> None:
    model = load_model(WITH_IMAGE, MemorySource(IMAGE_WEIGHTS), family="dit")
    attach_lora(model, LoRASettings(rank=3, targets=("*",)))
    assert not any(name.endswith(".alpha") for name in lora_tensors(model))
