"""What a request says about poses, the same for the causal network and its teacher."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from wan_core import RequestError
from wan_core.media import VideoGeometry, plain_text
from wan_core.tasks import GenerationRequest

MODES = ("both", "pose_only", "off")
BRANCHES = ("positive", "both")


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
        },
    )

    @property
    def mode(self) -> str:
        """What of the poses takes part."""
        return self.pose_mode or MODES[0]


def length_notes(pose: Path, count: int, geometry: VideoGeometry) -> Iterator[str]:
    """What happens where a motion of ``count`` poses is not as long as the video."""
    name = plain_text(pose)
    if count < geometry.num_frames:
        yield f"{name} has {count} poses for {geometry.num_frames} frames; its last one stays to the end"
    elif count > geometry.num_frames:
        whole = count + (1 - count) % geometry.spec.temporal_stride
        yield f"{name} has {count} poses, the first {geometry.num_frames} are used; --frame-num {whole} takes all"
