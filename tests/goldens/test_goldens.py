"""Every golden case of this checkout, and every shared one when the shared folder is there, must pass."""

from pathlib import Path

import pytest

from tests.goldens.harness import check_file, load_handlers, read_family

ROOT = Path(__file__).resolve().parents[2]
COMMITTED = sorted((ROOT / "tests/goldens/cases").glob("*.safetensors"))
SHARED = sorted((ROOT.parent / "shared/goldens").glob("*.safetensors"))
CASES = {path.stem: path for path in [*COMMITTED, *SHARED]}
SUPPORTED = [path for path in CASES.values() if read_family(path) in load_handlers()]


@pytest.mark.parametrize("path", SUPPORTED, ids=lambda path: path.stem)
def test_golden_case_is_reproduced(path: Path) -> None:
    outcome = check_file(path)
    assert outcome.status == "PASS", outcome.line()


def test_committed_cases_stay_small() -> None:
    assert sum(path.stat().st_size for path in COMMITTED) <= 6_000_000
