"""Low-rank adapters (Hu et al. 2021): attach for training, save under the names other programs read, merge.

Saved names are ``diffusion_model.<layer>.lora_A.weight`` and ``.lora_B.weight`` with the layer names of the Wan
release. ComfyUI, diffusers and `wan_core.checkpoints` read them whatever was trained: see `lora_tensors`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from wan_core.checkpoints import MemorySource, write_file
from wan_core.errors import ConfigError
from wan_core.runtime import prepare_model
from wan_core.training.ranks import Ranks
from wan_core.training.settings import LoRASettings

_PREFIX = "diffusion_model."
_MOST_SHOWN = 30


class LoRALinear(nn.Module):
    """A frozen linear layer plus a trained low-rank update, which starts at zero."""

    def __init__(self, base: nn.Linear, settings: LoRASettings) -> None:
        super().__init__()
        self.base = base
        self.scale = settings.scale
        self.lora_A = nn.Parameter(torch.empty(settings.rank, base.in_features, device=base.weight.device))
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, settings.rank, device=base.weight.device))
        nn.init.kaiming_uniform_(self.lora_A, a=5**0.5)

    @property
    def weight(self) -> Tensor:
        """The frozen weight: models look up their dtype there."""
        return self.base.weight

    def update(self) -> Tensor:
        """The change of the weight, ``[out, in]`` float32."""
        return self.scale * self.lora_B @ self.lora_A

    def forward(self, hidden: Tensor) -> Tensor:
        """The layer's output with the update."""
        base: Tensor = self.base(hidden)
        down = functional.linear(hidden, self.lora_A.to(hidden.dtype))
        return base + self.scale * functional.linear(down, self.lora_B.to(hidden.dtype))


def attach_lora(model: nn.Module, settings: LoRASettings) -> list[str]:
    """Freeze ``model`` and put an adapter on every matching linear layer, in place; returns the layers' names.

    A pattern is a glob of a layer's whole name, as of `fnmatch`. Raises ConfigError naming each pattern that matches
    nothing, with names it could have matched, and for a network that was prepared for inference.
    """
    prepare_model(model, inference=False)  # asked for nothing, it refuses kernels that would pass the adapters by
    linears = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    idle = [target for target in settings.targets if not any(fnmatchcase(name, target) for name in linears)]
    if idle:
        raise ConfigError(
            f"no linear layer matches {', '.join(idle)}; a pattern is a glob of the whole name, such as "
            f"'blocks.*.ffn.0', and there are {', '.join(_shown(linears))}"
        )
    model.requires_grad_(False)
    chosen = [name for name in linears if any(fnmatchcase(name, target) for target in settings.targets)]
    for name in chosen:
        _replace(model, name, LoRALinear(linears[name], settings))
    return chosen


def _shown(names: Iterable[str]) -> list[str]:
    """The first name of each kind of layer: names that differ in the numbers of blocks are of one kind."""
    kinds: dict[str, str] = {}
    for name in sorted(names, key=lambda name: not name.startswith("blocks.")):
        kinds.setdefault(re.sub(r"(blocks\.)\d+", r"\1*", name), name)
    return [*kinds.values()][:_MOST_SHOWN]


def merge_lora(model: nn.Module) -> None:
    """Add every adapter to its layer's weight, in float32, and put the plain layer back, in place."""
    for name, adapter in adapters(model).items():
        with torch.no_grad():
            weight = adapter.base.weight
            weight.copy_(weight.float() + adapter.update())
        _replace(model, name, adapter.base)


def adapters(model: nn.Module) -> dict[str, LoRALinear]:
    """The adapters of a model by the names of their layers."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LoRALinear)}


def lora_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The adapters' tensors as other programs read them.

    ComfyUI takes a scale from ``.alpha`` (``scale * rank``) beside any layer, and 1 where there is none. diffusers 0.42
    does the same inside blocks alone and stumbles over an alpha elsewhere, over files without any block, and over
    layers for an image's keys without those for its values. So alpha is written only inside blocks and where it is not
    the rank, other layers have the scale in ``lora_B``, and what diffusers looks for is added as pairs of zeros.
    """
    tensors: dict[str, Tensor] = {}
    found = adapters(model)
    for name, adapter in found.items():
        up, is_scaled = adapter.lora_B.detach(), adapter.scale != 1.0
        has_alpha = is_scaled and name.startswith("blocks.")
        tensors[f"{_PREFIX}{name}.lora_A.weight"] = adapter.lora_A.detach()
        tensors[f"{_PREFIX}{name}.lora_B.weight"] = up * adapter.scale if is_scaled and not has_alpha else up
        if has_alpha:
            tensors[f"{_PREFIX}{name}.alpha"] = torch.tensor(adapter.scale * adapter.lora_A.shape[0])
    rank = next((adapter.lora_A.shape[0] for adapter in found.values()), 0)
    layers = dict(model.named_modules())
    for name in _companions(found):
        layer = layers.get(name)
        if isinstance(layer, nn.Linear):
            tensors[f"{_PREFIX}{name}.lora_A.weight"] = torch.zeros(rank, layer.in_features)
            tensors[f"{_PREFIX}{name}.lora_B.weight"] = torch.zeros(layer.out_features, rank)
    return tensors


def _companions(names: Collection[str]) -> list[str]:
    """Layers without which diffusers does not read updates of the layers ``names``."""
    if names and not any(name.startswith("blocks.") for name in names):
        return ["blocks.0.self_attn.q"]
    keys, values = ([name for name in names if name.endswith(f".{kind}_img")] for kind in "kv")
    if bool(keys) == bool(values):
        return []
    return [keys[0].removesuffix("k_img") + "v_img" if keys else values[0].removesuffix("v_img") + "k_img"]


def save_lora(
    model: nn.Module,
    path: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    metadata: Mapping[str, str] | None = None,
    ranks: Ranks | None = None,
) -> Path:
    """Write the adapters of ``model`` to a safetensors file, whole or not at all; returns its path.

    ``metadata`` says how they were made. With several ``ranks`` all must call it; the first writes. Raises ConfigError
    when the model has none, MediaError when the file cannot be written.
    """
    path, ranks = Path(path), ranks or Ranks()
    whole = {name: ranks.whole(tensor) for name, tensor in lora_tensors(model).items()}
    tensors = {name: tensor.to("cpu", dtype).contiguous() for name, tensor in whole.items()}
    if not tensors:
        raise ConfigError("this model has no LoRA adapters to save")
    if not ranks.is_first:
        return path
    write_file(MemorySource(tensors), path, metadata={"format": "pt", **(metadata or {})})
    return path


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)
