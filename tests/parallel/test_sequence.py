"""Processes that share the tokens of a forward find what one process finds, and send what they say they send."""

import json
import math
from copy import deepcopy
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from wan_core.errors import ConfigError
from wan_core.models import DiTInputs, WanDiT, WanDiTConfig
from wan_core.models.dit.layout import TokenLayout
from wan_core.models.dit.model import TimeRows
from wan_core.runtime import prepare_model
from wan_core.runtime.mesh import plan_parallel
from wan_core.runtime.sequence_parallel import SequenceLayout, apply_sequence_parallel, cut_points

from .processes import run_together
from .threads import run_in_threads

NUM_LAYERS = 2


def network(num_heads: int) -> WanDiT:
    torch.manual_seed(0)
    config = WanDiTConfig(
        in_dim=3, out_dim=3, dim=6 * num_heads, ffn_dim=20, num_heads=num_heads, num_layers=NUM_LAYERS, freq_dim=8,
        text_dim=6, text_len=5,
    )  # fmt: skip
    return WanDiT(config).eval()


def velocity(model: WanDiT, height: int = 6) -> torch.Tensor:
    """Of 3 frames of 5 x ``height`` / 2 tokens, each of which has a time of its own."""
    generator = torch.Generator().manual_seed(1)
    noisy, context = (torch.randn(shape, generator=generator) for shape in ((2, 3, 3, height, 10), (2, 4, 6)))
    times = torch.tensor([[900.0, 20.0, 400.0], [0.0, 500.0, 500.0]])
    out: torch.Tensor = model(noisy, times, DiTInputs(context=context))
    return out


def velocity_with(model: WanDiT, layout: SequenceLayout, height: int = 6) -> torch.Tensor:
    model = deepcopy(model)  # each thread has its own
    model.layout = layout
    return velocity(model, height)


