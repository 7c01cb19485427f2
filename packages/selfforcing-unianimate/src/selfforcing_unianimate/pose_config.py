"""The dims of the pose encoder, without torch."""

from dataclasses import dataclass

from wan_core import ConfigError


@dataclass(frozen=True, kw_only=True)
class PoseConfig:
    """Dims of the pose encoder; the defaults are the published ones. Raises ConfigError for a size below 1."""

    hidden: int = 16
    token_dim: int = 5120
    reference_channels: int = 20

    def __post_init__(self) -> None:
        if min(self.hidden, self.token_dim, self.reference_channels) < 1:
            raise ConfigError(f"the dims of a pose encoder must be positive, got {self}")
