"""Scores that were computed elsewhere, in the JSON files of OpenS2V-Eval's own programs."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bindweave.evaluation.measures import BENCHMARK
from bindweave.samples import read_object
from wan_core import RequestError
from wan_core.files import plain_text

_KEYS = {key: name for name, its in BENCHMARK.items() for key in (*its.keys, name)}
_FURTHER = {"motion_lk", "arc_score"}
"""Keys of the benchmark's files that its total does not use."""
_NATURAL = re.compile(r"naturalscore(_\d+)?")

Scores = dict[str, dict[str, float]]
"""Sample id to measure to raw value."""


def read_scores(paths: Sequence[Path]) -> Scores:
    """The benchmark's raw scores in files, each of samples by their ids: ``{"ID": {"gme_score": 0.6}}``.

    Several of NaturalScore (``naturalscore_1.json``, of plain numbers) are averaged, as the benchmark does. Raises
    RequestError for what is no such file, a key that is not known, and a score that stands in two files.
    """
    found: dict[str, dict[str, list[float]]] = {}
    for path in paths:
        for name, row in read_object(path, "scores by the ids of samples").items():
            where = f"{plain_text(path)}, {plain_text(name)[:80]!r}"
            for measure, value in _row(path, row, where).items():
                values = found.setdefault(name, {}).setdefault(measure, [])
                if values and measure != "natural_score":
                    raise RequestError(f"{where}: {measure} stands in two of the files; give it once")
                values.append(value)
    return {
        name: {measure: sum(values) / len(values) for measure, values in row.items()} for name, row in found.items()
    }


def _row(path: Path, row: Any, where: str) -> dict[str, float]:
    if not isinstance(row, dict):
        if not _NATURAL.fullmatch(path.stem):
            raise RequestError(f'{where} must be an object such as {{"gme_score": 0.6}}')
        row = {"natural_score": row}
    found: dict[str, float] = {}
    for key, value in row.items():
        if key in _FURTHER:
            continue
        measure = _KEYS.get(key)
        if measure is None:
            raise RequestError(f"{where}: unknown score {key!r:.60}; known are {', '.join(sorted(_KEYS))}")
        if measure in found:
            raise RequestError(f"{where}: {key!r} is a second value for {measure}; keep one")
        found[measure] = _number(value, f"{where}: {key}")
    return found


def _number(value: Any, where: str) -> float:
    """A finite number; the benchmark's judge answers with a text. Only the size of a motion counts."""
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise RequestError(f"{where} must be a number, got {value!r:.60}; make it again or leave it out")
    return abs(number) if where.endswith(": motion_fb") else number
