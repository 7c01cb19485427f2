"""``bindweave evaluate``: numbers for a folder of videos, as a report, a table and a sheet."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from wan_core import RequestError
from wan_core.cli import PLACE, ErrorReporting, debug_option, progress_unless, reporter

_NAME = re.compile(r"[a-z][a-z0-9_]{0,30}")


@click.command(cls=ErrorReporting, params=[debug_option()])
@click.argument("videos", type=PLACE, metavar="FOLDER")
@click.option("--samples", type=PLACE, help="The sample JSON of FOLDER/ID.mp4. [default: FOLDER/manifest.json]")
@click.option("--base-img-dir", type=PLACE, default=Path("."), help="Folder of the pictures. [default: this one]")
@click.option(
    "--encoder", "encoders", multiple=True, metavar="NAME=PLACE",
    help="CLIP, SigLIP, DINOv2, GME, Wan's CLIP, or a folder of ONNX files of faces; NAME begins its measures.",
)  # fmt: skip
@click.option("--aesthetic-head", type=PLACE, help="LAION's aesthetic predictor, on the vectors of an encoder.")
@click.option("--scores", type=PLACE, multiple=True, help="Scores of OpenS2V-Eval made elsewhere, .json.")
@click.option("--domain", type=click.Choice(["open", "human"]), default="open", show_default=True, help="Of the total.")
@click.option("--frames", type=click.IntRange(2, 1000), default=32, show_default=True, help="Looked at by encoders.")
@click.option("--output", "-o", type=PLACE, help="The report, .json. [default: FOLDER/evaluation.json]")
@click.option("--table", type=PLACE, help="Also a table, .md or .csv.")
@click.option("--sheet", type=PLACE, help="Also a picture of references and frames, .png.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the intervals.")
@click.option("--device", help="cpu, cuda, cuda:1, mps; default: the best one.")
@click.option("--json", "as_json", is_flag=True, help="Print the report instead of the table.")
@click.option("--quiet", is_flag=True, help="No progress and no notes.")
def evaluate(**values: Any) -> None:
    """Measure the videos of FOLDER against their prompts and reference pictures.

    Videos that are measured already stay, so the same command goes on. Numbers of OpenS2V-Eval have its names only
    where they are computed as it does.
    """
    run(**values)


def run(
    *,
    videos: Path,
    samples: Path | None,
    base_img_dir: Path,
    encoders: Sequence[str],
    aesthetic_head: Path | None,
    scores: Sequence[Path],
    domain: Any,
    frames: int,
    output: Path | None,
    table: Path | None,
    sheet: Path | None,
    seed: int,
    device: str | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Check everything, measure, report. Raises what those raise."""
    from bindweave.evaluation.cases import read_cases
    from bindweave.evaluation.given_scores import read_scores
    from bindweave.evaluation.measuring import open_tools
    from bindweave.evaluation.results import clear_notes, evaluate_cases, report_of
    from bindweave.evaluation.tables import plain_rows, report_rows
    from wan_core.checkpoints import write_json
    from wan_core.files import plain_text
    from wan_core.media import Provenance
    from wan_core.runtime import resolve_device

    log, report = reporter(quiet), output or videos / "evaluation.json"
    places = _places(encoders)
    cases, missing = read_cases(videos, samples, base_img_dir)
    given = read_scores(scores)
    inputs = [path for case in cases for path in (case.video, *case.references)]
    _check_outputs(report, table, sheet, [*inputs, *scores, *([samples] if samples else [])], len(cases))
    settings = _settings(places, aesthetic_head, frames)
    chosen = resolve_device(device)
    if unknown := sorted(set(given).difference(case.name for case in cases)):
        log(f"note: scores are given for {len(unknown)} samples without a video, such as {plain_text(unknown[0])}")
    results = evaluate_cases(
        cases,
        missing,
        lambda: open_tools(places, aesthetic_head, frames, chosen),
        report,
        settings,
        progress=progress_unless(quiet),
        log=log,
    )
    if results.videos:
        asked = {**settings, "domain": domain, "seed": seed, "samples": samples, "scores": list(scores)}
        record = json.loads(Provenance.of(preset="bindweave evaluate", settings=asked).to_json())
        made = report_of(results, given, domain, record, seed)
        write_json(report, made)
        clear_notes(report)
        rows = list(report_rows(made))
        click.echo(json.dumps(made, indent=2, allow_nan=False) if as_json else "\n".join(plain_rows(rows)))
        _write_more(table, sheet, rows, cases, made["videos"])
        log(f"{plain_text(report)}: {len(results.videos)} videos")
    results.conclude(report)


def _places(encoders: Sequence[str]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for text in encoders:
        name, equals, place = text.partition("=")
        if not equals or not place or not _NAME.fullmatch(name):
            raise RequestError(f"an encoder is NAME=PLACE, such as clip=clip-vit-large-patch14; got {text[:200]!r}")
        if name in found:
            raise RequestError(f"there are two encoders {name}; give each a name of its own")
        if not Path(place).exists():
            raise RequestError(f"encoder {name}: {place[:200]} does not exist; fetch it and name its file or folder")
        found[name] = Path(place)
    return found


def _check_outputs(report: Path, table: Path | None, sheet: Path | None, inputs: Sequence[Path], count: int) -> None:
    from bindweave.evaluation.tables import check_sheet, check_table
    from wan_core.files import check_place
    from wan_core.media import check_own_files

    if report.suffix.lower() != ".json":
        raise RequestError(f"--output ends in .json, got {report}")
    if table is not None:
        check_table(table)
    if sheet is not None:
        check_sheet(count)
        if sheet.suffix.lower() != ".png":
            raise RequestError(f"--sheet ends in .png, got {sheet}")
    written = [path for path in (report, table, sheet) if path is not None]
    check_own_files(written, inputs)
    for path in written:
        check_place(path)


def _settings(places: Mapping[str, Path], head: Path | None, frames: int) -> dict[str, Any]:
    """What values hang on besides videos and pictures: encoders by samples of their weights."""
    from wan_core.checkpoints import weights_fingerprint
    from wan_core.files import existing_file, hash_file
    from wan_core.runtime import optional_package

    cv2 = optional_package("cv2", "opencv-python-headless", what="Measures of motion", extra="bindweave[evaluate]")
    return {
        "frames": frames,
        "encoders": {name: {"name": path.name, "weights": weights_fingerprint(path)} for name, path in places.items()},
        "aesthetic_head": None if head is None else hash_file(existing_file(head, "aesthetic head")),
        "opencv": cv2.__version__,
    }


def _write_more(
    table: Path | None, sheet: Path | None, rows: Sequence[Sequence[str]], cases: Any, videos: Mapping[str, Any]
) -> None:
    from bindweave.evaluation import tables
    from wan_core.drafts import write_text
    from wan_core.media import write_image

    if table is not None:
        write_text(table, tables.table_text(rows, table.suffix.lower()))
    if sheet is not None:
        write_image(tables.sheet(cases, videos), sheet)
