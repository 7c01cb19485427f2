"""What a GPU does with our models, within ten minutes: ``gpu_check.py --out gpu.json [--minutes 9] [--only vae-2.2]``.

Weights are random and of real size, nothing is downloaded. It runs beside this checkout on a bare machine with Python
3.12 and torch 2.11 or later: ``--wheels DIR`` unpacks the other packages (einops, safetensors, av, ...) from their
wheels for this run. Every section writes the JSON anew when it ends, so that a run that is cut off keeps what it has;
one that fails is noted, one for which there is no time is left out. ``--dry-run`` runs all of them on the CPU, tiny.
``--table gpu.json`` prints the table of docs/performance.md.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import traceback
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "packages" / "wan-core" / "src")]


def main() -> None:
    """Measure, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("gpu.json"), help="where the JSON goes")
    parser.add_argument("--minutes", type=float, default=9.0, help="no section starts that would end later")
    parser.add_argument("--only", default="", help="sections, by comma")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--wheels", type=Path, help="a folder of wheels to use for this run")
    parser.add_argument("--dry-run", action="store_true", help="all sections on the CPU, tiny")
    parser.add_argument("--table", type=Path, metavar="JSON", help="print the table of an earlier run")
    options = parser.parse_args()
    if options.table is not None:
        from tools.gpu_report import table

        print(table(json.loads(options.table.read_text())), end="")
        return
    end = time.monotonic() + 60 * options.minutes
    with tempfile.TemporaryDirectory() as folder:
        if options.wheels is not None:
            _unpack(options.wheels, Path(folder))
        measure(options, end)


def _unpack(wheels: Path, folder: Path) -> None:
    """Put what the wheels hold into ``folder`` and on the path."""
    files = sorted(map(str, wheels.glob("*.whl")))
    if not files:
        sys.exit(f"gpu_check.py: there is no wheel in {wheels}")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--target", str(folder)]
    subprocess.run([*pip, *files], check=True)
    sys.path.insert(0, str(folder))
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))


def measure(options: argparse.Namespace, end: float) -> None:
    """Run the sections that were asked for while there is time, and write what they find."""
    import torch

    from tools.gpu_networks import Bench
    from tools.gpu_sections import SECTIONS

    wanted = [name for name in options.only.split(",") if name] or list(SECTIONS)
    unknown = [name for name in wanted if name not in SECTIONS]
    if unknown:
        sys.exit(f"gpu_check.py: there is no section {', '.join(unknown)}; there are {', '.join(SECTIONS)}")
    device = torch.device("cpu" if options.dry_run else options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        sys.exit("gpu_check.py: there is no GPU here; --dry-run tries everything on the CPU")
    bench = Bench(device, is_tiny=options.dry_run, end=end, repeats=1 if options.dry_run else 3)
    report = {**_machine(torch, device), "tiny": options.dry_run, "sections": {}}
    for name in wanted:
        section, needed = SECTIONS[name]
        start = time.monotonic()
        if bench.left() < needed:
            found: Any = f"left out: {max(bench.left(), 0):.0f} s were left, it may need {needed}"
        else:
            try:
                found = section(bench)
            except Exception as error:
                found = {"failed": f"{type(error).__name__}: {error}"[:500], "trace": traceback.format_exc()[-2000:]}
            found["section_s"] = round(time.monotonic() - start, 1)
        bench.clear()
        report["sections"][name] = found
        _write(report, options.out)
        print(f"{name}: {json.dumps(found)[:300]}", flush=True)


def _machine(torch: Any, device: Any) -> dict[str, Any]:
    facts = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": "CPU",
    }
    if device.type == "cuda":
        card = torch.cuda.get_device_properties(device)
        facts |= {
            "device": card.name,
            "memory_gb": round(card.total_memory / 1e9, 1),
            "capability": f"{card.major}.{card.minor}",
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        }
    return facts


def _write(report: dict[str, Any], out: Path) -> None:
    """In one step: a run may be cut off at any time."""
    out.parent.mkdir(parents=True, exist_ok=True)
    draft = out.with_suffix(".part")
    draft.write_text(json.dumps(report, indent=1) + "\n")
    draft.replace(out)


if __name__ == "__main__":
    main()
