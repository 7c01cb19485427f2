"""Every golden case of this checkout, and every shared one when the shared folder is there, must pass."""

from pathlib import Path

import pytest

from tests.goldens.harness import available_cases, check_file, load_handlers, read_family

COMMITTED = sorted((Path(__file__).parent / "cases").glob("*.safetensors"))
SUPPORTED = [path for path in available_cases() if read_family(path) in load_handlers()]


@pytest.mark.parametrize("path", SUPPORTED, ids=lambda path: path.stem)
def test_golden_case_is_reproduced(path: Path) -> None:
    outcome = check_file(path)
    assert outcome.status == "PASS", outcome.line()


def test_committed_cases_stay_small() -> None:
    assert sum(path.stat().st_size for path in COMMITTED) <= 6_000_000
