"""Dims of a UMT5 text encoder, and the released one as values."""

from dataclasses import dataclass, fields

from wan_core.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class UMT5Config:
    """Dims of a UMT5 encoder; the defaults are UMT5-XXL.

    ``dim_attn`` is the width of all heads together, ``dim_ffn`` that of the gated feed-forward.
    ``shared_position_bias`` gives one bias table to all layers (plain T5) instead of one to each (UMT5).
    Raises ConfigError for dims that cannot work.
    """

    vocab_size: int = 256384
    dim: int = 4096
    dim_attn: int = 4096
    dim_ffn: int = 10240
    num_heads: int = 64
    num_layers: int = 24
    num_buckets: int = 32
    max_distance: int = 128
    shared_position_bias: bool = False
    eps: float = 1e-6

    def __post_init__(self) -> None:
        for item in fields(self):
            if item.type is int and getattr(self, item.name) < 1:
                raise ConfigError(f"{item.name} must be at least 1, got {getattr(self, item.name)}")
        if self.dim_attn % self.num_heads:
            raise ConfigError(f"dim_attn must be a multiple of num_heads, got {self.dim_attn} and {self.num_heads}")
        if self.num_buckets % 4:
            raise ConfigError(f"num_buckets must be a multiple of 4, got {self.num_buckets}")
        if self.max_distance <= self.num_buckets // 4:
            raise ConfigError(
                f"max_distance must be above a quarter of num_buckets ({self.num_buckets // 4}), "
                f"got {self.max_distance}"
            )


UMT5_XXL = UMT5Config()
"""The text encoder of every published Wan 2.1 and 2.2 model."""
