"""Dims of a Wan diffusion transformer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from wan_core.errors import ConfigError

if TYPE_CHECKING:
    from wan_core.models.dit.model import WanDiT

_MAX_DIM = 65536
_MAX_LAYERS = 512


@dataclass(frozen=True, kw_only=True)
class WanDiTConfig:
    """Constructor arguments of a Wan DiT; the defaults are those that a published ``config.json`` leaves out.

    ``image_dim`` is the width of the CLIP states of Wan2.1 image-to-video, ``None`` for a model without that branch.
    Raises ConfigError for dims that cannot work.
    """

    in_dim: int = 16
    out_dim: int = 16
    dim: int = 2048
    ffn_dim: int = 8192
    num_heads: int = 16
    num_layers: int = 32
    freq_dim: int = 256
    text_dim: int = 4096
    text_len: int = 512
    patch_size: tuple[int, int, int] = (1, 2, 2)
    qk_norm: bool = True
    cross_attn_norm: bool = True
    eps: float = 1e-6
    image_dim: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "patch_size", tuple(self.patch_size))  # JSON has lists
        for name in ("in_dim", "out_dim", "dim", "ffn_dim", "num_heads", "freq_dim", "text_dim", "text_len"):
            if not 1 <= getattr(self, name) <= _MAX_DIM:
                raise ConfigError(f"{name} must be 1 to {_MAX_DIM}, got {getattr(self, name)}")
        if not 1 <= self.num_layers <= _MAX_LAYERS:
            raise ConfigError(f"num_layers must be 1 to {_MAX_LAYERS}, got {self.num_layers}")
        if self.dim % self.num_heads or (self.dim // self.num_heads) % 2:
            raise ConfigError(f"dim / num_heads must be a whole even number, got {self.dim} / {self.num_heads}")
        if self.freq_dim % 2:
            raise ConfigError(f"freq_dim must be even, got {self.freq_dim}")
        if len(self.patch_size) != 3 or min(self.patch_size) < 1 or max(self.patch_size) > 16:
            raise ConfigError(f"patch_size must be three numbers from 1 to 16, got {self.patch_size}")

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.dim // self.num_heads

    def build(self) -> WanDiT:
        """The network with random weights, on torch's default device and dtype."""
        from wan_core.models.dit.model import WanDiT

        return WanDiT(self)
