"""Pictures, videos and their geometry."""

from wan_core.media.geometry import (
    FrameSize,
    LatentSpec,
    VideoGeometry,
    best_output_size,
    latent_grid_for_area,
    parse_size,
)

__all__ = [
    "FrameSize",
    "LatentSpec",
    "VideoGeometry",
    "best_output_size",
    "latent_grid_for_area",
    "parse_size",
]
