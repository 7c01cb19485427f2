"""A folder of videos evaluated: each once, those that are done stay, and a report of all."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bindweave.evaluation.cases import SampleVideo
from bindweave.evaluation.given_scores import Scores
from bindweave.evaluation.measures import BENCHMARK, Domain, Value, describe, percent, total, weighted_mean
from bindweave.evaluation.measuring import Tools, measure
from bindweave.ledger import Ledger
from bindweave.steps import Progress, digest_of
from wan_core import MediaError, RequestError, WanError
from wan_core.files import hash_file, plain_text, read_text, unique_keys
from wan_core.metrics import interval

FORMAT = "bindweave-evaluate/1"


@dataclass
class Results:
    """What became of the cases: rows of ``videos`` by id, why some ``failed``, which are ``missing``."""

    videos: dict[str, dict[str, Any]] = field(default_factory=dict)
    failed: dict[str, WanError] = field(default_factory=dict)
    missing: Sequence[str] = ()

    def conclude(self, report: Path) -> None:
        """Raise the kind of the first failure, or RequestError, where a sample has no measures, with their ids."""
        lost = [f"{plain_text(name)}: {plain_text(error)}" for name, error in self.failed.items()]
        absent = [f"{plain_text(name)}: no video" for name in self.missing]
        if not lost and not absent:
            return
        listed = "; ".join([*lost, *absent][:10])
        more = f"; and {len(lost) + len(absent) - 10} more" if len(lost) + len(absent) > 10 else ""
        kind = type(next(iter(self.failed.values()))) if lost else RequestError
        count = len(lost) + len(absent)
        if not self.videos:
            raise kind(f"none of {count} samples can be measured. {listed}{more}")
        raise kind(
            f"{count} of {count + len(self.videos)} samples are not measured; {plain_text(report)} has the others, and "
            f"the same command adds what is mended. {listed}{more}"
        )


def evaluate_cases(
    cases: Sequence[SampleVideo],
    missing: Sequence[str],
    open_tools: Callable[[], Tools],
    output: Path,
    settings: Mapping[str, Any],
    *,
    progress: Progress = lambda steps, title: steps,
    log: Callable[[str], None] = lambda text: None,
) -> Results:
    """Measure cases one after the other; each is noted at once, so that a stopped run goes on.

    ``settings`` are what values hang on besides the files. A case whose row in ``output``, or whose note, was made of
    the same things stays as it is. ``open_tools`` is called when there is work. A case that cannot be measured does not
    stop the others. Raises MediaError where the disk refuses, and what ``open_tools`` raises.
    """
    results = Results(missing=missing)
    digests = _digests(cases, settings, results)
    ledger, earlier = Ledger(output, digests), _rows_of(output)
    waiting = []
    for case in (each for each in cases if each.name in digests):
        row = ledger.changes(case.name) or earlier.get(case.name, {})
        if row.get("digest") == digests[case.name]:
            results.videos[case.name] = row
        else:
            waiting.append(case)
    if results.videos:
        log(f"{len(results.videos)} of {len(digests)} videos are measured already")
    tools = open_tools() if waiting else Tools()
    for case in progress(waiting, "videos") if waiting else []:
        try:
            row = {**_measured(case, tools), "digest": digests[case.name]}
        except (RequestError, MediaError) as error:
            results.failed[case.name] = error
            log(f"{plain_text(case.name)} is left out: {error}")
            continue
        ledger.note(case.name, row)
        results.videos[case.name] = row
    results.videos = {case.name: results.videos[case.name] for case in cases if case.name in results.videos}
    return results


def _digests(cases: Sequence[SampleVideo], settings: Mapping[str, Any], results: Results) -> dict[str, str]:
    """A name of what each case's values hang on; those whose files are not there have failed."""
    digests = {}
    for case in cases:
        try:
            case.check()
            hashes = [hash_file(path) for path in (case.video, *case.references)]
            digests[case.name] = digest_of(FORMAT, case.prompt, hashes, dict(settings))
        except WanError as error:
            results.failed[case.name] = error
    return digests


