"""Blocks that pass through the device: no copy is used before it is there, none is written over what still runs."""

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from wan_core.checkpoints import DIT, MemorySource, load_model, passing_bytes, weight_bytes
from wan_core.memory import BLOCK_PLACES
from wan_core.models import DiTInputs
from wan_core.presets import get_preset
from wan_core.runtime import Between, HostCopy, Placed, block_stream, prepare_model

from .lanes import LateLane
from .networks import build

CPU = torch.device("cpu")
CONFIG = replace(get_preset("tiny-t2v").dit, num_layers=5)


def weights() -> MemorySource:
    torch.manual_seed(0)
    network = build(CONFIG)
    for weight in network.parameters():
        nn.init.normal_(weight, std=0.05)
    return MemorySource(dict(network.state_dict()))


def loaded(source: MemorySource, host: HostCopy | None = None) -> Any:
    place = None if host is None else host.place
    network = load_model(CONFIG, source, family=DIT, dtype=torch.float32, place=place)
    if host is not None:
        host.bind(network)
    prepare_model(network, inference=True)
    return network


@torch.no_grad()
def velocity(network: Any, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(1, CONFIG.in_dim, 2, 4, 4, generator=generator)
    inputs = DiTInputs(context=torch.randn(1, 3, CONFIG.text_dim, generator=generator))
    found: Tensor = network(noise, torch.full((1,), 500.0), inputs)
    return found


class Passing:
    """A network whose blocks pass through two places, by copies that come as late as they may."""

    def __init__(self, source: MemorySource) -> None:
        self.lane, self.order, self.last = LateLane(), list[int](), dict[int, int]()
        self.host: HostCopy | None = None
        self.placed: Placed[Any] = Placed(lambda _: loaded(source), CPU, load_through=partial(self._through, source))
        self.placed.in_blocks, self.placed.lane, self.placed.between = True, self.lane, Between.DROP

    def _through(self, source: MemorySource, host: HostCopy) -> Any:
        host.lane, self.host = self.lane, host
        network = loaded(source, host)
        for index, block in enumerate(network.blocks):
            block.register_forward_hook(partial(self._ran, index))
        return network

    def _ran(self, index: int, block: nn.Module, *_: Any) -> None:
        self.lane.done += 1
        self.order.append(index)
        self.last[_place(block)] = self.lane.done


def _place(block: nn.Module) -> int:
    return next(block.parameters()).untyped_storage().data_ptr()


def test_a_network_in_blocks_computes_the_same_with_two_blocks_on_the_device() -> None:
    source = weights()
    plain, passing = loaded(source), Passing(source)
    with passing.placed.active() as network:
        for seed in (0, 1, 2):
            torch.testing.assert_close(velocity(network, seed), velocity(plain, seed), rtol=1e-6, atol=1e-6)
        assert {name for name, _ in network.named_parameters()} == {name for name, _ in plain.named_parameters()}
        storages = {_place(block): next(block.parameters()).untyped_storage() for block in network.blocks}
        around = sum(each.nbytes for name, each in network.named_parameters() if not name.startswith("blocks."))
    assert passing.order == [0, 1, 2, 3, 4] * 3
    assert len(storages) == BLOCK_PLACES == block_stream.PLACES
    planned = passing_bytes(CONFIG, DIT, torch.float32, BLOCK_PLACES)
    assert planned <= around + sum(each.nbytes() for each in storages.values()) < planned + 512 * 2 * 40
    assert planned < weight_bytes(CONFIG, DIT, torch.float32)


def test_no_block_is_copied_over_one_that_may_still_run(monkeypatch: pytest.MonkeyPatch) -> None:
    passing = Passing(weights())
    written = []

    def copy(pairs: Any) -> None:
        listed = list(pairs)
        place = listed[0][0].untyped_storage().data_ptr()
        written.append(place)
        assert passing.lane.awaited >= passing.last.get(place, 0), "the copy waits for the block that was there"
        LateLane.copy(passing.lane, listed)

    monkeypatch.setattr(passing.lane, "copy", copy)
    with passing.placed.active() as network:
        velocity(network)
        velocity(network)
    assert len(written) > 2 * 5
    assert passing.lane.awaited == passing.lane.done  # memory that is freed waits, too


def test_blocks_that_are_left_out_or_out_of_order_are_fetched_when_they_run() -> None:
    source = weights()
    plain, passing = loaded(source), Passing(source)
    seen: dict[int, Tensor] = {}
    with passing.placed.active() as network, torch.no_grad():
        for index in (3, 1, 4, 4, 0):
            network.blocks[index].register_forward_pre_hook(
                lambda block, _, index=index: seen.update({index: next(block.parameters()).clone()})
            )
        velocity(network)
        for index in (3, 1, 4, 4, 0):
            with pytest.raises(TypeError):
                network.blocks[index]()  # its hooks have run
            assert torch.equal(seen[index], next(plain.blocks[index].parameters()))


@pytest.mark.parametrize("between", [Between.DROP, Between.HOST])
def test_a_network_in_blocks_leaves_and_comes_again(between: Between) -> None:
    passing = Passing(weights())
    passing.placed.between = between
    found = []
    for _ in range(2):
        with passing.placed.active() as network:
            found.append(velocity(network))
    assert torch.equal(*found)
    assert passing.placed.loads == (1 if between is Between.HOST else 2)
    assert passing.host is not None
    assert passing.host.copied_down == 0


def test_what_is_changed_in_a_passing_block_is_not_lost_silently() -> None:
    passing = Passing(weights())
    network = passing.placed.module()
    with torch.no_grad():
        network.blocks[2].ffn[0].bias.add_(1)
    with pytest.raises(RuntimeError, match=r"blocks\.2\..* was changed, and blocks that pass"):
        passing.placed.rest()
