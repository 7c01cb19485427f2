"""Dims of BindWeave's transformer."""

from dataclasses import dataclass

from wan_core import ConfigError
from wan_core.models import WanDiTConfig

MLLM_DIM = 3584
"""Width of the hidden states of Qwen2.5-VL 7B."""


@dataclass(frozen=True, kw_only=True)
class ConnectorConfig:
    """Dims of a connector alone: from states of width ``dim`` to text states of width ``text_dim``."""

    dim: int = MLLM_DIM
    text_dim: int = 4096


@dataclass(frozen=True, kw_only=True)
class BindWeaveConfig(WanDiTConfig):
    """Dims of a Wan image-to-video transformer that also reads a language model's states of width ``mllm_dim``.

    It was trained with ``num_references`` frames in front of the video, and with the CLIP tokens of the first of them
    alone (``image_tokens``) in the image branch. Without an ``mllm_dim`` it has no connector of its own, and takes
    states that one beside it has brought to the width of text.
    """

    in_dim: int = 36
    image_dim: int | None = 1280
    mllm_dim: int | None = MLLM_DIM
    num_references: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("mllm_dim", "num_references"):
            value = getattr(self, name)
            is_absent = name == "mllm_dim" and value is None
            if not is_absent and (type(value) is not int or not 1 <= value <= 65536):
                raise ConfigError(f"{name} must be a whole number from 1 to 65536, got {value!r}")
        if self.patch_size[0] != 1:
            raise ConfigError(f"reference frames are patches of their own, got patch_size {self.patch_size}")
        if self.image_dim is None:
            raise ConfigError("BindWeave has an image branch: image_dim is the width of its CLIP states")
