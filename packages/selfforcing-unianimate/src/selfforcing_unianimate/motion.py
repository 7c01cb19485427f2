"""The motion that drives a causal video: skeletons of the whole video, embedded block by block."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from selfforcing_unianimate.pose_options import PosedRequest, motion_notes
from selfforcing_unianimate.pose_source import open_pose, skeletons
from wan_core import CheckpointError, RequestError
from wan_core.files import existing_file
from wan_core.media import VideoGeometry, plain_text

if TYPE_CHECKING:
    from torch import Tensor

    from selfforcing_unianimate.pose_encoder import PoseEncoder
    from wan_core.tasks import Components


@dataclass(frozen=True)
class Motion:
    """Skeletons ``frames`` [1, 3, T, H, W] uint8 and the file of the pose encoder, which is read when it is needed.

    ``in_negative``: the negative branch of guidance sees them, too.
    """

    frames: Tensor
    weights: Path
    in_negative: bool

    def tokens(self, components: Components, start: int, stop: int) -> Tensor:
        """Pose tokens [1, f, h*w, C] float32 of latent frames ``start`` to ``stop``, on the device of the run.

        Raises CheckpointError for weights that do not fit the network.
        """
        import torch

        from selfforcing_unianimate.pose_encoder import pose_tokens

        encoder = components.once("pose_encoder", self.weights, lambda: _encoder(self.weights, components))
        with torch.no_grad():
            return pose_tokens(encoder.motion_part(self.frames, start, stop))


def read_motion(request: PosedRequest, geometry: VideoGeometry, fps: float) -> tuple[Motion | None, tuple[str, ...]]:
    """The motion of a request for a video of ``fps``, None without one, and what a user should know about it.

    Raises RequestError for a mode without a motion, or a motion without weights of the pose encoder, MediaError for
    files that cannot be read.
    """
    if request.pose is None:
        if request.pose_mode in (None, "off") and request.pose_branch is None:
            unused = request.pose_weights_path is not None
            return None, ("--pose-weights-path has no effect without --pose",) * unused
        raise RequestError("a motion is needed: --pose FILE, which 'sfu pose VIDEO' makes, or --pose-mode off alone")
    if request.mode == "off":
        return None, (f"--pose-mode off: {plain_text(request.pose)} has no effect",)
    if request.pose_weights_path is None:
        raise RequestError(
            "a motion needs the pose encoder: --pose-weights-path FILE; 'sfu download --only unianimate' fetches it"
        )
    weights = existing_file(request.pose_weights_path, "file of pose weights")
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
    return Motion(frames[None], weights, request.pose_branch != "positive"), tuple(notes)


def _encoder(path: Path, components: Components) -> PoseEncoder:
    from selfforcing_unianimate.pose_weights import STACKS, load_pose_encoder

    encoder, missing = load_pose_encoder(path, strict=False, device=components.device)
    if any(name.startswith(STACKS[0]) for name in missing):
        raise CheckpointError(f"{plain_text(path)} has no {STACKS[0]}, which embeds the motion")
    made, taken = encoder.config.token_dim, components.configs["dit"].pose_dim
    if made != taken:
        raise CheckpointError(f"{plain_text(path)} makes pose tokens of width {made}, this network takes {taken}")
    return encoder
