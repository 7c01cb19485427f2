"""The benchmark measures in fair turns, refuses to compare what differs, and counts bytes exactly."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tools.bench import ROWS, Result, measure, table
from tools.bench_bytes import moved_bytes
from tools.bench_peers import Settings, Sides
from tools.bench_start_up import START_UP, cpu_seconds, readme_words, start_up
from tools.bench_trees import operations

ROOT = Path(__file__).resolve().parents[2]


def sides(ours: list[float], theirs: list[float], difference: float = 0.0) -> tuple[Sides, list[str]]:
    """Two sides that return these values in turn, and the record of who was called."""
    calls: list[str] = []

    def side(name: str, values: list[float]) -> Callable[[], float]:
        remaining = iter(values)

        def call() -> float:
            calls.append(name)
            return next(remaining)

        return call

    return Sides(side("ours", ours), side("theirs", theirs), lambda: difference, 1e-4), calls


def test_pairs_alternate_who_goes_first() -> None:
    pair, calls = sides([1.0] * 3, [2.0] * 3)
    measure("row", "s", None, pair, 3)
    assert calls == ["ours", "theirs", "theirs", "ours", "ours", "theirs"]


def test_result_is_the_median_of_the_pairs_ratios() -> None:
    result = measure("row", "s", 0.6, sides([1.0, 9.0, 2.0], [2.0, 10.0, 5.0])[0], 3)
    assert (result.ours, result.theirs, result.ratio) == (2.0, 5.0, 0.5)
    assert result.spread == (0.4, 0.9)
    assert result.met


@pytest.mark.parametrize("difference", [1e-3, float("nan")])
def test_outputs_that_differ_are_not_timed(difference: float) -> None:
    pair, calls = sides([1.0], [1.0], difference)
    with pytest.raises(ValueError, match="row: outputs differ"):
        measure("row", "s", None, pair, 1)
    assert calls == []


def test_published_gpu_figures_are_not_compared_with_a_cpu(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--device cuda"):
        ROWS["pi3-1024x364x504"]("pi3-1024x364x504", Settings("cpu", True, tmp_path), 1)


def test_table_says_when_a_bar_is_missed() -> None:
    missed = Result("import", "s", 0.2, None, None, 0.1)
    assert table([missed], quick=False).splitlines()[-1] == "| import | 0.2 s |  |  |  | 0.1 s | MISSED |  |"
    assert "MISSED" not in table([missed], quick=True)


@pytest.mark.parametrize(
    ("call", "count"),
    [
        (lambda x: x + x, 800),  # one tensor read once, one written
        (lambda x: x.view(10, 10).t(), 0),
        (lambda x: x.view(10, 10) @ x.view(10, 10), 0),
        (lambda x: x.view(10, 10) + x[:10], 400 + 40 + 400),
        (lambda x: x[:1].expand(100) + x, 4 + 400 + 400),
        (torch.empty_like, 0),
    ],
)
def test_bytes_are_those_that_elementwise_steps_touch(call: Callable[[torch.Tensor], object], count: int) -> None:
    x = torch.ones(100)
    assert moved_bytes(lambda: call(x)).total() == count


def test_operations_are_counted_without_views_and_after_a_first_call() -> None:
    kept: list[torch.Tensor] = []

    def call() -> torch.Tensor:
        if not kept:
            kept.append(torch.ones(4).cos())
        return kept[0].view(2, 2) + 1

    assert operations(call) == 1


def test_the_cpu_time_of_a_process_is_counted_without_its_sampling(tmp_path: Path) -> None:
    assert 0 < cpu_seconds(tmp_path, "pass") < cpu_seconds(tmp_path, "sum(range(20_000_000))")
    assert cpu_seconds(tmp_path, "print('sampling: 100.0')") < -90
    with pytest.raises(ValueError, match="nothing of ours"):
        cpu_seconds(tmp_path, "raise RuntimeError('nothing of ours')")


def test_the_readmes_command_is_among_the_commands_whose_start_is_measured(tmp_path: Path) -> None:
    assert readme_words()[:2] == ["generate", "--prompt"]
    assert set(START_UP) < set(ROWS)
    assert start_up(Settings("cpu", True, tmp_path), "start-help").ours() > 0


@pytest.mark.slow
def test_quick_benchmark_runs_and_both_sides_agree(tmp_path: Path) -> None:
    rows = ["dit-forward-float32", "vae21-decode", "vae22-encode", "pi3-forward"]
    command = [sys.executable, "tools/bench.py", "--quick", "--json", str(tmp_path / "out.json"), "--rows", *rows]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    report = json.loads((tmp_path / "out.json").read_text())
    assert [row["row"] for row in report["rows"]] == rows
    assert all(row["difference"] < 1e-4 for row in report["rows"])
