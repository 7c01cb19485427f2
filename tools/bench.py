"""Speed and memory of our packages against peers, same weights, same inputs: ``bench.py [PART] [--rows GLOB ...]``.

Both sides run in turns within one process, the first of each pair alternating, after their outputs were compared; a row
shows the medians and the median of the pairs' ratios. Weights are random; those of Wan are written once in diffusers'
layout and read by both. Pi3 has no peer and meets the plain baseline of `tools.bench_pi3`; commands meet ``import
torch``, by the CPU time of fresh processes. ``--device`` runs the same rows on a GPU. ``--quick`` uses tiny dims, which
judge no bar; at full size some rows take minutes. Leave the machine alone meanwhile: both sides suffer alike, but the
bars are for two free CPU cores.
"""

import argparse
import fnmatch
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import diffusers
import torch

from tools.bench_animate import animate_faces, animate_forward
from tools.bench_peers import (
    Settings,
    Sides,
    dit_bytes,
    dit_forward,
    dit_load,
    peak_memory,
    probe_memory,
    sampling_loop,
    vae,
)
from tools.bench_pi3 import PUBLISHED, pi3_forward, pi3_published
from tools.bench_start_up import START_UP, start_up


@dataclass(frozen=True)
class Result:
    """One line of the table. ``ratio`` is ours over theirs; ``bar`` bounds it, or ours where theirs is None."""

    row: str
    unit: str
    ours: float
    theirs: float | None
    ratio: float | None
    bar: float | None
    difference: float | None = None
    pairs: int = 1
    spread: tuple[float, float] | None = None

    @property
    def met(self) -> bool | None:
        """Whether the bar is met; None without a bar."""
        value = self.ours if self.ratio is None else self.ratio
        return None if self.bar is None else value <= self.bar


def measure(row: str, unit: str, bar: float | None, sides: Sides, pairs: int) -> Result:
    """Values of both sides in alternating pairs. Raises ValueError when their outputs differ."""
    difference = sides.difference()
    if difference is not None and not difference <= sides.tolerance:
        raise ValueError(
            f"{row}: outputs differ by {difference:.2e}, more than {sides.tolerance:.0e}; nothing to compare"
        )
    ours, theirs = [], []
    for index in range(pairs):
        order = [(ours, sides.ours), (theirs, sides.theirs)]
        for values, side in order if index % 2 == 0 else reversed(order):
            values.append(side())
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    medians = statistics.median(ours), statistics.median(theirs), statistics.median(ratios)
    return Result(row, unit, *medians, bar, difference, pairs, (min(ratios), max(ratios)))


IMPORT_TIMER = "import time; s = time.perf_counter(); import wan_core; print(time.perf_counter() - s)"


def import_time(row: str, _settings: Settings, pairs: int) -> Result:
    """The median time that ``import wan_core`` takes in a fresh process; no peer, the bar is absolute."""
    command = [sys.executable, "-c", IMPORT_TIMER]
    runs = [subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True) for _ in range(pairs + 1)]
    return Result(row, "s", statistics.median(float(run.stdout) for run in runs[1:]), None, None, 0.1, pairs=pairs)


Row = Callable[[str, Settings, int], Result]


def paired(unit: str, bar: float | None, build: Callable[[Settings], Sides]) -> Row:
    """A row that builds two sides and measures them in pairs."""
    return lambda row, settings, pairs: measure(row, unit, bar, build(settings), pairs)


def counted(bar: float, build: Callable[[Settings], tuple[float, float]]) -> Row:
    """A row of two exact counts."""

    def run(row: str, settings: Settings, _pairs: int) -> Result:
        ours, theirs = build(settings)
        return Result(row, "MB", ours / 1e6, theirs / 1e6, ours / theirs, bar)

    return run


def published(row: str, settings: Settings, _pairs: int) -> Result:
    """Seconds and GB of Pi3 on a GPU beside the published ones of another GPU; raises ValueError without a GPU."""
    if not settings.device.startswith("cuda"):
        raise ValueError(f"{row}: the published figures are a GPU's; give --device cuda")
    seconds, gigabytes = pi3_published(row, settings)
    theirs, memory = PUBLISHED[row][3:]
    print(f"{row}: {gigabytes:.1f} GB at most, published {memory or 'no figure'}", file=sys.stderr)
    return Result(row, "s", seconds, theirs, seconds / theirs, None)


