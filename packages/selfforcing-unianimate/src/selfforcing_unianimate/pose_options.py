"""What a request says about poses, the same for the causal network and its teacher."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from selfforcing_unianimate.pose_weights import POSE_PART
from wan_core import RequestError
from wan_core.media import VideoGeometry, plain_text
from wan_core.tasks import GenerationRequest

if TYPE_CHECKING:
    from selfforcing_unianimate.pose_source import PoseSource

MODES = ("both", "pose_only", "off")
BRANCHES = ("positive", "both")
SAME_SPEED = 0.02
"""Rates that differ by less are taken as one: 29.97 is 30."""


def _one_of(known: tuple[str, ...], text: str) -> str:
    if text not in known:
        raise RequestError(f"it is one of {', '.join(known)}, got {text!r}")
    return text


def parse_mode(text: str) -> str:
    """Read which poses take part. Raises RequestError."""
    return _one_of(MODES, text)


def parse_branch(text: str) -> str:
    """Read which branches of guidance the motion goes to. Raises RequestError."""
    return _one_of(BRANCHES, text)


@dataclass(frozen=True, kw_only=True)
class PosedRequest(GenerationRequest):
    """A request with the poses of a motion.

    ``pose`` is what ``open_pose`` opens. ``pose_mode``: ``both`` the motion and the picture's skeleton, ``pose_only``
    the motion alone, ``off`` neither. ``pose_branch``: the motion goes to the ``positive`` branch alone, so that
    guidance amplifies it as it does the text, or to ``both``.
    """

    pose: Path | None = field(
        default=None,
        metadata={"option": ("--pose",), "help": "The motion: .npz of 'sfu pose', or a clip or folder of skeletons."},
    )
    pose_mode: str | None = field(
        default=None,
        metadata={
            "option": ("--pose-mode",),
            "parse": parse_mode,
            "metavar": "|".join(MODES),
            "help": "Motion and the picture's skeleton (default), the motion alone, or neither.",
        },
    )
    pose_branch: str | None = field(
        default=None,
        metadata={
            "option": ("--pose-branch",),
            "parse": parse_branch,
            "metavar": "|".join(BRANCHES),
            "help": "Branches of guidance that see the motion.",
        },
    )
    pose_weights_path: Path | None = field(
        default=None,
        metadata={
            "option": ("--pose-weights-path",),
            "help": "Weights of the pose encoder, such as UniAnimate's .ckpt.",
            "part": POSE_PART.name,
            "recorded": False,
        },
    )

    @property
    def mode(self) -> str:
        """What of the poses takes part."""
        return self.pose_mode or MODES[0]


NOT_RELATED = "--pose-mode pose_only: the picture's skeleton is left out, so the motion is not related to the picture"
"""A note on a picture that is moved by a motion alone."""


def no_reference(request: PosedRequest) -> RequestError:
    """What to say where a picture is to be moved and its skeleton is not there."""
    return RequestError(
        f"{plain_text(request.pose)} has no skeleton of the picture; make it with 'sfu pose VIDEO --reference "
        "PICTURE', or take --pose-mode pose_only"
    )


def motion_notes(pose: Path, source: PoseSource, geometry: VideoGeometry, fps: float) -> Iterator[str]:
    """What happens where a motion is not as long, or not as fast, as the video of ``fps`` frames a second."""
    name, count = plain_text(pose), source.num_frames
    if count < geometry.num_frames:
        yield f"{name} has {count} poses for {geometry.num_frames} frames; its last one stays to the end"
    elif count > geometry.num_frames:
        whole = count + (1 - count) % geometry.spec.temporal_stride
        yield f"{name} has {count} poses, the first {geometry.num_frames} are used; --frame-num {whole} takes all"
    if source.fps is not None and abs(source.fps / fps - 1) > SAME_SPEED:
        yield (
            f"{name} has {source.fps:g} poses a second and the video {fps:g} frames: each pose is a frame, so the "
            f"motion is {fps / source.fps:.2g} times as fast; 'sfu pose --fps {fps:g}' keeps its speed"
        )
