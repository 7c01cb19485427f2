"""What finetuning trains: the transformer, the adapter, or low-rank updates, as one module with one list of weights."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import torch
from torch import Tensor, nn

from poze.adapter import Pi3FeatureAdapter, save_adapter
from wan_core.checkpoints import MemorySource, write_file
from wan_core.errors import ConfigError
from wan_core.models import WanDiT
from wan_core.runtime import apply_recompute
from wan_core.training import AveragedWeights, LoRASettings, attach_lora, save_lora

TRAINABLE = ("wan", "adapter", "lora")


def parse_trained(text: str) -> frozenset[str]:
    """The parts named in ``--train``. Raises ConfigError for unknown ones, none, or Wan together with its updates."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    unknown = [part for part in parts if part not in TRAINABLE]
    if unknown or not parts:
        raise ConfigError(f"--train takes {', '.join(TRAINABLE)} with commas between them, got {text!r}")
    if {"wan", "lora"} <= set(parts):
        raise ConfigError("--train takes wan or lora, not both: updates of weights that change themselves have no use")
    return frozenset(parts)


class GuidedNetwork(nn.Module):
    """A transformer and the adapter that guides it; only the parts in ``trained`` get gradients.

    Blocks are computed again in the backward pass. Raises ConfigError when the adapter makes tokens of another width.
    """

    def __init__(
        self, dit: WanDiT, adapter: Pi3FeatureAdapter, trained: Collection[str], lora: LoRASettings | None = None
    ) -> None:
        super().__init__()
        width = adapter.proj[1].out_features
        if width != dit.config.dim:
            raise ConfigError(f"the adapter makes tokens of width {width}, this transformer takes {dit.config.dim}")
        self.dit = dit
        self.adapter = adapter
        self.trained = frozenset(trained)
        self.requires_grad_(False)
        if "lora" in trained:
            attach_lora(dit, lora or LoRASettings())
        if "wan" in trained:
            own_weights(dit)
            dit.requires_grad_(True)
        adapter.requires_grad_("adapter" in trained)
        apply_recompute(dit)

    def guidance(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """Guidance tokens [B, K, dim] of Pi3's tokens [B, h * w, C], in float32."""
        with torch.autocast(tokens.device.type, enabled=False):
            guidance: Tensor = self.adapter(tokens.float(), grid)
        return guidance

    def save(self, folder: Path, step: int, metadata: dict[str, str], average: AveragedWeights | None) -> list[Path]:
        """Write the trained parts, averaged if there is an average: ``wan_finetune_stepN.safetensors`` and so on."""
        if average is not None:
            average.exchange(self)
        try:
            return list(self._write(folder, step, metadata))
        finally:
            if average is not None:
                average.exchange(self)

    def _write(self, folder: Path, step: int, metadata: dict[str, str]) -> list[Path]:
        written = []
        if "wan" in self.trained:
            path = folder / f"wan_finetune_step{step}.safetensors"
            write_file(MemorySource(self.dit.state_dict()), path, metadata={"format": "pt", **metadata})
            written.append(path)
        if "lora" in self.trained:
            written.append(save_lora(self.dit, folder / f"lora_step{step}.safetensors", metadata=metadata))
        if "adapter" in self.trained:
            written.append(save_adapter(self.adapter, folder / f"adapter_step{step}.safetensors", metadata))
        return written


def own_weights(model: nn.Module) -> None:
    """Give a model memory of its own for its weights, which may still be pages of a file."""
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
