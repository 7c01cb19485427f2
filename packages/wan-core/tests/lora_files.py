"""LoRA files for the tests: random updates of a network, in each spelling that programs write."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from wan_core.checkpoints import DIT, LoRA, MemorySource, with_loras
from wan_core.checkpoints.formats import rename

from .dit_networks import IMAGE, network

Halves = tuple[Tensor, Tensor]
Spelling = Callable[[str], tuple[str, str, str]]


def layers_of(weights: Mapping[str, Tensor]) -> list[str]:
    """The layers that an update can be for: linear ones and convolutions."""
    return [name.removesuffix(".weight") for name in weights if name.endswith(".weight") and weights[name].dim() > 1]


def updates(weights: Mapping[str, Tensor], rank: int, *, seed: int = 0) -> dict[str, Halves]:
    """Random halves, ``[rank, in, ...]`` and ``[out, rank, ...]``, for every layer of a network."""
    generator = torch.Generator().manual_seed(seed)

    def half(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator) * 0.2

    return {
        layer: (half(rank, *shape[1:]), half(shape[0], rank, *[1] * (len(shape) - 2)))
        for layer in layers_of(weights)
        if (shape := weights[f"{layer}.weight"].shape)
    }


def diffusers_name(layer: str) -> str:
    """A native layer as diffusers calls it."""
    table = next(candidate for candidate in DIT.formats if candidate.name == "diffusers").renames
    return rename(layer, {ours: theirs for theirs, ours in reversed(table) if ours is not None}) or layer


def _peft(prefix: str, adapter: str = "", name: Callable[[str], str] = str) -> Spelling:
    def spell(layer: str) -> tuple[str, str, str]:
        start = f"{prefix}{name(layer)}"
        return f"{start}.lora_A{adapter}.weight", f"{start}.lora_B{adapter}.weight", f"{start}.alpha"

    return spell


def _kohya(prefix: str, name: Callable[[str], str] = str, join: str = "_", half: str = "lora_{}") -> Spelling:
    def spell(layer: str) -> tuple[str, str, str]:
        start = prefix + name(layer).replace(".", join)
        return tuple(f"{start}.{part}" for part in (half.format("down.weight"), half.format("up.weight"), "alpha"))

    return spell


SPELLINGS: Mapping[str, Spelling] = {
    "peft": _peft("base_model.model."),
    "peft with an adapter's name": _peft("base_model.model.", ".default"),
    "peft of diffusers": _peft("base_model.model.", "", diffusers_name),
    "diffusers": _peft("transformer.", "", diffusers_name),
    "diffusers, second expert": _peft("transformer_2.", "", diffusers_name),
    "diffusers, first releases": _kohya("transformer.", diffusers_name, ".", "lora.{}"),
    "diffusers without prefix": _peft("", "", diffusers_name),
    "kohya and musubi": _kohya("lora_unet_"),
    "kohya with two underscores": _kohya("lora_unet__"),
    "kohya of diffusers": _kohya("lora_transformer_", diffusers_name),
    "lycoris": _kohya("lycoris_"),
    "ComfyUI": _peft("diffusion_model."),
    "ComfyUI, down and up": _kohya("diffusion_model.", str, "."),
    "lightx2v": _kohya("diffusion_model.", str, "."),
    "DiffSynth": _peft("", ".default"),
    "a trainer's wrapped file": _peft("state_dict.pipe.dit._orig_mod."),
}


def spelt(halves: Mapping[str, Halves], spelling: str, alpha: float | None = None) -> dict[str, Tensor]:
    """The tensors of a LoRA file."""
    tensors: dict[str, Tensor] = {}
    for layer, (down, up) in halves.items():
        names = SPELLINGS[spelling](layer)
        tensors |= {names[0]: down, names[1]: up} | ({} if alpha is None else {names[2]: torch.tensor(alpha)})
    return tensors


def write(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> Path:
    """A safetensors file."""
    save_file(
        {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()},
        path,
        dict(metadata or {"format": "pt"}),
    )
    return path


def merged(weights: Mapping[str, Tensor], halves: Mapping[str, Halves], scale: float) -> dict[str, Tensor]:
    """What merging must give, by the definition, in float64."""
    result = dict(weights)
    for layer, (down, up) in halves.items():
        weight = weights[f"{layer}.weight"]
        change = (up.double().flatten(1) @ down.double().flatten(1)).view(weight.shape)
        result[f"{layer}.weight"] = (weight.double() + scale * change).to(weight.dtype)
    return result


BASE = {name: tensor.clone() for name, tensor in network(IMAGE).state_dict().items()}
QUERY = "blocks.0.self_attn.q"


def read(path: Path, strength: float = 1.0, **options: Any) -> dict[str, Tensor]:
    source = with_loras(MemorySource(BASE), [LoRA(path, strength)], **options)
    return {name: source.read(name) for name in source}


def assert_close(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-5, msg=name)
