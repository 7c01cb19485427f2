"""Lists of data folders in TOML, by the names of musubi-tuner's and diffusion-pipe's dataset files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from wan_core.errors import RequestError
from wan_core.files import read_toml
from wan_core.training.clip_rules import parse_clips
from wan_core.training.folders import DataFolder
from wan_core.training.settings import DATASET_TABLES

_PATHS = ("path", "video_directory", "image_directory", "video_jsonl_file", "image_jsonl_file")
_REPEATS = ("repeats", "num_repeats")
_NUMBERS = {"slide": "frame_stride", "uniform": "frame_sample"}
_KEYS = (*_PATHS, *_REPEATS, "clips", "frame_extraction", *_NUMBERS.values())
_MOST_REPEATS = 10_000


def data_folders(given: Sequence[str | Path | Mapping[str, Any]]) -> tuple[DataFolder, ...]:
    """The folders of ``--data``: each is a folder, a table of examples, a TOML file with ``[[datasets]]``, or one such
    entry. Raises RequestError for a file that is no such TOML and an entry with unknown or impossible values."""
    folders: list[DataFolder] = []
    for each in given:
        if isinstance(each, Mapping):
            folders.append(_folder_of(each, "datasets"))
        elif Path(each).suffix.lower() == ".toml":
            folders += _read_datasets(Path(each))
        else:
            folders.append(DataFolder(path=Path(each)))
    return tuple(folders)


def _read_datasets(file: Path) -> list[DataFolder]:
    values = read_toml(file, str(file))
    unknown = [name for name in values if name not in DATASET_TABLES]
    if unknown:
        raise RequestError(
            f"{file}: {unknown[0]!r} is not known there, it holds [[datasets]] with path and repeats; sizes, frames "
            "and batches are options of the command"
        )
    entries = [each for name in DATASET_TABLES for each in _entries(values.get(name, []), file)]
    if not entries:
        raise RequestError(f"{file} has no [[datasets]]; each needs a path")
    folders = [_folder_of(each, str(file)) for each in entries]
    # A path is one from the file's own folder where there is such a thing, else from the working folder.
    beside = [replace(each, path=file.parent / each.path) for each in folders]
    return [near if near.path.exists() else each for near, each in zip(beside, folders, strict=True)]


def _entries(value: Any, file: Path) -> list[Mapping[str, Any]]:
    if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
        raise RequestError(f"{file}: datasets are tables, written [[datasets]]")
    return value


def _folder_of(values: Mapping[str, Any], place: str) -> DataFolder:
    unknown = [name for name in values if name not in _KEYS]
    if unknown:
        raise RequestError(f"{place}: unknown name {unknown[0]!r}; known are {', '.join(_KEYS)}")
    paths = [values[name] for name in _PATHS if name in values]
    if len(paths) != 1 or not isinstance(paths[0], str):
        raise RequestError(f"{place}: each of the datasets needs one path, got {paths}")
    repeats = next((values[name] for name in _REPEATS if name in values), 1)
    if not isinstance(repeats, int) or isinstance(repeats, bool) or not 1 <= repeats <= _MOST_REPEATS:
        raise RequestError(f"{place}: repeats must be a number from 1 to {_MOST_REPEATS}, got {repeats!r}")
    clips = values.get("clips", values.get("frame_extraction"))
    number = values.get(_NUMBERS.get(str(clips), ""))
    rule = None if clips is None else parse_clips(str(clips) if number is None else f"{clips}:{number}")
    return DataFolder(path=Path(paths[0]), repeats=repeats, clips=rule)