def _measured(case: SampleVideo, tools: Tools) -> dict[str, Any]:
    seen, values = measure(case, tools)
    return {
        "video": case.video.name,
        "prompt": case.prompt,
        "references": [path.name for path in case.references],
        "frames": seen.num_frames,
        "size": [seen.width, seen.height],
        "values": values,
    }


def _rows_of(output: Path) -> dict[str, dict[str, Any]]:
    """The videos of an earlier report. Raises RequestError for a file that is none: it would be written over."""
    if not output.exists():
        return {}
    try:
        found = json.loads(read_text(output), object_pairs_hook=unique_keys)
    except (ValueError, RecursionError):
        found = None
    videos = found.get("videos") if isinstance(found, dict) and found.get("format") == FORMAT else None
    if not isinstance(videos, dict) or not all(isinstance(row, dict) for row in videos.values()):
        raise RequestError(f"{plain_text(output)} is there and no report of 'bindweave evaluate'; choose another name")
    return videos


def with_scores(videos: Mapping[str, Mapping[str, Any]], given: Scores) -> dict[str, dict[str, Any]]:
    """Rows with the benchmark's scores that were given for them, which go before those measured here."""
    return {
        name: {**row, "values": {**row["values"], **given.get(name, {})}, "given": sorted(given.get(name, {}))}
        for name, row in videos.items()
    }


def summary(videos: Mapping[str, Mapping[str, Any]], seed: int) -> dict[str, dict[str, Any]]:
    """Mean and interval over videos of every measure, the benchmark's first; of none: None, of 0 videos."""
    rows = [row["values"] for row in videos.values()]
    names = dict.fromkeys([*BENCHMARK, *(name for row in rows for name in row)])
    found = {}
    for name in names:
        if any(name in row for row in rows):
            over = interval((row.get(name) for row in rows), seed=seed)
            found[name] = {"mean": None, "low": None, "high": None, "count": 0} if over is None else asdict(over)
    return found


def benchmark_scores(videos: Mapping[str, Mapping[str, Any]], domain: Domain, *, is_whole: bool) -> dict[str, Any]:
    """The benchmark's measures in percent, and its total where all of them are there for whole lists of samples.

    Else ``total`` is None, and ``weighted_mean`` that of the ``measured`` ones by the same weights.
    """
    columns: dict[str, list[Value]] = {name: [row["values"].get(name) for row in videos.values()] for name in BENCHMARK}
    scores = {name: percent(name, values) for name, values in columns.items()}
    mean, left_out = weighted_mean(scores, domain)
    return {
        "domain": domain,
        "scores": scores,
        "videos": {name: sum(value is not None for value in values) for name, values in columns.items()},
        "total": total(scores, domain) if is_whole else None,
        "weighted_mean": mean,
        "measured": [name for name, its in BENCHMARK.items() if its.weights[domain] and name not in left_out],
        "not_measured": {name: BENCHMARK[name].needs for name in left_out},
    }


def report_of(
    results: Results, given: Scores, domain: Domain, provenance: Mapping[str, Any], seed: int
) -> dict[str, Any]:
    """Everything as plain JSON values."""
    videos = with_scores(results.videos, given)
    means = summary(videos, seed)
    return {
        "format": FORMAT,
        "provenance": dict(provenance),
        "measures": {name: asdict(describe(name)) for name in means},
        "summary": means,
        "opens2v_eval": benchmark_scores(videos, domain, is_whole=not (results.missing or results.failed)),
        "videos": results.videos,
        "given_scores": {name: row for name, row in given.items() if name in results.videos},
        "missing": list(results.missing),
        "failed": {name: plain_text(error) for name, error in results.failed.items()},
    }


def clear_notes(output: Path) -> None:
    """The report is written; the notes of its videos are not needed any more."""
    Ledger(output, {}).clear()