@pytest.mark.parametrize(("world", "num_heads"), [(2, 12), (3, 4), (4, 4), (4, 6), (5, 12), (6, 4), (8, 12), (8, 40)])
@pytest.mark.parametrize("passes_on", [True, False], ids=["ring", "gathered"])
def test_any_number_of_processes_and_heads_finds_what_one_finds(
    world: int, num_heads: int, passes_on: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = network(num_heads)
    with torch.no_grad():
        expected = velocity(model)
    plan = plan_parallel(world, num_heads=num_heads, sequence=world)
    found = run_in_threads(
        plan.ring, plan.ulysses, lambda layout: velocity_with(model, layout), monkeypatch, passes_on=passes_on
    )
    for each, _ in found:
        torch.testing.assert_close(each, expected, rtol=0, atol=1e-5)
        assert torch.equal(each, found[0][0]), "all have the same"


@pytest.mark.parametrize(("ring", "ulysses"), [(1, 2), (1, 4), (2, 1), (4, 1), (2, 2)])
@pytest.mark.parametrize("passes_on", [True, False], ids=["ring", "gathered"])
def test_a_block_sends_what_the_page_says(
    ring: int, ulysses: int, passes_on: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    num_heads, batch, tokens = 4, 2, 3 * 4 * 5  # which 4 processes divide evenly
    dim, world, model = 6 * num_heads, ring * ulysses, network(num_heads)
    found = run_in_threads(
        ring, ulysses, lambda layout: velocity_with(model, layout, height=8), monkeypatch, passes_on=passes_on
    )
    own = batch * tokens * dim * 4 // world  # one tensor of the tokens of one process
    keys, last = NUM_LAYERS * (ring - 1), (world - 1) * batch * tokens * 12 * 4 // world
    expected = {
        "all-to-all": 2 * NUM_LAYERS * (ulysses > 1),
        "all-to-all bytes": NUM_LAYERS * 4 * own * (ulysses - 1) // ulysses,
        "send": keys if passes_on else 0,
        "send bytes": keys * 2 * own if passes_on else 0,
        "all-gather": 1 if passes_on or ring == 1 else 1 + NUM_LAYERS,
        "all-gather bytes": last if passes_on else last + keys * 2 * own,
    }
    for _, sent in found:
        assert dict(sent) == {name: count for name, count in expected.items() if count}


def test_runs_cover_a_sequence_and_differ_by_one_token_at_most() -> None:
    for length in (0, 1, 7, 60, 32760):
        for parts in (1, 2, 3, 7, 8):
            cuts = cut_points(length, parts)
            runs = [stop - start for start, stop in pairwise(cuts)]
            assert (cuts[0], cuts[-1], len(runs)) == (0, length, parts)
            assert max(runs) - min(runs) <= 1


def test_segments_are_cut_where_the_tokens_are(monkeypatch: pytest.MonkeyPatch) -> None:
    def held(layout: SequenceLayout) -> torch.Tensor:
        return torch.tensor(layout.segments((4, 1, 6)))

    found = [each.tolist() for each, _ in run_in_threads(1, 3, held, monkeypatch)]
    assert found == [[3, 0, 0], [1, 1, 2], [0, 0, 4]]


@dataclass
class FakeMesh:
    """Sizes of a mesh by the names of its dimensions, and this process the first."""

    sizes: dict[str, int]
    device_type: str = "cpu"

    def __getitem__(self, names: str | tuple[str, ...]) -> "FakeMesh":
        return FakeMesh({name: self.sizes[name] for name in ((names,) if isinstance(names, str) else names)})

    def size(self) -> int:
        return math.prod(self.sizes.values())

    def get_group(self) -> None:
        return None

    def get_local_rank(self) -> int:
        return 0

    def _flatten(self, name: str) -> "FakeMesh":
        return FakeMesh({name: self.size()})


def test_heads_that_the_processes_do_not_divide_are_refused() -> None:
    model = network(6)
    with pytest.raises(ConfigError, match="4 processes cannot divide 6 heads; take a divisor of 6"):
        apply_sequence_parallel(model, FakeMesh({"ring": 2, "ulysses": 4}))  # type: ignore[arg-type]
    assert type(model.layout) is TokenLayout
    apply_sequence_parallel(model, FakeMesh({"ring": 2, "ulysses": 3}))  # type: ignore[arg-type]
    assert (model.layout.everyone.count, model.layout.passes_on) == (6, False)


def test_a_process_has_the_times_of_its_own_tokens_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    time = TimeRows(head=torch.arange(4.0).view(1, 4, 1), blocks=torch.zeros(1, 4, 6, 1), lengths=(3, 3, 3, 3))

    def rows(layout: SequenceLayout) -> torch.Tensor:
        own = time.within(layout)
        assert own.blocks.shape[1] == len(own.lengths)
        return torch.stack([own.head.flatten(), torch.tensor(own.lengths).float()])

    found = [each.tolist() for each, _ in run_in_threads(1, 3, rows, monkeypatch)]
    assert found == [[[0, 1], [3, 1]], [[1, 2], [2, 2]], [[2, 3], [1, 3]]]
    whole = [each.tolist() for each, _ in run_in_threads(1, 4, rows, monkeypatch)]
    assert whole == [[[0, 1], [3, 0]], [[1, 2], [3, 0]], [[2, 3], [3, 0]], [[2, 3], [0, 3]]]


def test_a_trained_network_is_not_divided() -> None:
    with pytest.raises(ConfigError, match="in inference alone"):
        prepare_model(network(4), inference=False, sequence=object())  # type: ignore[arg-type]


def differences(world: int, worker: str, folder: Path) -> dict[str, list[float]]:
    """The largest difference to one process that any of them found, and how large it may be, by case."""
    status, said = run_together(world, Path(__file__).with_name(worker), folder, seconds=1500)
    assert status == 0, said[-4000:]
    found = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(world)]
    assert all(each.keys() == found[0].keys() for each in found)
    return {case: [max(each[case][0] for each in found), tolerance] for case, (_, tolerance) in found[0].items()}


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 3, 4])
def test_every_network_finds_the_same_in_every_arrangement(world: int, tmp_path: Path) -> None:
    found = differences(world, "networks_worker.py", tmp_path)
    assert {case: pair for case, pair in found.items() if not pair[0] <= pair[1]} == {}


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 4])
def test_every_model_ends_at_the_same_latents_in_every_arrangement(world: int, tmp_path: Path) -> None:
    found = differences(world, "latents_worker.py", tmp_path)
    assert {case: pair for case, pair in found.items() if not pair[0] <= pair[1]} == {}