ROWS: dict[str, Row] = {
    "dit-forward-float32": paired("s", 0.98, partial(dit_forward, dtype=torch.float32)),
    "dit-forward-bfloat16": paired("s", 0.98, partial(dit_forward, dtype=torch.bfloat16)),
    "dit-bytes-float32": counted(0.30, partial(dit_bytes, dtype=torch.float32)),
    "dit-bytes-bfloat16": counted(0.30, partial(dit_bytes, dtype=torch.bfloat16)),
    "dit-bytes-per-frame": counted(0.30, partial(dit_bytes, dtype=torch.float32, per_frame=True)),
    "loop-20-steps": paired("s", 0.93, sampling_loop),
    "vae21-decode": paired("s", 0.70, partial(vae, version="2.1", direction="decode")),
    "vae21-encode": paired("s", None, partial(vae, version="2.1", direction="encode")),
    "vae22-decode": paired("s", 0.70, partial(vae, version="2.2", direction="decode")),
    "vae22-encode": paired("s", None, partial(vae, version="2.2", direction="encode")),
    "dit-load": paired("s", None, dit_load),
    "dit-peak-memory": paired("MB", None, peak_memory),
    "animate-first-step": paired("s", None, partial(animate_forward, dtype=torch.float32)),
    "animate-later-step": paired("s", 0.98, partial(animate_forward, dtype=torch.float32, later=True)),
    "animate-faces": paired("s", None, animate_faces),
    "pi3-forward": paired("s", None, pi3_forward),
    **dict.fromkeys(PUBLISHED, published),
    "import-wan-core": import_time,
    **{name: paired("s", bar, partial(start_up, row=name)) for name, (_, bar) in START_UP.items()},
}


def table(results: Iterable[Result], quick: bool) -> str:
    """The results as a Markdown table."""
    lines = [
        "| row | ours | peer | ratio | min - max | bar | | outputs differ by |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for r in results:
        verdict = "" if r.met is None or quick else "met" if r.met else "MISSED"
        cells = [
            r.row,
            f"{r.ours:.4g} {r.unit}",
            "" if r.theirs is None else f"{r.theirs:.4g} {r.unit}",
            "" if r.ratio is None else f"{r.ratio:.3f}",
            "" if r.spread is None else f"{r.spread[0]:.3f} - {r.spread[1]:.3f}",
            "" if r.bar is None else f"{r.bar:g}" if r.ratio is not None else f"{r.bar:g} {r.unit}",
            verdict,
            "" if r.difference is None else f"{r.difference:.1e}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def machine(settings: Settings) -> dict[str, object]:
    """What a reader needs to compare two tables."""
    name = torch.cuda.get_device_name(settings.device) if settings.device.startswith("cuda") else platform.machine()
    versions = {"torch": torch.__version__, "diffusers": diffusers.__version__, "python": platform.python_version()}
    return {
        "device": settings.device,
        "name": name,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        **versions,
    }


def chosen_rows(options: argparse.Namespace) -> list[str]:
    """The rows of the part and the globs; without globs only those that make sense on the device."""
    part = [name for name in ROWS if name.startswith(options.part or "")]
    if options.rows:
        return [name for name in part if any(fnmatch.fnmatch(name, glob) for glob in options.rows)]
    return [name for name in part if name not in PUBLISHED or options.device.startswith("cuda")]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "part", nargs="?", choices=("dit", "vae", "pi3", "start"), help="only rows whose names start so"
    )
    parser.add_argument("--rows", nargs="+", metavar="GLOB", help=f"of {', '.join(ROWS)}")
    parser.add_argument("--pairs", type=int, default=7, help="measurements of each side (default 7)")
    parser.add_argument("--quick", action="store_true", help="tiny dims and 3 pairs: shows that it runs")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, mps (default cpu)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there too")
    parser.add_argument("--probe", nargs=2, metavar=("SIDE", "FOLDER"), help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> int:
    """Run the chosen rows, print the table, and write the JSON; 1 when a row could not be compared."""
    options = arguments()
    if options.probe:
        side, folder = options.probe
        print(probe_memory(side, Settings(device=options.device, quick=options.quick, folder=Path(folder))))
        return 0
    names = chosen_rows(options)
    if not names:
        print(f"no row matches {' '.join(options.rows)}; there are {', '.join(ROWS)}", file=sys.stderr)
        return 2
    results, failures = [], []
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(device=options.device, quick=options.quick, folder=Path(folder))
        for name in names:
            print(f"{name} ...", file=sys.stderr, flush=True)
            try:
                results.append(ROWS[name](name, settings, 3 if options.quick else options.pairs))
            except ValueError as error:
                failures.append(str(error))
        report = {"machine": machine(settings), "quick": options.quick, "failures": failures}
    print(json.dumps(report["machine"]))
    print("\n".join([table(results, options.quick), *failures]))
    if options.json:
        rows = [asdict(result) | {"met": result.met} for result in results]
        options.json.write_text(json.dumps({**report, "rows": rows}, indent=2) + "\n")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
