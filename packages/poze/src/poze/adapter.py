"""The adapter between Pi3 and Wan: patch tokens pooled to a small grid and projected to the transformer's width."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from wan_core import CheckpointError, ConfigError
from wan_core.checkpoints import MemorySource, read_weights, write_file


class Pi3FeatureAdapter(nn.Module):
    """Patch tokens [B, h * w, ``in_dim``] to guidance tokens [B, K, ``out_dim``]; K is ``num_tokens``.

    K is the product of side = floor(sqrt(``target_tokens``)) and floor(``target_tokens`` / side). The last layer starts
    at zero, so an untrained adapter is silent. ``context_space`` says where its tokens join: behind the embedded text
    (``dit``: ``out_dim`` is the transformer's width) or before the text embedding (``text``: the width of text states).
    ``seed`` makes the first weights the same every time, by default they follow torch's generator; ``zero_last=False``
    gives the last layer PyTorch's own start, as in the reference. Raises ConfigError for sizes below 1.
    """

    float32_modules: ClassVar[tuple[str, ...]] = ("proj",)

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        target_tokens: int = 64,
        *,
        context_space: str = "dit",
        seed: int | None = None,
        zero_last: bool = True,
    ) -> None:
        super().__init__()
        if min(in_dim, out_dim, target_tokens) < 1:
            raise ConfigError(f"an adapter needs positive sizes, got {in_dim}, {out_dim} and {target_tokens} tokens")
        side = max(1, math.isqrt(target_tokens))
        self.in_dim = in_dim
        self.target_tokens = target_tokens
        self.context_space = context_space
        self.pooled = (side, max(1, target_tokens // side))
        with torch.random.fork_rng(devices=[], enabled=seed is not None):
            if seed is not None:
                torch.manual_seed(seed)
            last = nn.Linear(out_dim, out_dim)
            self.proj = nn.Sequential(nn.LayerNorm(in_dim), nn.Linear(in_dim, out_dim), nn.GELU(), last)
        if zero_last:
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    @property
    def num_tokens(self) -> int:
        """The true number of guidance tokens."""
        return self.pooled[0] * self.pooled[1]

    @property
    def description(self) -> dict[str, str]:
        """What a file of the adapter says besides its weights, for :func:`load_adapter` and people."""
        config = {
            "target_tokens": self.target_tokens,
            "num_tokens": self.num_tokens,
            "context_space": self.context_space,
        }
        return {"config": json.dumps(config)}

    def forward(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """Guidance tokens of the patch tokens of a grid of (rows, columns); further tokens are left out.

        Raises ConfigError for tokens of another width, or fewer than the grid has.
        """
        if tokens.shape[1] < grid[0] * grid[1] or tokens.shape[2] != self.in_dim:
            raise ConfigError(
                f"the adapter takes [B, {grid[0] * grid[1]}, {self.in_dim}] for {grid[0]} x {grid[1]} patches, "
                f"got {list(tokens.shape)}"
            )
        image = torch.unflatten(tokens[:, : grid[0] * grid[1]].transpose(1, 2), 2, grid)
        pooled = functional.adaptive_avg_pool2d(image, self.pooled)
        guidance: Tensor = self.proj(pooled.flatten(2).transpose(1, 2))
        return guidance


def save_adapter(adapter: Pi3FeatureAdapter, path: Path, metadata: dict[str, str] | None = None) -> Path:
    """Write an adapter to safetensors in one step, with what :func:`load_adapter` needs and the true token count.

    ``metadata`` adds strings: the Pi3 it was trained for, the settings. Raises MediaError when the disk refuses.
    """
    extra = {**adapter.description, **(metadata or {})}
    write_file(MemorySource(adapter.state_dict()), path, metadata={"format": "pt", **extra})
    return path


def load_adapter(path: Path) -> Pi3FeatureAdapter:
    """Read what :func:`save_adapter` wrote. Raises CheckpointError for a file of another content."""
    source = read_weights(path)
    if "proj.1.weight" not in source:
        raise CheckpointError(f"{path} is no adapter: it has no proj.1.weight")
    try:
        config = json.loads(source.metadata.get("config", "{}"))
        out_dim, in_dim = source.info("proj.1.weight").shape
        target, space = int(config.get("target_tokens", 64)), str(config.get("context_space", "dit"))
        adapter = Pi3FeatureAdapter(in_dim, out_dim, target, context_space=space)
        adapter.load_state_dict({name: source.read(name).float() for name in source})
    except (ValueError, TypeError, AttributeError, RuntimeError, ConfigError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"{path} is no adapter of Pi3 features: {reason}") from error
    return adapter
