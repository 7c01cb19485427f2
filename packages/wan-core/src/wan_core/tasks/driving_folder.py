"""The folder that drives a character: its videos and its reference, checked, and read as far as they are needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from wan_core import media
from wan_core.errors import MediaError, RequestError
from wan_core.files import plain_text

if TYPE_CHECKING:
    from torch import Tensor

POSE, FACE, REFERENCE = "src_pose.mp4", "src_face.mp4", "src_ref.png"
BACKGROUND, MASK = "src_bg.mp4", "src_mask.mp4"

_PREPARE = "'wan prepare-animate'"
_WHOLE = 1e-3  # a rate so near a whole number is that number


@dataclass(frozen=True, kw_only=True)
class Driving:
    """A checked ``folder``: what is in all its videos ``num_frames`` long, of ``width`` x ``height`` pixels (the face
    is a square of its own), at ``fps``. With ``replaces`` it has a background and a mask. ``notes`` are for the user.
    """

    folder: Path
    num_frames: int
    width: int
    height: int
    fps: float
    replaces: bool
    notes: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the files that are read."""
        return _names(self.replaces)

    def open(self, overlap: int) -> DrivingVideos:
        """The videos of the folder, read part by part; each begins with the ``overlap`` last frames of the last."""
        return DrivingVideos(self.folder, overlap)


class DrivingVideos:
    """The videos of a ``folder``, read on from part to part: where parts follow each other a frame is decoded once."""

    def __init__(self, folder: Path, overlap: int) -> None:
        self._folder, self._overlap = folder, overlap
        self._videos: dict[str, media.VideoFrames] = {}

    def frames(self, name: str, indices: Sequence[int]) -> Tensor:
        """The frames of a video at these places, in any order, [N, 3, H, W] uint8. Raises ``MediaError``."""
        import torch

        path, wanted = self._folder / name, sorted(set(indices))
        video = self._videos.setdefault(name, media.VideoFrames(path, kept=self._overlap))
        read = dict(zip(wanted, video.frames(wanted), strict=False))
        if len(read) < len(wanted) or len({frame.shape for frame in read.values()}) > 1:
            raise MediaError(f"{plain_text(path)} is shorter than it was, or changes its frame size; write it again")
        return torch.stack([read[index] for index in indices])


def load_driving(folder: Path, *, replaces: bool) -> Driving:
    """The folder that `wan prepare-animate` writes. Frames are decoded where packets do not tell how many there are.

    Raises ``RequestError`` for files that are missing or do not belong together, ``MediaError`` for unreadable ones.
    """
    _check_names(folder, replaces)
    infos = {name: media.probe_video(folder / name) for name in _names(replaces) if name != REFERENCE}
    pose, face = infos[POSE], infos[FACE]
    for name in (BACKGROUND, MASK):
        info = infos.get(name, pose)
        if (info.width, info.height) != (pose.width, pose.height):
            raise RequestError(
                f"{name} is {info.width}x{info.height}, {POSE} {pose.width}x{pose.height}; both are of one run of "
                f"{_PREPARE}: run it again"
            )
    if face.width != face.height:
        raise RequestError(
            f"the frames of {FACE} must be square, got {face.width}x{face.height}; {_PREPARE} writes them so"
        )
    counts = {name: len(media.frame_times(folder / name)) for name in infos}
    for name, count in counts.items():
        if count != counts[POSE]:
            raise RequestError(
                f"{name} has {count} frames, {POSE} has {counts[POSE]}; all videos of {plain_text(folder)} are of one "
                f"run of {_PREPARE}: run it again"
            )
    whole = round(pose.fps)
    notes = [f"{name} {note}" for name, info in infos.items() for note in info.notes]
    if not replaces and (folder / MASK).is_file():
        notes.append(f"{plain_text(folder)} was prepared for replacement; --replace-flag takes its background and mask")
    return Driving(
        folder=folder,
        num_frames=counts[POSE],
        width=pose.width,
        height=pose.height,
        fps=whole if abs(pose.fps - whole) < _WHOLE else pose.fps,
        replaces=replaces,
        notes=tuple(notes),
    )


def _names(replaces: bool) -> tuple[str, ...]:
    return (POSE, FACE, *((BACKGROUND, MASK) if replaces else ()), REFERENCE)


def _check_names(folder: Path, replaces: bool) -> None:
    shown = plain_text(folder)
    if not folder.is_dir():
        what = "is no folder" if folder.exists() else "is not there"
        raise RequestError(f"{shown} {what}; --src-root-path is the folder that {_PREPARE} wrote")
    missing = [name for name in _names(replaces) if not (folder / name).is_file()]
    if not missing:
        return
    run = "run that with --replace_flag, or leave --replace-flag out here"
    remedy = run if set(missing) <= {BACKGROUND, MASK} else "run that first"
    raise RequestError(f"{shown} has no {', '.join(missing)}, which {_PREPARE} writes; {remedy}")
