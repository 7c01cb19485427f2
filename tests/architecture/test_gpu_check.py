"""The GPU check tries every section on the CPU, keeps what it has, and its table shows what was measured."""

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tools.gpu_report import table

ROOT = Path(__file__).resolve().parents[2]


def check(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "tools/gpu_check.py", *words], cwd=ROOT, capture_output=True, text=True, check=False
    )


def test_the_table_shows_what_was_timed_and_names_what_was_not() -> None:
    report = {
        "device": "Card 9000",
        "torch": "2.15",
        "date": "2026-11-30",
        "tiny": False,
        "sections": {
            "machine": {"matmul_tflops": 700.0},
            "attention": {
                "order": ["cudnn", "sdpa"],
                "auto": "sdpa",
                "cudnn": {"14B self": {"s": 0.2, "tflops": 585.0}},
            },
            "dit-5B": {"latents": [31, 44, 80], "eager": {"s": 1.5, "tflops": 340.0, "peak_gb": 12.5}},
            "vae-2.2": "left out: 12 s were left, it may need 60",
            "runs": {"failed": "RuntimeError: out of memory", "trace": "..."},
        },
    }
    lines = table(report).splitlines()
    assert lines[0] == "### Card 9000, torch 2.15, 2026-11-30"
    assert "| attention cudnn 14B self | 0.2 | 585.0 |  |  |" in lines
    assert "| dit-5B eager | 1.5 | 340.0 | 12.5 |  |" in lines
    assert "Attention, the fastest first: cudnn, sdpa; `auto` took sdpa." in lines
    assert lines[-2:] == ["- vae-2.2: left out: 12 s were left, it may need 60", "- runs: RuntimeError: out of memory"]


@pytest.mark.slow
def test_a_dry_run_tries_every_section(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    done = check("--dry-run", "--minutes", "30", "--out", str(out))
    assert done.returncode == 0, done.stderr
    report = json.loads(out.read_text())
    assert len(report["sections"]) == 12
    failed = {
        name: found for name, found in report["sections"].items() if "section_s" not in found or "failed" in found
    }
    assert failed == {}
    assert all(run["finite"] for name, run in report["sections"]["runs"].items() if name != "section_s")
    assert report["sections"]["parity"]["float32"] == {"dit": 0.0, "vae": 0.0}
    _check_memory_and_training(report["sections"])
    shown = check("--table", str(out))
    assert "a dry run with tiny sizes, no measurement" in shown.stdout


def _check_memory_and_training(sections: Mapping[str, Any]) -> None:
    offload = sections["offload"]
    assert offload["in blocks"]["difference"] == 0.0
    assert {"stays", "turns, in order", "turns, the second early"} <= set(offload)
    for name in ("LoRA of rank 16", "all weights"):
        steps = sections["training"][name]
        assert len(steps["losses"]) == 4
        assert min(steps["losses"]) > 0.5
        assert steps["trained"] > 0 < steps["s"]


@pytest.mark.slow
def test_a_check_without_time_says_what_it_left_out(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    assert check("--dry-run", "--minutes", "0", "--only", "machine", "--out", str(out)).returncode == 0
    assert json.loads(out.read_text())["sections"] == {"machine": "left out: 0 s were left, it may need 20"}
    assert "there is no section speed" in check("--dry-run", "--only", "speed").stderr
