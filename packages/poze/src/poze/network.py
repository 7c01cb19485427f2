"""What finetuning trains: the transformer, the adapter, or low-rank updates, as one module with one list of weights."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from poze.adapter import Pi3FeatureAdapter, save_adapter
from wan_core import ConfigError
from wan_core.checkpoints import MemorySource, write_file
from wan_core.models import DiTInputs, WanDiT
from wan_core.training import (
    AveragedWeights,
    LoRASettings,
    Ranks,
    attach_lora,
    averaged,
    lora_tensors,
    own_weights,
    save_network,
)

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

    Raises ConfigError when the adapter makes tokens of another width.
    """

    def __init__(
        self, dit: WanDiT, adapter: Pi3FeatureAdapter, trained: Collection[str], lora: LoRASettings | None = None
    ) -> None:
        super().__init__()
        in_text = adapter.context_space == "text"
        width, wanted = adapter.proj[1].out_features, dit.config.text_dim if in_text else dit.config.dim
        if width != wanted:
            raise ConfigError(f"the adapter makes tokens of width {width}, this transformer takes {wanted}")
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

    def guided(self, inputs: DiTInputs, tokens: Tensor, grid: tuple[int, int]) -> DiTInputs:
        """Conditions with the guidance of Pi3's tokens [B, h * w, C], behind the text states or behind their embedding.

        The adapter computes in float32.
        """
        with torch.autocast(tokens.device.type, enabled=False):
            guidance: Tensor = self.adapter(tokens.float(), grid)
        if self.adapter.context_space == "text":
            return replace(inputs, context=torch.cat([inputs.context, guidance.to(inputs.context)], dim=1))
        return replace(inputs, extra_context=guidance)

    def save(
        self,
        folder: Path,
        step: int,
        metadata: Mapping[str, str],
        *,
        average: AveragedWeights | None = None,
        ranks: Ranks | None = None,
        complete: Callable[[Path], Path] | None = None,
    ) -> list[Path]:
        """Write the trained parts, averaged if there is an average; all ranks must call it, the first writes.

        Wan goes to the folder ``wan_finetune_stepN``, which ``complete`` fills up to a whole model; updates to
        ``lora_stepN.safetensors``, the adapter to ``adapter_stepN.safetensors``. Raises MediaError.
        """
        with averaged(self, average):
            return list(self._write(folder, step, metadata, ranks or Ranks(), complete))

    def _write(
        self,
        folder: Path,
        step: int,
        metadata: Mapping[str, str],
        ranks: Ranks,
        complete: Callable[[Path], Path] | None,
    ) -> Iterator[Path]:
        if "wan" in self.trained:
            path = folder / f"wan_finetune_step{step}"
            save_network(self.dit, path, dtype=torch.float32, metadata=metadata, ranks=ranks)
            if ranks.is_first and complete is not None:
                complete(path)
            yield path
        if "lora" in self.trained:
            path = folder / f"lora_step{step}.safetensors"
            tensors = {name: ranks.whole(tensor).cpu() for name, tensor in lora_tensors(self.dit).items()}
            if ranks.is_first:
                write_file(MemorySource(tensors), path, metadata={"format": "pt", **metadata})
            yield path
        if "adapter" in self.trained:
            path = folder / f"adapter_step{step}.safetensors"
            tensors = {name: ranks.whole(tensor).cpu() for name, tensor in self.adapter.state_dict().items()}
            if ranks.is_first:
                width, in_dim = tensors["proj.1.weight"].shape
                space = self.adapter.context_space
                whole = Pi3FeatureAdapter(in_dim, width, self.adapter.target_tokens, context_space=space)
                whole.load_state_dict(tensors)
                save_adapter(whole, path, dict(metadata))
            yield path
