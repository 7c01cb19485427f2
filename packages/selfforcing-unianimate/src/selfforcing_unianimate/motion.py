"""The motion that drives a causal video: skeletons that are read and embedded block by block."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from selfforcing_unianimate.pose_options import PosedRequest, motion_notes
from selfforcing_unianimate.pose_source import PoseSource, SkeletonWindow, frame_indices, open_pose
from selfforcing_unianimate.pose_weights import POSE_PART
from wan_core import RequestError
from wan_core.media import VideoGeometry, plain_text

if TYPE_CHECKING:
    from torch import Tensor

    from wan_core.tasks import Components


@dataclass(frozen=True)
class Motion:
    """The pictures ``chosen`` of a source, each for a frame, at a ``size`` (width, height).

    ``reference`` [H, W, 3] uint8 is the skeleton of a picture, None where there is none; ``in_negative``: the negative
    branch of guidance sees the motion, too.
    """

    source: PoseSource = field(repr=False)
    chosen: tuple[int, ...] = field(repr=False)
    size: tuple[int, int]
    reference: Tensor | None = field(compare=False, repr=False)
    in_negative: bool

    def window(self) -> SkeletonWindow:
        """The skeletons from the first on, for one video."""
        return SkeletonWindow(self.source, self.chosen, *self.size)

    def tokens(self, components: Components, window: SkeletonWindow, start: int, stop: int) -> Tensor:
        """Pose tokens [1, f, h*w, C] float32 of latent frames ``start`` to ``stop``, on the device of the run.

        The ``window`` goes on to them. Raises MediaError for skeletons that cannot be read.
        """
        import torch

        from selfforcing_unianimate.pose_encoder import motion_reach, pose_tokens

        reach = motion_reach(start, stop, len(self.chosen))
        frames = window.frames(reach.start, reach.stop)[None]
        with components.part(POSE_PART.name).active() as encoder, torch.no_grad():
            return pose_tokens(encoder.motion_window(frames, start, stop))

    def reference_channels(self, components: Components) -> Tensor:
        """The embedded skeleton of the picture, [1, C, 1, h, w]. Raises ValueError where there is none."""
        import torch

        if self.reference is None:
            raise ValueError("this motion has no skeleton of a picture")
        with components.part(POSE_PART.name).active() as encoder, torch.no_grad():
            embedded: Tensor = encoder.embed_reference(self.reference[None])
        return embedded


def read_motion(request: PosedRequest, geometry: VideoGeometry, fps: float) -> tuple[Motion | None, tuple[str, ...]]:
    """The motion of a request for a video of ``fps``, None without one, and what a user should know about it.

    Raises RequestError for a mode without a motion, MediaError for files that cannot be read, of which the first
    skeleton is.
    """
    if request.pose is None:
        if request.pose_mode in (None, "off") and request.pose_branch is None:
            unused = request.pose_weights_path is not None
            return None, ("--pose-weights-path has no effect without --pose",) * unused
        raise RequestError("a motion is needed: --pose FILE, which 'sfu pose VIDEO' makes, or --pose-mode off alone")
    if request.mode == "off":
        return None, (f"--pose-mode off: {plain_text(request.pose)} has no effect",)
    from selfforcing_unianimate.pose_encoder import MOTION_STRIDE, REFERENCE_STRIDE

    source = open_pose(request.pose)
    # The encoder makes one token of 16 pixels; of the real network's tokens that is the size of the video itself.
    rows, columns = geometry.token_grid[1:]
    motion = Motion(
        source,
        frame_indices(source.num_frames, geometry.num_frames),
        (columns * MOTION_STRIDE, rows * MOTION_STRIDE),
        source.reference(geometry.latent_width * REFERENCE_STRIDE, geometry.latent_height * REFERENCE_STRIDE),
        request.pose_branch != "positive",
    )
    motion.window().frames(0, 1)
    return motion, tuple(motion_notes(request.pose, source, geometry, fps))
