"""Components load at first use and leave the device as told."""

from functools import partial

import pytest
import torch
from torch import nn

from wan_core.checkpoints import assign_tensor, build_on_meta
from wan_core.errors import BackendError, RequestError
from wan_core.presets import get_preset
from wan_core.runtime import Between, HostCopy, Placed, resolve_device, resolve_dtype
from wan_core.runtime.host_copy import _Arena

CPU = torch.device("cpu")


class Loads:
    """Counts how often a component was loaded, plainly or through a copy in host memory."""

    def __init__(self) -> None:
        self.count = 0
        self.copies: list[HostCopy] = []

    def __call__(self, device: torch.device) -> nn.Module:
        self.count += 1
        torch.manual_seed(0)
        return nn.Linear(2, 3, device=device)

    def through(self, host: HostCopy) -> nn.Module:
        network = self(CPU)
        for name, tensor in [*network.named_parameters()]:
            assign_tensor(network, name, host.place(name, tensor.detach()))
        host.bind(network)
        self.copies.append(host)
        return network


def places(between: Between) -> tuple[Loads, Placed[nn.Module]]:
    load = Loads()
    return load, Placed(load, CPU, between=between, load_through=load.through)


@pytest.mark.parametrize(("between", "loads"), [(Between.KEEP, 1), (Between.HOST, 1), (Between.DROP, 2)])
def test_two_uses_load_as_often_as_the_policy_says(between: Between, loads: int) -> None:
    load, placed = places(between)
    assert not placed.is_loaded
    for _ in range(2):
        with placed.active() as module:
            assert module.weight.device == CPU
            assert placed.is_loaded
    assert load.count == placed.loads == loads
    assert placed.is_loaded == (between is Between.KEEP)


def test_without_a_way_through_host_memory_a_component_is_loaded_again() -> None:
    load = Loads()
    placed = Placed(load, CPU, between=Between.HOST)
    for _ in range(2):
        with placed.active():
            pass
    assert load.count == 2


def test_a_failure_inside_still_frees_the_component() -> None:
    _, placed = places(Between.DROP)
    with pytest.raises(KeyError), placed.active():
        raise KeyError
    assert not placed.is_loaded


def test_weights_that_did_not_change_are_never_copied_down() -> None:
    load, placed = places(Between.HOST)
    used = []
    for _ in range(3):
        with placed.active() as module:
            used.append(module(torch.ones(1, 2)))
    assert load.copies[0].copied_down == 0
    assert torch.equal(used[0], used[1])
    assert torch.equal(used[0], used[2])


def test_of_changed_weights_their_own_bytes_are_copied_down() -> None:
    load, placed = places(Between.HOST)
    with placed.active() as module, torch.no_grad():
        module.bias.add_(1)
    with placed.active() as module:
        changed = module.bias.detach().clone()
    assert load.copies[0].copied_down == 3 * 4
    assert torch.equal(changed, Loads()(CPU).bias + 1)


def test_a_dropped_component_comes_back_with_what_was_changed_in_it() -> None:
    _, placed = places(Between.DROP)
    with placed.active() as module:
        module.weight = nn.Parameter(torch.full((3, 2), 7.0))
    for _ in range(2):
        with placed.active() as module:
            assert module.weight.eq(7).all()
    assert placed.loads == 3


def test_a_component_with_added_layers_is_not_dropped() -> None:
    load, placed = places(Between.DROP)
    with placed.active() as module:
        module.added = nn.Linear(1, 1)
    with placed.active() as again:
        assert again is module
    assert load.count == 1


def test_page_locked_blocks_take_little_more_than_the_weights_of_a_large_network() -> None:
    part = get_preset("t2v-A14B").part("dit")
    network = build_on_meta(partial(part.family.build, part.config)).to(torch.bfloat16)
    with torch.device("meta"):
        arena = _Arena(page_locked=False)
        needed = sum(arena.like(tensor).nbytes for tensor in network.parameters())
    assert needed < arena.allocated < 1.1 * needed


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
