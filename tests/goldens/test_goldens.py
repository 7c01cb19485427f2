"""Every golden case of this checkout, and every shared one when the shared folder is there, must pass."""

from dataclasses import replace
from pathlib import Path

import pytest

from tests.goldens.harness import available_cases, check_case, check_file, load_handlers, read_case, read_family

COMMITTED = sorted((Path(__file__).parent / "cases").glob("*.safetensors"))
SUPPORTED = [path for path in available_cases() if read_family(path) in load_handlers()]

PREPARED = [
    path
    for path in SUPPORTED
    if read_family(path).startswith(
        (
            "dit",
            "wan_vae",
            "sf_",
            "sfu_causal",
            "sfu_pose",
            "e2e",
            "mi2v_loop",
            "poze_",
            "ua_dit",
            "bindweave_d",
            "s2v_dit",
            "animate_dit",
        )
    )
]


@pytest.mark.parametrize("path", SUPPORTED, ids=lambda path: path.stem)
def test_golden_case_is_reproduced(path: Path) -> None:
    outcome = check_file(path)
    assert outcome.status == "PASS", outcome.line()


@pytest.mark.parametrize("path", PREPARED, ids=lambda path: path.stem)
def test_golden_case_is_reproduced_by_networks_prepared_for_inference(path: Path) -> None:
    outcome = check_file(path, prepared=True)
    assert outcome.status == "PASS", outcome.line()


def test_values_on_the_way_are_compared_where_both_sides_have_them() -> None:
    case = read_case(next(path for path in COMMITTED if path.stem == "dit_ti2v_tiny"))
    middle = next(name for name in case.expected if name.startswith("mid."))
    fewer = replace(case, tensors={name: tensor for name, tensor in case.tensors.items() if name != middle})
    assert check_case(fewer).status == "PASS"
    wrong = replace(case, tensors={**case.tensors, middle: case.tensors[middle] + 1})
    assert check_case(wrong).status == "FAIL"


def test_committed_cases_stay_small() -> None:
    assert sum(path.stat().st_size for path in COMMITTED) <= 7_000_000
