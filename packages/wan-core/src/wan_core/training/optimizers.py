"""Optimizers by name."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor, nn

from wan_core.errors import BackendError
from wan_core.training.muon import Muon

_BETAS = (0.9, 0.95)


def build_optimizers(
    model: nn.Module, name: str, rate: float, *, weight_decay: float = 0.0, betas: tuple[float, float] = _BETAS
) -> list[torch.optim.Optimizer]:
    """Optimizers for the trainable weights of ``model``.

    ``adamw`` is torch's fused one, ``adamw8bit`` that of bitsandbytes (Dettmers et al. 2022) with 8-bit state, ``muon``
    takes ``rate`` for the matrices inside blocks and leaves the rest to AdamW at a tenth of it. ``betas``
    are those of AdamW. Raises BackendError when bitsandbytes is missing.
    """
    trained: dict[str, Tensor] = {key: value for key, value in model.named_parameters() if value.requires_grad}
    if name == "muon":
        matrices = [value for key, value in trained.items() if value.ndim == 2 and _is_inside(key)]
        rest = [value for key, value in trained.items() if value.ndim != 2 or not _is_inside(key)]
        muon: list[torch.optim.Optimizer] = [Muon(matrices, lr=rate, weight_decay=weight_decay)] if matrices else []
        return [*muon, *([_adamw(rest, rate / 10, weight_decay, betas)] if rest else [])]
    if name == "adamw8bit":
        return [_adamw8bit(list(trained.values()), rate, weight_decay, betas)]
    return [_adamw(list(trained.values()), rate, weight_decay, betas)]


def require_optimizer(name: str, world: int = 1) -> None:
    """Check that an optimizer can be had here, for weights divided among ``world`` processes. Raises BackendError."""
    if name != "adamw8bit":
        return
    if world > 1:
        raise BackendError(
            f"the optimizer adamw8bit cannot work on weights that {world} processes share; use adamw, whose state is "
            "divided among them, or one process"
        )
    _bitsandbytes()


def _is_inside(name: str) -> bool:
    """Whether a weight belongs to a block's layer; the modulation tables there are no matrices that mix channels."""
    return ".blocks." in f".{name}" and not name.endswith("modulation")


def _adamw(
    weights: list[Tensor], rate: float, weight_decay: float, betas: tuple[float, float]
) -> torch.optim.Optimizer:
    return torch.optim.AdamW(weights, lr=rate, betas=betas, weight_decay=weight_decay, fused=True)


def _adamw8bit(
    weights: list[Tensor], rate: float, weight_decay: float, betas: tuple[float, float]
) -> torch.optim.Optimizer:
    library = _bitsandbytes()
    optimizer: torch.optim.Optimizer = library.optim.AdamW8bit(weights, lr=rate, betas=betas, weight_decay=weight_decay)
    return optimizer


def _bitsandbytes() -> Any:
    try:
        return importlib.import_module("bitsandbytes")
    except ImportError as error:
        raise BackendError(
            "the optimizer adamw8bit needs bitsandbytes, which is not installed; "
            "install 'wan-core[train]' or use --optimizer adamw"
        ) from error
