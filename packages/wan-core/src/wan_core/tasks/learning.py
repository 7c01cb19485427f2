"""What a task gets to learn from, and what it trains beside the transformer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from wan_core.media import LatentSpec, VideoGeometry

if TYPE_CHECKING:
    from torch import Tensor, nn

DROPPED = "dropped"
"""In a training batch: the samples [B], bool, whose conditions are left out; see `Task.condition_dropout`."""


@dataclass(frozen=True, kw_only=True)
class ExampleFiles:
    """The files of an example that its task needs besides the clip, by the names in `Task.example_files`.

    The clip begins at second ``start`` of its video and has ``fps`` frames a second. ``picture`` is the width and
    height of the image that it starts from, before it was cut to the clip's; None where that is the first frame.
    """

    paths: Mapping[str, Path]
    start: float
    fps: float
    picture: tuple[int, int] | None = None


@dataclass(frozen=True, kw_only=True)
class TrainingClip:
    """A video to learn from: ``frames`` [3, F, H, W] and its first ``image`` [3, H, W], both in [-1, 1].

    With ``each_image`` the image that begins each latent frame is to be encoded on its own, too.
    """

    frames: Tensor
    image: Tensor
    each_image: bool = False
    beside: ExampleFiles | None = None

    def geometry(self, latent_spec: LatentSpec) -> VideoGeometry:
        """The sizes of the clip."""
        frames, height, width = self.frames.shape[1:]
        return VideoGeometry.for_video(latent_spec, num_frames=frames, height=height, width=width)


@dataclass(frozen=True, kw_only=True)
class Companion:
    """A network that is trained beside the transformer, and what its file says besides its weights."""

    network: nn.Module
    metadata: Mapping[str, str] = field(default_factory=dict)
