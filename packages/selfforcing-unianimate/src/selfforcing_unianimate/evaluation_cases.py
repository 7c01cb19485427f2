"""What 'sfu evaluate' compares: videos with their poses, named one by one, by a list or by a folder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wan_core import RequestError, WanError
from wan_core.files import VIDEO_ENDINGS, folder_files, plain_text

POSE_ENDING = ".npz"
COLUMNS: Mapping[str, tuple[str, ...]] = {
    "video": ("video", "file", "file_name", "video_path"),
    "pose": ("pose",),
    "detected": ("detected",),
    "target": ("target", "reference_video"),
    "block": ("block",),
}
"""Of a list: our name, and the names that are read as it."""

_MOST_SHOWN = 20


@dataclass(frozen=True, kw_only=True)
class Case:
    """A ``video``, the ``pose`` that it should follow, its ``detected`` poses if they are known, the ``target`` that it
    should look like, and its latent frames per ``block``; all but the video None where they are not given."""

    video: Path
    pose: Path | None = None
    detected: Path | None = None
    target: Path | None = None
    block: int | None = None

    @property
    def name(self) -> str:
        """For people."""
        return plain_text(self.video)

    @property
    def files(self) -> tuple[Path, ...]:
        """Everything that is read."""
        return tuple(each for each in (self.video, self.pose, self.detected, self.target) if each is not None)


def named_cases(
    videos: Sequence[Path], *, poses: Sequence[Path], detected: Sequence[Path], targets: Sequence[Path]
) -> list[Case]:
    """The cases of a command line: a folder stands for its videos, each with the ``.npz`` of its name as the pose.

    One pose is that of all videos, several are one for each; detected poses and targets are one for each. Raises
    RequestError for other numbers, and a folder without a video.
    """
    found: list[tuple[Path, Path | None]] = []
    for each in videos:
        if each.is_dir():
            inside = folder_files(each, VIDEO_ENDINGS)
            if not inside:
                raise RequestError(f"folder {plain_text(each)} holds no video, such as 0001.mp4")
            found += [(video, video.with_suffix(POSE_ENDING)) for video in inside]
        else:
            found.append((each, None))
    count = len(found)
    for what, given in (("--detected", detected), ("--target", targets)):
        if given and len(given) != count:
            raise RequestError(
                f"there are {count} videos and {len(given)} of {what}; give one for each, in their order"
            )
    if len(poses) > 1 and len(poses) != count:
        raise RequestError(f"there are {count} videos and {len(poses)} of --pose; give one for all, or one for each")
    return [
        Case(
            video=video,
            pose=poses[index if len(poses) > 1 else 0] if poses else beside,
            detected=detected[index] if detected else None,
            target=targets[index] if targets else None,
        )
        for index, (video, beside) in enumerate(found)
    ]


def listed_cases(table: Path) -> Iterator[Case | WanError]:
    """The cases of a CSV, JSON or JSON-lines table with the columns of COLUMNS, or why a line is none.

    Names of files are from the folder of the table on. Raises RequestError for what is no such table.
    """
    from wan_core.training import read_rows

    for number, row in read_rows(table):
        place = f"{plain_text(table.name)}, line {number}"
        try:
            if isinstance(row, RequestError):
                raise row
            yield _case(row, table.parent, place)
        except RequestError as error:
            yield error


def _case(row: Mapping[str, Any], folder: Path, place: str) -> Case:
    values: dict[str, Any] = {}
    for column, value in row.items():
        key = str(column).strip().lower()
        name = next((ours for ours, names in COLUMNS.items() if key in names), None)
        if name is None:
            raise RequestError(f"{place}: unknown column {column!r:.60}; columns are {', '.join(COLUMNS)}")
        if value is None or value == "":
            continue
        if name in values:
            raise RequestError(f"{place}: {column!r:.60} is a second column for {name}; keep one")
        values[name] = _block(value, place) if name == "block" else _file(value, folder, f"{place}: {name}")
    if "video" not in values:
        raise RequestError(f"{place}: video is missing")
    return Case(**values)


def _file(value: object, folder: Path, place: str) -> Path:
    if not isinstance(value, str):
        raise RequestError(f"{place} must be the name of a file, got {value!r:.60}")
    return folder / value


def _block(value: object, place: str) -> int:
    text = str(value).strip()
    if isinstance(value, bool) or not text.isdecimal() or len(text) > 6 or int(text) < 1:
        raise RequestError(f"{place}: block must be a whole number of latent frames from 1, got {value!r:.60}")
    return int(text)


def refuse(bad: Sequence[WanError], total: int, remedy: str) -> None:
    """Raise the error of all bad cases together, if there are any: one keeps its own sentence."""
    if len(bad) == 1:
        raise bad[0]
    if bad:
        raise type(bad[0])(f"{len(bad)} of {total} clips cannot be evaluated:\n{reasons(bad)}\n{remedy}")


def reasons(bad: Sequence[WanError]) -> str:
    """Why clips are bad, one a line, at most twenty."""
    lines = [f"  {plain_text(error)}" for error in bad[:_MOST_SHOWN]]
    more = len(bad) - len(lines)
    return "\n".join([*lines, f"  and {more} more"] if more else lines)
