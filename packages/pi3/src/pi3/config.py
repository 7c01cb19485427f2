"""Dims of Pi3, of Pi3X and of their image encoder. The defaults are those of the published weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Self

from wan_core import ConfigError

_MAX_DIM = 65_536
_MAX_LAYERS = 512


def _check_counts(owner: object, *names: str, most: int = _MAX_DIM, least: int = 1) -> None:
    for name in names:
        value = getattr(owner, name)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise ConfigError(f"{name} must be a whole number from {least} to {most}, got {value!r}")


def _check_heads(dim: int, num_heads: int, multiple: int, what: str) -> None:
    if dim % (num_heads * multiple):
        raise ConfigError(f"{what} must be a multiple of {multiple} per head, got {dim} for {num_heads} heads")


@dataclass(frozen=True, kw_only=True)
class DinoConfig:
    """A DINOv2 vision transformer; the default is ViT-L/14 with four registers.

    ``image_size`` is the side in pixels of the square that the position embedding was trained for. The published
    variants with registers resize that embedding with antialiasing and no offset, the others the other way round.
    Raises ConfigError for dims that cannot work.
    """

    image_size: int = 518
    patch_size: int = 14
    in_channels: int = 3
    dim: int = 1024
    num_layers: int = 24
    num_heads: int = 16
    mlp_ratio: float = 4.0
    num_registers: int = 4
    layer_scale: bool = True
    interpolate_antialias: bool = True
    interpolate_offset: float = 0.0

    def __post_init__(self) -> None:
        _check_counts(self, "image_size", "patch_size", "in_channels", "dim", "num_heads")
        _check_counts(self, "num_layers", most=_MAX_LAYERS)
        _check_counts(self, "num_registers", least=0)
        _check_heads(self.dim, self.num_heads, 1, "dim")
        if self.image_size % self.patch_size:
            raise ConfigError(f"image_size must be a multiple of patch_size {self.patch_size}, got {self.image_size}")


@dataclass(frozen=True, kw_only=True)
class Pi3Config:
    """A Pi3 network.

    The decoder is as wide as the encoder. ``head_dim`` is the width of the token decoders of points, confidence and
    camera, ``camera_dim`` that of the camera head; ``pixel_limit`` is how many
    pixels its images have at most. Raises ConfigError for dims that cannot work.
    """

    encoder: DinoConfig = field(default_factory=DinoConfig)
    decoder_layers: int = 36
    decoder_heads: int = 16
    num_registers: int = 5
    head_dim: int = 1024
    head_heads: int = 16
    head_layers: int = 5
    camera_dim: int = 512
    mlp_ratio: float = 4.0
    rope_base: float = 100.0
    pixel_limit: int = 255_000

    def __post_init__(self) -> None:
        _check_counts(self, "decoder_heads", "head_dim", "head_heads", "camera_dim")
        _check_counts(self, "decoder_layers", most=_MAX_LAYERS, least=2)
        _check_counts(self, "head_layers", most=_MAX_LAYERS)
        _check_counts(self, "num_registers", least=0)
        _check_counts(self, "pixel_limit", most=2**31)
        if self.decoder_layers % 2:
            raise ConfigError(f"decoder_layers come in pairs (view, all views), got {self.decoder_layers}")
        _check_heads(self.encoder.dim, self.decoder_heads, 4, "encoder.dim")
        _check_heads(self.head_dim, self.head_heads, 4, "head_dim")

    @property
    def patch_size(self) -> int:
        """Pixels per side of a patch."""
        return self.encoder.patch_size

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of :meth:`to_dict`. Raises ConfigError for a name that is none of the fields."""
        known = {entry.name for entry in fields(cls)}
        if unknown := sorted(set(values) - known):
            raise ConfigError(f"{cls.__name__} has no {', '.join(unknown[:3])}; it has {', '.join(sorted(known))}")
        plain: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in values.items()
        }
        if isinstance(plain.get("encoder"), Mapping):
            try:
                plain["encoder"] = DinoConfig(**plain["encoder"])
            except TypeError as error:
                raise ConfigError(f"the encoder's dims are not understood: {error}") from error
        return cls(**plain)


@dataclass(frozen=True, kw_only=True)
class Pi3XConfig(Pi3Config):
    """A Pi3X network: Pi3 with convolutional heads, a metric scale, and optional conditions when ``multimodal``.

    ``inject_after`` are the decoder blocks after which given poses enter; they attend over all views, so the indices
    are odd. ``upsample_dims`` are the widths of the doublings of the convolutional heads.
    """

    upsample_dims: tuple[int, ...] = (256, 128, 64)
    metric_dim: int = 512
    metric_heads: int = 8
    metric_layers: int = 5
    inject_after: tuple[int, ...] = (1, 9, 17, 25, 33)
    multimodal: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_counts(self, "metric_dim", "metric_heads")
        _check_counts(self, "metric_layers", most=_MAX_LAYERS)
        _check_heads(self.metric_dim, self.metric_heads, 4, "metric_dim")
        if self.multimodal:
            _check_heads(self.encoder.dim, self.decoder_heads, 8, "encoder.dim")
        if not self.upsample_dims or any(2 * width % max(1, width // 16) for width in self.upsample_dims):
            raise ConfigError(f"upsample_dims must be multiples of 16, got {self.upsample_dims}")
        if any(index % 2 == 0 or not 0 <= index < self.decoder_layers for index in self.inject_after):
            raise ConfigError(f"inject_after must be odd and below {self.decoder_layers}, got {self.inject_after}")
