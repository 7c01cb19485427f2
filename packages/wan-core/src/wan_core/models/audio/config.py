"""Dims of a wav2vec2 speech encoder, and the released one as values."""

from dataclasses import dataclass

from wan_core.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Wav2Vec2Config:
    """Dims of a wav2vec2 encoder with layer norms before its blocks; the defaults are those of large-xlsr-53.

    ``conv_dims``, ``conv_kernels`` and ``conv_strides`` are of the convolutions that take samples to states,
    ``position_kernel`` and ``position_groups`` of the one that tells positions. Raises ConfigError for dims that cannot
    work.
    """

    dim: int = 1024
    ffn_dim: int = 4096
    num_heads: int = 16
    num_layers: int = 24
    conv_dims: tuple[int, ...] = (512,) * 7
    conv_kernels: tuple[int, ...] = (10, 3, 3, 3, 3, 2, 2)
    conv_strides: tuple[int, ...] = (5, 2, 2, 2, 2, 2, 2)
    conv_bias: bool = True
    position_kernel: int = 128
    position_groups: int = 16
    eps: float = 1e-5

    def __post_init__(self) -> None:
        for name in ("conv_dims", "conv_kernels", "conv_strides"):
            object.__setattr__(self, name, tuple(getattr(self, name)))  # JSON has lists
            if len(getattr(self, name)) != len(self.conv_dims) or min(getattr(self, name), default=0) < 1:
                raise ConfigError(f"{name} must be one number for each convolution, got {list(getattr(self, name))}")
        for name in ("dim", "ffn_dim", "num_heads", "num_layers", "position_kernel", "position_groups"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("num_heads", "position_groups"):
            if self.dim % getattr(self, name):
                raise ConfigError(f"dim must be a multiple of {name}, got {self.dim} and {getattr(self, name)}")

    @property
    def states(self) -> int:
        """How many states there are of each moment: that before the blocks and one after each."""
        return self.num_layers + 1

    def num_moments(self, num_samples: int) -> int:
        """How many moments the states of so many samples have, 0 for too few; 50 a second of 16 kHz."""
        for kernel, stride in zip(self.conv_kernels, self.conv_strides, strict=True):
            num_samples = max(0, (num_samples - kernel) // stride + 1)
        return num_samples


WAV2VEC2_LARGE_XLSR_53 = Wav2Vec2Config()
"""The speech encoder of Wan2.2 S2V, published as wav2vec2-large-xlsr-53-english."""
