"""Run every golden case of a directory: ``check_goldens.py DIR [--only GLOB ...] [--prepared]``.

Prints ``PASS|FAIL|UNSUPPORTED name n/n max_abs rel`` per case and a summary; exit status 1 unless all pass.
"""

import argparse
import fnmatch
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.goldens.harness import check_file


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--only", nargs="+", metavar="GLOB", default=["*"], help="case names, shell patterns")
    parser.add_argument("--prepared", action="store_true", help="with networks prepared for inference")
    arguments = parser.parse_args()
    paths = [
        path
        for path in sorted(arguments.directory.glob("*.safetensors"))
        if any(fnmatch.fnmatch(path.stem, pattern) for pattern in arguments.only)
    ]
    if not paths:
        parser.error(f"no golden case in {arguments.directory} matches {' '.join(arguments.only)}")
    counts: Counter[str] = Counter()
    for path in paths:
        outcome = check_file(path, prepared=arguments.prepared)
        counts[outcome.status] += 1
        print(outcome.line(), flush=True)
    print(f"{counts['PASS']} passed, {counts['FAIL']} failed, {counts['UNSUPPORTED']} unsupported")
    return 0 if counts["PASS"] == len(paths) else 1


if __name__ == "__main__":
    sys.exit(main())
