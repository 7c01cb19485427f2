"""A report for people: a table as text, Markdown or CSV, and a sheet of pictures."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bindweave.evaluation.cases import SampleVideo
from bindweave.evaluation.video import chosen_frames, frames_of
from wan_core import RequestError
from wan_core.files import plain_text

if TYPE_CHECKING:
    from PIL.Image import Image

TABLE_ENDINGS = (".md", ".csv")
_SHOWN = 5
_CELL = (192, 108)
_MOST_ROWS = 300


def report_rows(report: Mapping[str, Any]) -> Iterable[list[str]]:
    """Rows of the table, its head first: measure, whose it is, unit, better, mean, interval, videos, percent."""
    yield ["measure", "of", "unit", "better", "mean", "low", "high", "videos", "score %"]
    scores = report["opens2v_eval"]["scores"]
    for name, over in report["summary"].items():
        its = report["measures"][name]
        numbers = ("" if over[key] is None else f"{over[key]:.4g}" for key in ("mean", "low", "high"))
        score = scores.get(name)
        yield [
            name, its["source"], its["unit"], its["better"], *numbers, str(over["count"]),
            "" if score is None else f"{score:.2f}",
        ]  # fmt: skip
    found = report["opens2v_eval"]
    if found["total"] is not None:
        yield [
            "TotalScore",
            "OpenS2V-Eval",
            "",
            "higher",
            "",
            "",
            "",
            str(len(report["videos"])),
            f"{found['total']:.2f}",
        ]
    elif found["weighted_mean"] is not None:
        what = f"weighted mean of {len(found['measured'])}, no TotalScore"
        yield [what, "ours", "", "higher", "", "", "", "", f"{found['weighted_mean']:.2f}"]


def plain_rows(rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """Columns under each other."""
    listed = [list(row) for row in rows]
    widths = [max(len(row[column]) for row in listed) for column in range(len(listed[0]))]
    for row in listed:
        yield "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()


def table_text(rows: Iterable[Sequence[str]], ending: str) -> str:
    """A table for a file with the ending ``.md`` or ``.csv``."""
    listed = [list(row) for row in rows]
    if ending == ".csv":
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(listed)
        return text.getvalue()
    lines = [listed[0], ["---"] * len(listed[0]), *listed[1:]]
    return "".join(f"| {' | '.join(row)} |\n" for row in lines)


def check_sheet(count: int) -> None:
    """Raises RequestError where a sheet of so many videos is too long to look at."""
    if count > _MOST_ROWS:
        raise RequestError(f"a sheet shows at most {_MOST_ROWS} videos, and there are {count}; leave --sheet out")


def sheet(cases: Sequence[SampleVideo], videos: Mapping[str, Mapping[str, Any]]) -> Image:
    """A row for each video that was measured: its id, its references, then frames from the first to the last.

    Raises RequestError or MediaError for files that are gone.
    """
    from PIL import Image as Images

    from wan_core.media import contact_sheet, load_image

    shown = [case for case in cases if case.name in videos]
    columns = max(len(case.references) for case in shown)
    blank = Images.new("RGB", _CELL, "white")
    cells = []
    for case in shown:
        references = [load_image(path) for path in case.references]
        for each in references:
            each.thumbnail(_CELL)
        indices = sorted(set(chosen_frames(videos[case.name]["frames"], _SHOWN)))
        frames = frames_of(case.video, indices, _CELL)
        cells += [_label(case.name), *references, *[blank] * (columns - len(references))]
        cells += [*frames, *[blank] * (_SHOWN - len(frames))]
    return contact_sheet(cells, 1 + columns + _SHOWN, cell_width=_CELL[0])


def _label(name: str) -> Image:
    from PIL import Image as Images
    from PIL import ImageDraw

    label = Images.new("RGB", _CELL, "white")
    text = plain_text(name).encode("ascii", "replace").decode()[:28]  # what Pillow's own font has
    ImageDraw.Draw(label).text((4, _CELL[1] // 2 - 6), text, fill="black")
    return label


def check_table(path: Path) -> None:
    """Raises RequestError for a table of another ending than .md and .csv."""
    if path.suffix.lower() not in TABLE_ENDINGS:
        raise RequestError(f"--table ends in .md or .csv, got {plain_text(path)}")
