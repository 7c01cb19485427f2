"""The motion that drives a causal video: skeletons of the whole video, embedded block by block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from selfforcing_unianimate.pose_options import PosedRequest, motion_notes
from selfforcing_unianimate.pose_source import open_pose, skeletons
from selfforcing_unianimate.pose_weights import POSE_PART
from wan_core import RequestError
from wan_core.media import VideoGeometry, plain_text

if TYPE_CHECKING:
    from torch import Tensor

    from wan_core.tasks import Components


@dataclass(frozen=True)
class Motion:
    """Skeletons ``frames`` [1, 3, T, H, W] uint8; ``in_negative``: the negative branch of guidance sees them, too."""

    frames: Tensor
    in_negative: bool

    def tokens(self, components: Components, start: int, stop: int) -> Tensor:
        """Pose tokens [1, f, h*w, C] float32 of latent frames ``start`` to ``stop``, on the device of the run."""
        import torch

        from selfforcing_unianimate.pose_encoder import pose_tokens

        with components.part(POSE_PART.name).active() as encoder, torch.no_grad():
            return pose_tokens(encoder.motion_part(self.frames, start, stop))


def read_motion(request: PosedRequest, geometry: VideoGeometry, fps: float) -> tuple[Motion | None, tuple[str, ...]]:
    """The motion of a request for a video of ``fps``, None without one, and what a user should know about it.

    Raises RequestError for a mode without a motion, MediaError for files that cannot be read.
    """
    if request.pose is None:
        if request.pose_mode in (None, "off") and request.pose_branch is None:
            unused = request.pose_weights_path is not None
            return None, ("--pose-weights-path has no effect without --pose",) * unused
        raise RequestError("a motion is needed: --pose FILE, which 'sfu pose VIDEO' makes, or --pose-mode off alone")
    if request.mode == "off":
        return None, (f"--pose-mode off: {plain_text(request.pose)} has no effect",)
    from selfforcing_unianimate.pose_encoder import MOTION_STRIDE

    source = open_pose(request.pose)
    notes = [*motion_notes(request.pose, source, geometry, fps)]
    if request.pose_mode == "both":
        notes.append(
            "--pose-mode both: this network has no channels for the skeleton of a picture; the motion alone takes part"
        )
    # The encoder makes one token of 16 pixels; of the real network's tokens that is the size of the video itself.
    rows, columns = geometry.token_grid[1:]
    width, height = columns * MOTION_STRIDE, rows * MOTION_STRIDE
    frames = skeletons(source, width, height, geometry.num_frames).frames
    return Motion(frames[None], request.pose_branch != "positive"), tuple(notes)
