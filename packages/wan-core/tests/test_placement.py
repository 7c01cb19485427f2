"""Components load at first use and leave the device as told."""

import pytest
import torch
from torch import nn

from wan_core.errors import BackendError, RequestError
from wan_core.runtime import Between, Placed, resolve_device, resolve_dtype

CPU = torch.device("cpu")


class Loads:
    """Counts how often a component was loaded."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, device: torch.device) -> nn.Module:
        self.count += 1
        return nn.Linear(2, 2, device=device)


@pytest.mark.parametrize(("between", "loads"), [(Between.KEEP, 1), (Between.HOST, 1), (Between.DROP, 2)])
def test_two_uses_load_as_often_as_the_policy_says(between: Between, loads: int) -> None:
    load = Loads()
    placed = Placed(load, CPU, between=between)
    assert not placed.is_loaded
    for _ in range(2):
        with placed.active() as module:
            assert module.weight.device == CPU
    assert load.count == loads
    assert placed.is_loaded == (between is not Between.DROP)


def test_a_failure_inside_still_frees_the_component() -> None:
    placed = Placed(Loads(), CPU, between=Between.DROP)
    with pytest.raises(KeyError), placed.active():
        raise KeyError
    assert not placed.is_loaded


def test_the_cpu_computes_in_float32_unless_told() -> None:
    assert resolve_dtype(None, CPU) is torch.float32
    assert resolve_dtype("bf16", CPU) is torch.bfloat16
    assert resolve_dtype(None, torch.device("mps")) is torch.bfloat16


@pytest.mark.parametrize("name", ["int8", "float64", ""])
def test_other_dtypes_are_refused(name: str) -> None:
    with pytest.raises(RequestError, match="dtype must be one of"):
        resolve_dtype(name, CPU)


@pytest.mark.parametrize("name", ["gpu", "meta", "xpu"])
def test_other_devices_are_refused(name: str) -> None:
    with pytest.raises(RequestError, match="device must be"):
        resolve_device(name)


def test_an_absent_gpu_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(BackendError, match="use --device cpu"):
        resolve_device("cuda:0")
