"""The checker notices: with one weight or one input changed, a golden case of every family must fail."""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from tests.goldens.harness import (
    GoldenCase,
    Outcome,
    available_cases,
    check_case,
    load_handlers,
    read_case,
    read_family,
)

TRIES = 6


@cache
def smallest_cases() -> dict[str, Path]:
    """The smallest file of each family that has a handler; a committed file goes before a shared one."""
    by_size = sorted(available_cases(), key=lambda path: (path.parent.name != "cases", path.stat().st_size))
    chosen: dict[str, Path] = {}
    for path in by_size:
        family = read_family(path)
        if family in load_handlers():
            chosen.setdefault(family, path)
    return chosen


def changed(tensor: Tensor) -> Tensor:
    """The tensor with values that differ but stay in the same range: noise on floats, other orders of integers."""
    if tensor.is_floating_point():
        spread = tensor.double().nan_to_num(0.0).std(correction=0).item()
        noise = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(0)) * max(0.5 * spread, 0.1)
        return (tensor.double() + noise).to(tensor.dtype)
    if tensor.dtype == torch.bool:
        return ~tensor
    for axis in range(tensor.ndim):
        rolled = tensor.roll(1, dims=axis)
        if not torch.equal(rolled, tensor):
            return rolled
    return tensor + 1


def changed_number(value: Any) -> tuple[Any, bool]:
    """A JSON value with its first number raised by one, and whether there was one."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value + 1, True
    if not isinstance(value, dict | list):
        return value, False
    for key, item in value.items() if isinstance(value, dict) else enumerate(value):
        other, found = changed_number(item)
        if found:
            copy = value.copy()
            copy[key] = other
            return copy, True
    return value, False


def candidates(case: GoldenCase, prefix: str) -> list[str]:
    """Tensors to try, spread over the case, without the weights that its notes name: they are the insensitive ones."""
    noted = set(re.findall(r"[\w.]*\w", case.metadata.get("notes", "")))
    names = [name for name in sorted(case.tensors) if name.startswith(prefix)]
    sensitive = [name for name in names if prefix == "in." or name.removeprefix(prefix) not in noted] or names
    step = max(1, len(sensitive) // TRIES)
    return sensitive[step // 2 :: step][:TRIES]


def mutants(case: GoldenCase, prefix: str) -> Iterator[tuple[str, GoldenCase]]:
    for name in candidates(case, prefix):
        yield name, replace(case, tensors={**case.tensors, name: changed(case.tensors[name])})
    if prefix == "weights.":
        return
    if "inputs" in case.metadata:
        records = json.loads(case.metadata["inputs"])
        yield "inputs", replace(case, metadata={**case.metadata, "inputs": json.dumps([*records[1:], records[0]])})
    call, found = changed_number(case.call)
    if found:
        yield "call", replace(case, call=call)


def verdict(case: GoldenCase) -> Outcome | None:
    """The checker's verdict, or None when the code refuses the changed values, which shows nothing about numbers."""
    try:
        return check_case(case)
    except Exception:
        return None


def has_weights(path: Path) -> bool:
    with safe_open(path, framework="pt") as file:
        return any(name.startswith("weights.") for name in file.keys())  # noqa: SIM118 - safe_open is no mapping


def assert_noticed(path: Path, prefix: str) -> None:
    case = read_case(path)
    tried = []
    for name, mutant in mutants(case, prefix):
        outcome = verdict(mutant)
        if outcome is not None and outcome.status == "FAIL":
            return
        tried.append(name)
    raise AssertionError(f"{case.name} does not fail although each of these was changed: {tried}")


@pytest.mark.parametrize("family", sorted(name for name, path in smallest_cases().items() if has_weights(path)))
def test_a_changed_weight_fails_the_case(family: str) -> None:
    assert_noticed(smallest_cases()[family], "weights.")


@pytest.mark.parametrize("family", sorted(smallest_cases()))
def test_a_changed_input_fails_the_case(family: str) -> None:
    assert_noticed(smallest_cases()[family], "in.")
