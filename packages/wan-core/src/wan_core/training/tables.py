"""Tables of examples: CSV, JSON and JSON lines, with the column names of other trainers."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from wan_core.errors import RequestError
from wan_core.files import damage_of, read_text, unique_keys

COLUMNS = ("file", "caption", "image", "start", "end")
TABLE_ENDINGS = (".csv", ".jsonl", ".json")
# The names of datasets, DiffSynth, musubi-tuner, VideoX-Fun, Open-Sora and finetrainers.
_NAMES = {
    "file": ("file", "file_name", "filename", "file_path", "path", "media", "video", "video_path", "image_path"),
    "caption": ("caption", "text", "prompt"),
    "image": ("image", "input_image", "first_frame"),
    "start": ("start",),
    "end": ("end",),
}
# Facts that are read from the files themselves.
_FACTS = (
    "id", "index", "type", "width", "height", "fps", "duration", "num_frames", "frames", "length", "resolution",
    "aspect_ratio", "size", "hash", "split",
)  # fmt: skip
_NUMBERS = ("", "unnamed: 0")  # of rows, as pandas writes them
_MOST_LETTERS = 100_000  # a model reads some two thousand


Row = Mapping[str, Any] | RequestError
"""A row, or why a line is none."""


def read_rows(path: Path) -> Iterator[tuple[int, Row]]:
    """The rows of a table with their lines; of JSON that is one list, with their numbers in it.

    A line that is no row comes as its error. Raises RequestError naming the line for what is no such table.
    """
    text = read_text(path)
    match path.suffix.lower():
        case ".csv":
            yield from _csv_rows(path, text)
        case ".jsonl":
            for number, line in enumerate(text.split("\n"), 1):  # JSON strings may hold other line separators
                if line.strip():
                    yield number, _row(line, f"{path.name}, line {number}")
        case _:
            rows = json_of(text, path.name)
            if isinstance(rows, dict):
                rows = _rows_of(rows)
            if not isinstance(rows, list):
                raise RequestError(f"{path.name} must be a list of objects, or one object of files and captions")
            for number, row in enumerate(rows, 1):
                yield number, _object(row, f"{path.name}, line {number}")


def _rows_of(values: dict[str, Any]) -> list[dict[str, Any]] | None:
    """The rows of an object that is one, or of one of files with their captions or their rows; ``None`` for others."""
    if _is_row(values):
        return [values]
    if all(isinstance(value, str) for value in values.values()):
        return [{"file": file, "caption": caption} for file, caption in values.items()]
    if all(isinstance(value, dict) for value in values.values()):
        return [{"file": file, **row} for file, row in values.items()]
    return None


def _is_row(values: Mapping[str, Any]) -> bool:
    """Whether an object is one example, not a map of files to captions: a file has an ending, a column has none."""
    names = {str(key).strip().lower() for key in values}
    return any(names.intersection(_NAMES[name]) for name in ("file", "image", "caption"))


def _csv_rows(path: Path, text: str) -> Iterator[tuple[int, Row]]:
    first = text.partition("\n")[0]
    delimiter = max(",;\t", key=first.count)  # spreadsheets write those of their language
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    start = 1  # a quoted caption may have lines
    try:
        columns = [name.strip().lower() for name in reader.fieldnames or []]
        double = next((name for name, times in Counter(columns).items() if name and times > 1), None)
        if double is not None:
            raise RequestError(f"{path.name}, line 1: there are two columns {double!r:.60}; keep one")
        start = reader.line_num + 1
        for row in reader:
            place = f"{path.name}, line {reader.line_num}"
            is_long = None in row
            yield reader.line_num, RequestError(f"{place}: more values than columns; quote commas") if is_long else row
            start = reader.line_num + 1
    except csv.Error as error:
        raise RequestError(f"{path.name}, line {start}: {error}; is a quote open?") from error


def json_of(text: str, place: str) -> Any:
    """What JSON holds. Raises RequestError naming ``place`` for what is none, or has a key twice in one object."""
    try:
        return json.loads(text, object_pairs_hook=unique_keys)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"{place}: {error}; it must be JSON, an object for each example") from error


def _row(line: str, place: str) -> Row:
    try:
        return _object(json_of(line, place), place)
    except RequestError as error:
        return error


def _object(value: Any, place: str) -> Row:
    return value if isinstance(value, dict) else RequestError(f"{place}: each line must be one JSON object")


def normal_row(row: Mapping[str, Any], place: str, further: Collection[str] = ()) -> dict[str, str]:
    """The values of a row by our column names and those of ``further`` ones, without empty values.

    ``image`` alone is the file itself. Raises RequestError for a column that is not known, two columns for one thing,
    and a value that is neither text nor a number.
    """
    found: dict[str, str] = {}
    for column, value in row.items():
        key = column.strip().lower()
        name = key if key in further else next((ours for ours, names in _NAMES.items() if key in names), None)
        if name is None:
            if key in _FACTS or (key in _NUMBERS and (not value or str(value).strip().isdigit())):
                continue
            raise RequestError(f"{place}: unknown column {column!r:.60}; columns are {', '.join((*COLUMNS, *further))}")
        if value is None or not str(value).strip():
            continue
        if name in found:
            raise RequestError(f"{place}: {column!r} is a second column for {name}; keep one")
        found[name] = _text_of(value, f"{place}: {name}")
    if "file" not in found and "image" in found:
        found["file"] = found.pop("image")
    return found


def _text_of(value: Any, place: str) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise RequestError(f"{place} must be text, got {value!r:.60}")
    text = str(value).strip()
    damage = damage_of(text)
    if damage is not None:
        raise RequestError(f"{place}: {damage[1]}; write the text again in UTF-8")
    if len(text) > _MOST_LETTERS:
        raise RequestError(f"{place} has more than {_MOST_LETTERS} letters")
    return text
