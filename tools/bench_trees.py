"""Two checkouts of this repository against each other, in alternating pairs: ``bench_trees.py OLD [--rows GLOB ...]``.

The rows are those of bench.py without their peers, and a training step. Each checkout runs in a process of its own, on
one thread, and tells CPU seconds, which bear other work on the machine; ratios are new over old. Bytes, operations and
peak memory do not vary.
"""

import argparse
import fnmatch
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

HERE = Path(__file__).resolve().parents[1]
TIMED = ("dit-forward-float32", "dit-forward-bfloat16", "dit-forward-per-frame", "dit-training-step", "loop-20-steps",
         "vae21-decode", "vae21-encode", "vae22-decode", "vae22-encode", "dit-load")  # fmt: skip
EXACT = ("dit-bytes-float32", "dit-bytes-bfloat16", "dit-bytes-per-frame", "dit-operations-float32",
         "dit-operations-bfloat16", "dit-operations-per-frame", "vae21-bytes", "vae22-bytes")  # fmt: skip
MEMORY = ("dit-peak-memory", "vae21-peak-memory", "vae22-peak-memory")


def peers() -> Any:
    """The checkout's own builders of rows, with CPU time in place of the wall clock."""
    from tools import bench_peers

    bench_peers.time = SimpleNamespace(perf_counter=time.process_time)  # type: ignore[attr-defined]
    return bench_peers


def forward(settings: Any, kind: str) -> Callable[[], Any]:
    """One forward of our transformer."""
    import torch

    dtype = torch.bfloat16 if kind == "bfloat16" else torch.float32
    size = peers().TINY if settings.quick else peers().FORWARD
    call: Callable[[], Any] = peers().dit_calls(size, settings, dtype, per_frame=kind == "per-frame")[0]
    return call


def training_step(settings: Any) -> float:
    """CPU seconds of a forward and backward pass of the plain network, four layers."""
    import torch

    from wan_core.models import DiTInputs, WanDiT

    bench = peers()
    size = bench.TINY if settings.quick else bench.LOOP
    torch.manual_seed(0)
    model = WanDiT(size.ours)
    latents, context = bench.normal(1, *size.latents, seed=1, settings=settings), torch.randn(1, 512, 4096)
    start = time.process_time()
    model(latents, torch.tensor([500.0]), DiTInputs(context=context)).square().mean().backward()
    return time.process_time() - start


def operations(call: Callable[[], Any]) -> float:
    """How many operations torch dispatches in a call, views not counted."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    counted = []

    class Counter(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if not func.is_view:
                counted.append(func)
            return func(*args, **(kwargs or {}))

    with torch.no_grad():
        call()  # tables that are kept are not counted
        with Counter():
            call()
    return len(counted)


def measured(row: str, settings: Any) -> Callable[[], float]:
    """What measures a row in this process."""
    import torch

    kind = row.rpartition("-")[2]
    if row.startswith("vae"):
        version = f"{row[3]}.{row[4]}"
        side: Callable[[], float] = peers().vae(settings, version, "encode" if kind == "encode" else "decode").ours
        if kind != "bytes":
            return side
        return lambda: peers().moved_bytes(side).total() / 1e6
    if row == "dit-training-step":
        return partial(training_step, settings)
    if row == "loop-20-steps":
        return peers().sampling_loop(settings).ours  # type: ignore[no-any-return]
    if row == "dit-load":
        return peers().dit_load(settings).ours  # type: ignore[no-any-return]
    call = forward(settings, "per-frame" if row.endswith("per-frame") else kind)
    if "operations" in row:
        return lambda: operations(call)
    if "bytes" in row:
        return lambda: (call_once(call), peers().moved_bytes(call).total() / 1e6)[1]
    with torch.no_grad():
        call()
    return peers().seconds(call, settings)  # type: ignore[no-any-return]


def call_once(call: Callable[[], Any]) -> None:
    """Fill what is kept between calls."""
    import torch

    with torch.no_grad():
        call()


def peak(row: str, settings: Any) -> float:
    """MB of this process after one decoding, or of loading and one forward."""
    import resource

    measured(row.replace("peak-memory", "decode"), settings)() if row.startswith("vae") else forward(settings, "")()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def serve(quick: bool) -> None:
    """Measure the row that each line of standard input names."""
    import torch

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        settings = peers().Settings(device="cpu", quick=quick, folder=Path(folder))
        ready = ""
        for line in sys.stdin:
            row = line.strip()
            if row in MEMORY:
                with torch.no_grad():
                    print(peak(row, settings), flush=True)
                continue
            if row != ready:
                measure = measured(row, settings)
                ready = row
                if row in TIMED:
                    measure()
            print(measure(), flush=True)


def started(tree: Path, quick: bool) -> "subprocess.Popen[str]":
    """A process that measures rows of a checkout."""
    paths = [str(tree), *map(str, sorted(tree.glob("packages/*/src")))]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, "--serve", *(["--quick"] if quick else [])]
    return subprocess.Popen(
        command, cwd=tree, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )


def ask(process: "subprocess.Popen[str]", row: str) -> float:
    """One measurement of a running process."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(f"{row}\n")
    process.stdin.flush()
    return float(process.stdout.readline())


def compare(row: str, running: Mapping[Path, "subprocess.Popen[str]"], pairs: int, quick: bool) -> str:
    """The line of a row; peak memory is measured in fresh processes."""
    old = next(tree for tree in running if tree != HERE)
    values: dict[Path, list[float]] = {old: [], HERE: []}
    for index in range(1 if row in EXACT else min(pairs, 3) if row in MEMORY else pairs):
        for tree in (old, HERE) if index % 2 == 0 else (HERE, old):
            process = started(tree, quick) if row in MEMORY else running[tree]
            values[tree].append(ask(process, row))
            if row in MEMORY:
                process.communicate()
    ratios = [new / before for before, new in zip(values[old], values[HERE], strict=True)]
    unit = "s" if row in TIMED else "" if "operations" in row else " MB"
    before, new = (statistics.median(values[tree]) for tree in (old, HERE))
    spread = f"{min(ratios):.3f} - {max(ratios):.3f}" if len(ratios) > 1 else ""
    return f"| {row} | {before:.5g}{unit} | {new:.5g}{unit} | {statistics.median(ratios):.3f} | {spread} |"


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path, nargs="?", help="the other checkout")
    parser.add_argument("--rows", nargs="+", metavar="GLOB", default=["*"])
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="tiny dims: shows that it runs")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.quick)
        return 0
    if options.old is None:
        parser.error("give the other checkout")
    print("| row | old | new | new / old | min - max |\n|---|---|---|---|---|", flush=True)
    running = {tree: started(tree, options.quick) for tree in (options.old.resolve(), HERE)}
    for row in (*EXACT, *MEMORY, *TIMED):
        if any(fnmatch.fnmatch(row, glob) for glob in options.rows):
            print(compare(row, running, options.pairs, options.quick), flush=True)
    for process in running.values():
        process.communicate()
    return 0


if __name__ == "__main__":
    sys.exit(main())
