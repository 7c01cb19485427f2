"""Dims of a causal transformer."""

from dataclasses import dataclass

from wan_core import ConfigError
from wan_core.models import WanDiTConfig

POSE_DIM = 5120
"""Width of UniAnimate's pose tokens, the width of the 14B transformer that they were trained with."""


@dataclass(frozen=True, kw_only=True)
class CausalDiTConfig(WanDiTConfig):
    """Dims of a causal transformer; ``pose_dim`` is the width of the pose tokens that it takes."""

    pose_dim: int = POSE_DIM

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.patch_size[0] != 1:
            raise ConfigError(f"a causal network takes latent frames one by one, got patch_size {self.patch_size}")
        if type(self.pose_dim) is not int or not 1 <= self.pose_dim <= 65536:
            raise ConfigError(f"pose_dim must be a whole number from 1 to 65536, got {self.pose_dim!r}")
