"""The list that targets are made of: a prompt, a picture, a motion and perhaps a seed in each line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wan_core import RequestError
from wan_core.files import IMAGE_ENDINGS, plain_text
from wan_core.training import existing_in, normal_row, read_rows

_ENDINGS = (".csv", ".jsonl", ".json")
_MOST_SEED = 2**63 - 1


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """A video that the teacher is to make: fields of its request, and the ``place`` in the list for messages."""

    prompt: str
    image: Path
    pose: Path | None
    seed: int
    place: str


def read_wanted(table: Path, *, first_seed: int, has_poses: bool) -> list[Wanted]:
    """The lines of a CSV, JSON or JSON lines file with the columns ``prompt``, ``image``, ``pose`` and ``seed``.

    Columns and files are those of training's tables; without a seed of its own a line has ``first_seed`` and its place
    among the lines, from 0. Raises RequestError naming the line for what is missing or wrong.
    """
    shown = plain_text(table)
    if not table.is_file():
        raise RequestError(f"there is no list {shown}; a line of it has prompt, image and pose")
    if table.suffix.lower() not in _ENDINGS:
        raise RequestError(f"the list {shown} must be {', '.join(_ENDINGS)}")
    rows: list[Wanted] = []
    for number, values in read_rows(table):
        if isinstance(values, RequestError):
            raise values
        place = f"{table.name}, line {number}"
        rows.append(_wanted(table.parent, values, place, first_seed + len(rows), has_poses=has_poses))
    if not rows:
        raise RequestError(f"{shown} has no lines; each has prompt, image and pose")
    return rows


def _wanted(folder: Path, values: Mapping[str, Any], place: str, seed: int, *, has_poses: bool) -> Wanted:
    row = normal_row(values, place, ("pose", "seed"))
    row = {**row, "image": row.get("image") or row.get("file", "")}  # the only file of a line is its picture
    for name, wanted in (("caption", "prompt"), ("image", "image"), *([("pose", "pose")] if has_poses else [])):
        if not row.get(name):
            raise RequestError(f"{place}: {wanted} is missing")
    if "start" in row or "end" in row:
        raise RequestError(f"{place}: start and end are of clips to train on; cut the poses with 'sfu pose --start'")
    image = existing_in(folder, row["image"], place)
    if image.suffix.lower() not in IMAGE_ENDINGS:
        raise RequestError(f"{place}: {image.name} is no picture, which ends in one of {', '.join(IMAGE_ENDINGS)}")
    pose = existing_in(folder, row["pose"], place, Path.exists) if has_poses else None
    return Wanted(prompt=row["caption"], image=image, pose=pose, seed=_seed(row.get("seed"), seed, place), place=place)


def _seed(given: str | None, usual: int, place: str) -> int:
    if given is None:
        return usual
    if not given.isdecimal() or int(given) > _MOST_SEED:
        raise RequestError(f"{place}: seed must be a whole number from 0 to {_MOST_SEED}, got {given!r:.40}")
    return int(given)
