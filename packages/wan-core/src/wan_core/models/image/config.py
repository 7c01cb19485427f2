"""Dims of a CLIP image tower, and the released one as values."""

from dataclasses import dataclass

from wan_core.errors import ConfigError

_ACTIVATIONS = ("gelu", "quick_gelu")


@dataclass(frozen=True, kw_only=True)
class CLIPConfig:
    """Dims of a CLIP vision transformer; the defaults are ViT-H/14. ``image_size`` and ``patch_size`` in pixels.

    Raises ConfigError for dims that cannot work.
    """

    image_size: int = 224
    patch_size: int = 14
    dim: int = 1280
    ffn_dim: int = 5120
    num_heads: int = 16
    num_layers: int = 32
    activation: str = "gelu"
    eps: float = 1e-5

    def __post_init__(self) -> None:
        for name in ("image_size", "patch_size", "dim", "ffn_dim", "num_heads", "num_layers"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.image_size < self.patch_size:
            raise ConfigError(f"image_size must be at least patch_size ({self.patch_size}), got {self.image_size}")
        if self.dim % self.num_heads:
            raise ConfigError(f"dim must be a multiple of num_heads, got {self.dim} and {self.num_heads}")
        if self.activation not in _ACTIVATIONS:
            raise ConfigError(f"activation must be one of {', '.join(_ACTIVATIONS)}, got {self.activation!r}")

    @property
    def num_tokens(self) -> int:
        """Tokens per image: the class token and one per patch."""
        return (self.image_size // self.patch_size) ** 2 + 1


CLIP_VIT_H14 = CLIPConfig()
"""The image tower of the published Wan 2.1 image-to-video models."""
