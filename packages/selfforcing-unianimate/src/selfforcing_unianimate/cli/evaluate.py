"""``sfu evaluate``: how well videos follow their poses, as a table and a report."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from selfforcing_unianimate.cli.detectors import detector_device, detector_dir
from wan_core import RequestError, WanError
from wan_core.cli import PLACE, ErrorReporting, debug_option, progress_unless, reporter

if TYPE_CHECKING:
    from selfforcing_unianimate.evaluation import ClipReport, Evaluator
    from selfforcing_unianimate.evaluation_cases import Case
    from wan_core.metrics import OpticalFlow

_WIDTHS = (26, 6, 9, 22)


@click.command(cls=ErrorReporting, params=[debug_option()])
@click.argument("videos", type=PLACE, nargs=-1, metavar="[VIDEO]...")
@click.option("--pose", "poses", type=PLACE, multiple=True, help="Driving pose, .npz: one for all videos, or for each.")
@click.option(
    "--detected", type=PLACE, multiple=True, help="Poses of 'sfu pose VIDEO', one for each; no detector runs."
)
@click.option("--target", "targets", type=PLACE, multiple=True, help="The video that it should be, one for each.")
@click.option(
    "--list", "table", type=PLACE, help="Instead: .jsonl, .json or .csv with video, pose, detected, target, block."
)
@click.option("--no-pose", is_flag=True, help="Measure steadiness and fidelity only.")
@click.option(
    "--block", type=click.IntRange(1, 10_000), help="Latent frames per block; default: by the video's record."
)
@click.option("--flow", type=click.Choice(["farneback", "raft"]), default="farneback", show_default=True)
@click.option("--raft-weights", type=PLACE, help="torchvision's raft_small or raft_large, for --flow raft.")
@detector_dir
@detector_device
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the intervals.")
@click.option("--out", type=PLACE, help="Also write a report, .json.")
@click.option("--json", "as_json", is_flag=True, help="Print the report instead of the table.")
@click.option("--skip-bad", is_flag=True, help="Leave out clips that cannot be evaluated, with the reasons at the end.")
@click.option("--quiet", is_flag=True, help="No progress and no notes.")
def evaluate(**values: Any) -> None:
    """Compare each VIDEO, or those of a folder, with the pose that it should follow.

    A folder's videos have their poses beside them, as clip.npz beside clip.mp4. Means are over clips, with intervals.
    """
    run(**values)


def run(
    *,
    videos: Sequence[Path],
    poses: Sequence[Path],
    detected: Sequence[Path],
    targets: Sequence[Path],
    table: Path | None,
    no_pose: bool,
    skip_bad: bool,
    out: Path | None,
    as_json: bool,
    quiet: bool,
    seed: int,
    **settings: Any,
) -> None:
    """Check everything, measure, report. Raises what those raise."""
    from selfforcing_unianimate.evaluation import Evaluator, report, summary
    from selfforcing_unianimate.evaluation_cases import reasons, refuse
    from wan_core.checkpoints import write_json
    from wan_core.media import Provenance

    if no_pose and (poses or detected):
        raise RequestError("give --pose and --detected, or --no-pose, not both")
    given = _cases(videos, poses, detected, targets, table)
    cases, bad = _checked(given, no_pose=no_pose)
    if not skip_bad or not cases:
        refuse(bad, len(given), "mend them, or leave them out with --skip-bad")
    _check_out(out, [file for case in cases for file in case.files] + ([] if table is None else [table]))
    log, shown = reporter(quiet), progress_unless(quiet)
    flow, used = _flow(settings)
    detector, found_by = _detector(cases, settings, shown)
    measure = Evaluator(detector, flow, settings["block"], log)
    clips = list(_measured(measure, shown(cases, "clips"), bad if skip_bad else None))
    if not clips:
        refuse(bad, len(given), "mend some of them: nothing else is there to evaluate")
    asked = {"flow": settings["flow"], "block": settings["block"], "no_pose": no_pose, "seed": seed}
    provenance = Provenance.of(preset="sfu evaluate", settings=asked, record={**used, **found_by})
    made = report(clips, bad, provenance, seed=seed)
    click.echo(json.dumps(made, indent=2, allow_nan=False) if as_json else "\n".join(_table(summary(clips, seed))))
    if out is not None:
        write_json(out, made)
        log(f"{out}: {len(clips)} clips")
    if bad:
        click.echo(f"left out {len(bad)} clips that cannot be evaluated:\n{reasons(bad)}", err=True)


def _cases(
    videos: Sequence[Path], poses: Sequence[Path], detected: Sequence[Path], targets: Sequence[Path], table: Path | None
) -> list[Case | WanError]:
    """What to evaluate, or why an entry of the list is nothing."""
    from selfforcing_unianimate.evaluation_cases import listed_cases, named_cases

    if table is not None:
        if videos or poses or detected or targets:
            raise RequestError("--list names videos and poses; give it alone, or name them without it")
        cases = list(listed_cases(table))
        if not cases:
            raise RequestError(f'{table} lists no clip; each is a line such as {{"video": "a.mp4", "pose": "a.npz"}}')
        return cases
    if not videos:
        raise RequestError("there is nothing to evaluate; name videos with --pose FILE, a folder, or --list FILE")
    return [*named_cases(videos, poses=poses, detected=detected, targets=targets)]


def _checked(given: Sequence[Case | WanError], *, no_pose: bool) -> tuple[list[Case], list[WanError]]:
    from selfforcing_unianimate.evaluation import check_case

    cases, bad = [], []
    for each in given:
        try:
            if isinstance(each, WanError):
                raise each
            case = replace(each, pose=None, detected=None) if no_pose else each
            check_case(case, needs_pose=not no_pose)
            cases.append(case)
        except WanError as error:
            bad.append(error)
    return cases, bad


def _measured(measure: Evaluator, cases: Iterable[Case], bad: list[WanError] | None) -> Iterator[ClipReport]:
    """The reports of cases; errors go to ``bad``, or out."""
    for case in cases:
        try:
            yield measure(case)
        except WanError as error:
            if bad is None:
                raise
            bad.append(error)


def _check_out(out: Path | None, inputs: list[Path]) -> None:
    from wan_core.files import check_place
    from wan_core.media import check_own_files

    if out is None:
        return
    if out.suffix.lower() != ".json":
        raise RequestError(f"--out ends in .json, got {out}")
    check_own_files([out], inputs)
    check_place(out)


def _flow(settings: Mapping[str, Any]) -> tuple[OpticalFlow, dict[str, str]]:
    """The flow that was asked for, and what is to be recorded of it."""
    from selfforcing_unianimate.backends import opencv
    from selfforcing_unianimate.metrics.flow import Raft
    from wan_core.files import hash_file
    from wan_core.metrics import farneback
    from wan_core.runtime import resolve_device

    weights, device = settings["raft_weights"], settings["device"]
    if settings["flow"] == "farneback":
        if weights is not None:
            raise RequestError("--raft-weights are for --flow raft; give both, or neither")
        cv2 = opencv("Farneback's flows", "evaluate")
        return farneback, {"opencv": cv2.__version__}
    if weights is None:
        raise RequestError(
            "--flow raft needs --raft-weights FILE, such as torchvision's raft_small_C_T_V2-01064c6d.pth"
        )
    raft = Raft(weights, device=str(resolve_device(None if device == "auto" else device)))
    return raft, {"flow_network": raft.name, "flow_sha256": hash_file(weights)}


def _detector(cases: Sequence[Case], settings: Mapping[str, Any], progress: Any) -> tuple[Any, dict[str, Any]]:
    """The detector, where a case needs it, and what is to be recorded of it."""
    from selfforcing_unianimate.detection import PERSON_MODEL, POINT_MODEL, PoseDetector
    from selfforcing_unianimate.evaluation import WholeBody
    from wan_core.files import hash_file

    if all(case.pose is None or case.detected is not None for case in cases):
        return None, {}
    folder = settings["detector_dir"]
    detector = PoseDetector(folder, device=settings["device"])
    hashes = {name: hash_file(folder / name) for name in (PERSON_MODEL, POINT_MODEL)}
    return WholeBody(detector, progress), {"providers": detector.providers, "detector_sha256": hashes}


def _table(means: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """A line for each metric: name and unit, which is better, mean, interval, clips."""
    from selfforcing_unianimate.metrics.clip import METRICS

    yield _row("metric", "better", "mean", "95 % interval", "clips")
    for name, over in means.items():
        unit = METRICS[name].unit
        mean, low, high = (None if over[key] is None else f"{over[key]:.4g}" for key in ("mean", "low", "high"))
        between = "" if low is None else f"{low} to {high}"
        yield _row(f"{name} ({unit})" if unit else name, METRICS[name].better, mean or "-", between, str(over["count"]))


def _row(*cells: str) -> str:
    return "  ".join(f"{cell:<{width}}" for cell, width in zip(cells, (*_WIDTHS, 0), strict=True)).rstrip()
