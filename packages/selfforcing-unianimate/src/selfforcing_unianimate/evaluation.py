"""One clip against its pose: files in, metrics out, and a report of many."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from selfforcing_unianimate.evaluation_cases import POSE_ENDING, Case
from selfforcing_unianimate.frame_blocks import FrameBlocks
from selfforcing_unianimate.metrics.clip import METRICS, Value, evaluate_clip
from selfforcing_unianimate.metrics.keypoints import Frames, KeypointDetector, Keypoints, body_keypoints
from selfforcing_unianimate.pose_file import PoseFile, read_pose_file
from selfforcing_unianimate.pose_source import frame_indices
from wan_core import MediaError, RequestError, WanError
from wan_core.files import existing_file, hash_file, plain_text
from wan_core.metrics import OpticalFlow, interval

if TYPE_CHECKING:
    from selfforcing_unianimate.detection import PoseDetector
    from wan_core.media import Provenance

FORMAT = "sfu-evaluate/1"
_MOST_BYTES = 4 << 30
_STRIDE = 4
"""Frames of a latent frame after the first, which is one frame."""

Progress = Callable[[Iterable[Any], str], Iterable[Any]]
Log = Callable[[str], None]


@dataclass(frozen=True)
class ClipReport:
    """The metrics of a case, the facts of its video and the SHA-256 of each of its files by role."""

    case: Case
    frames: int
    width: int
    height: int
    block: int | None
    hashes: Mapping[str, str]
    values: Mapping[str, Value]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        named = {name: str(path) for name in _ROLES if (path := getattr(self.case, name)) is not None}
        return {
            **named,
            "sha256": dict(self.hashes),
            "frames": self.frames,
            "size": [self.width, self.height],
            "block": self.block,
            "values": dict(self.values),
        }


_ROLES = ("video", "pose", "detected", "target")


class WholeBody:
    """The detectors of 'sfu pose' as a :class:`KeypointDetector`."""

    def __init__(self, detector: PoseDetector, progress: Progress = lambda steps, phase: steps) -> None:
        self._detector, self._progress = detector, progress

    def keypoints(self, frames: Frames) -> Keypoints:
        """The body in every frame; one without a person has no joint that is seen."""
        poses = self._detector.poses_or_none(self._progress(frames, "poses"))
        return body_keypoints(poses, frames.shape[2], frames.shape[1])


@dataclass(frozen=True)
class Evaluator:
    """What measures cases: a ``detector``, None where all poses are detected or none is asked for, and a ``flow``.

    ``block`` holds for cases that name none, ``log`` takes sentences for the user.
    """

    detector: KeypointDetector | None
    flow: OpticalFlow
    block: int | None = None
    log: Log = lambda text: None

    def __call__(self, case: Case) -> ClipReport:
        """Measure a case. Raises RequestError or MediaError, with its name, for files that do not fit together."""
        try:
            return self._measured(case)
        except WanError as error:
            text = str(error)
            raise error if case.video.name in text else type(error)(f"{case.name}: {text}") from error

    def _measured(self, case: Case) -> ClipReport:
        frames = read_frames(case.video)
        count, height, width = frames.shape[:3]
        truth = None if case.target is None else _wanted(case.target, frames, case.name)
        record = _record(case.video)
        target = found = None
        if case.pose is not None:
            self._note_motion(record, case.pose, case.name)
            target = self._target(case.pose, count, width, height)
            found = self._found(case, frames)
        blocks = _blocks_of(record, case.block or self.block)
        starts = () if blocks is None else block_starts(blocks, count)
        values = evaluate_clip(frames, target, found, truth=truth, block_starts=starts, flow=self.flow)
        hashes = {name: hash_file(path) for name in _ROLES if (path := getattr(case, name)) is not None}
        return ClipReport(case, count, width, height, None if blocks is None else blocks.size, hashes, values)

    def _note_motion(self, record: Provenance | None, pose: Path, name: str) -> None:
        """Say where a video was driven by another motion, by its record."""
        driven_by = None if record is None else record.settings.get("pose")
        if isinstance(driven_by, str) and driven_by != pose.name:
            self.log(f"note: {name} says that it was driven by {driven_by}, and is compared with {plain_text(pose)}")

    def _target(self, pose: Path, count: int, width: int, height: int) -> Keypoints:
        """The wanted pose of every frame, chosen as 'sfu infer' chooses it."""
        poses, name = read_pose(pose).driving, plain_text(pose)
        if len(poses) < count:
            self.log(f"note: {name} has {len(poses)} poses for {count} frames; its last one stays to the end")
        elif len(poses) > count:
            self.log(f"note: {name} has {len(poses)} poses, the first {count} are compared")
        return body_keypoints(poses, width, height)[list(frame_indices(len(poses), count))]

    def _found(self, case: Case, frames: Frames) -> Keypoints:
        count, height, width = frames.shape[:3]
        if case.detected is None:
            if self.detector is None:
                raise RequestError("there is no detector to find the person with; give detected poses")
            return self.detector.keypoints(frames)
        poses = read_detected(case.detected).driving
        if len(poses) != count:
            raise RequestError(
                f"{plain_text(case.detected)} has {len(poses)} poses and {case.name} {count} frames; make it of the "
                f"whole video: 'sfu pose {plain_text(case.video.name)}'"
            )
        return body_keypoints(poses, width, height)


def read_frames(path: Path) -> Frames:
    """A whole video [T, H, W, 3]. Raises RequestError for one of more than 4 GiB, MediaError for a damaged one."""
    from wan_core.media import stream_video

    frames: list[Frames] = []
    for frame in stream_video(path):
        if frames and frame.shape[1:] != frames[0].shape[:2]:
            raise MediaError(f"video {plain_text(path)} changes its frame size midway; encode it again at one size")
        frames.append(frame.permute(1, 2, 0).numpy())
        if len(frames) * frames[0].nbytes > _MOST_BYTES:
            raise RequestError(f"video {plain_text(path)} takes more than {_MOST_BYTES >> 30} GiB of memory; cut it")
    return np.stack(frames)


def read_pose(path: Path) -> PoseFile:
    """A pose file. Raises RequestError for none, or a motion without coordinates, MediaError for a damaged file."""
    file = existing_file(path, "pose")
    if file.suffix.lower() != POSE_ENDING:
        raise RequestError(f"pose {plain_text(path)} is no .npz of 'sfu pose'; drawn skeletons have no coordinates")
    return read_pose_file(file)


def read_detected(path: Path) -> PoseFile:
    """Poses of a generated video as they were found. Raises RequestError for aligned ones, MediaError."""
    found = read_pose(path)
    if found.alignment != "none":
        raise RequestError(
            f"{plain_text(path)} holds poses that were aligned to a reference, not those of the video; make it with "
            "'sfu pose VIDEO' and no --reference"
        )
    return found


def check_case(case: Case, *, needs_pose: bool) -> None:
    """Look into every file of a case without decoding a video. Raises RequestError or MediaError."""
    from wan_core.media import probe_video

    video = probe_video(case.video)
    if needs_pose and case.pose is None:
        raise RequestError(f"{case.name} has no pose to be compared with; give --pose, or --no-pose for the others")
    if case.pose is not None:
        read_pose(case.pose)
    if case.detected is not None:
        read_detected(case.detected)
    if case.target is not None:
        target = probe_video(case.target)
        # How many frames there are is only known when they are read.
        if (target.width, target.height) != (video.width, video.height):
            sizes = (f"is of {each.width}x{each.height}" for each in (target, video))
            raise _unlike(case.target, case.name, *sizes)


def _wanted(path: Path, frames: Frames, name: str) -> Frames:
    truth = read_frames(path)
    if truth.shape != frames.shape:
        shapes = (f"has {each.shape[0]} frames of {each.shape[2]}x{each.shape[1]}" for each in (truth, frames))
        raise _unlike(path, name, *shapes)
    return truth


def _unlike(path: Path, name: str, target: str, video: str) -> RequestError:
    return RequestError(
        f"target {plain_text(path)} {target} and {name} {video}; frames are compared one by one, so both must be alike"
    )


def _record(video: Path) -> Provenance | None:
    """How a video says that it was made; None for one of another program."""
    from wan_core.media import read_provenance

    try:
        return read_provenance(video)
    except MediaError:
        return None


def _blocks_of(record: Provenance | None, size: int | None) -> FrameBlocks | None:
    """How a video was taken apart: by ``size``, else as its record says; None where neither does.

    A record may be a stranger's. That the first frame is a block of its own is of the record in both cases.
    """
    said = None if record is None else record.settings.get("blocks")
    blocks = said if isinstance(said, Mapping) else {}
    stored = blocks.get("size")
    if size is None and isinstance(stored, int) and stored >= 1:
        size = stored
    return None if size is None else FrameBlocks(size=size, first_alone=blocks.get("first_alone") is True)


def block_starts(blocks: FrameBlocks, num_frames: int) -> tuple[int, ...]:
    """The frames at which blocks of latent frames begin: a latent frame is four frames, the first one a single."""
    latent_frames = 1 + -(-(num_frames - 1) // _STRIDE)
    return tuple(max(0, _STRIDE * start - _STRIDE + 1) for start, _ in blocks.spans(latent_frames))


def summary(clips: Sequence[ClipReport], seed: int) -> dict[str, dict[str, Any]]:
    """Mean and interval over clips of every metric that one of them has, in the order of METRICS.

    A metric that could not be measured in any clip has no mean: None, of 0 clips.
    """
    found: dict[str, dict[str, Any]] = {}
    for name in METRICS:
        if any(name in clip.values for clip in clips):
            over = interval((clip.values.get(name) for clip in clips), seed=seed)
            found[name] = {"mean": None, "low": None, "high": None, "count": 0} if over is None else asdict(over)
    return found


def report(
    clips: Sequence[ClipReport], left_out: Sequence[WanError], provenance: Provenance, *, seed: int
) -> dict[str, Any]:
    """Everything as plain JSON values: how it was made, the metrics, means with intervals, the clips, and those left
    out."""
    means = summary(clips, seed)
    return {
        "format": FORMAT,
        "provenance": json.loads(provenance.to_json()),
        "metrics": {name: asdict(METRICS[name]) for name in means},
        "summary": means,
        "clips": [clip.to_json() for clip in clips],
        "left_out": [plain_text(error) for error in left_out],
    }
