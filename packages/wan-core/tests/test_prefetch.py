"""While one part computes the next one comes, where there is room for both."""

from typing import Any

import pytest
import torch
from torch import nn

from wan_core.errors import CheckpointError
from wan_core.memory import RunFacts
from wan_core.runtime import Between, Placed, Route, Stop
from wan_core.tasks import GenerationRequest

from .lanes import LateLane
from .tiny_model import Model, small

CPU = torch.device("cpu")


class Loading:
    """A part on a lane, whose loads fail as the list says."""

    def __init__(self, between: Between = Between.DROP, fails: list[BaseException] | None = None) -> None:
        self.fails = fails or []
        self.placed: Placed[nn.Module] = Placed(self._load, CPU, between=between)
        self.placed.lane = self.lane = LateLane()

    def _load(self, _: torch.device) -> nn.Module:
        if self.fails:
            raise self.fails.pop()
        return nn.Linear(2, 2)


def test_what_was_fetched_early_is_there_when_it_is_used_and_was_loaded_once() -> None:
    part = Loading()
    part.lane.done = 7
    part.placed.prefetch()
    part.placed.prefetch()
    assert part.lane.log == ["begun"]
    assert part.lane.awaited == 7  # its memory may be read by work before
    assert not part.placed.is_loaded
    with part.placed.active():
        assert part.lane.log == ["begun", "made"]
        part.placed.prefetch()
    assert part.placed.loads == 1
    assert part.lane.log == ["begun", "made"]


def test_what_had_no_room_beside_is_loaded_when_it_is_used_and_other_failures_are_told_then() -> None:
    full = Loading(fails=[torch.OutOfMemoryError("no room")])
    full.placed.prefetch()
    assert isinstance(full.placed.module(), nn.Linear)
    assert full.placed.loads == 2
    damaged = Loading(fails=[CheckpointError("damaged")])
    damaged.placed.prefetch()
    with pytest.raises(CheckpointError, match="damaged"):
        damaged.placed.module()


def test_where_copies_do_not_run_beside_the_work_nothing_comes_early() -> None:
    part: Placed[nn.Module] = Placed(lambda _: nn.Linear(2, 2), CPU)
    part.prefetch()
    assert part.loads == 0


def test_a_part_that_came_early_and_is_passed_by_leaves() -> None:
    first, second, third = (Loading() for _ in range(3))
    route = Route([Stop((first.placed,), (second.placed,)), Stop((second.placed,)), Stop((third.placed,))])
    route.used(first.placed)
    route.used(third.placed)
    assert second.lane.log == ["begun", "made"]
    assert not second.placed.is_loaded
    route.used(first.placed)
    route.end()
    assert second.lane.log == ["begun", "made"] * 2
    assert second.placed.loads == 2
    assert not second.placed.is_loaded
    assert third.lane.log == []


def test_the_second_expert_comes_while_the_first_computes_where_both_fit() -> None:
    model = Model("tiny-moe")
    pipeline = model.pipeline
    pipeline.run = RunFacts(preset=model.preset, dtype=torch.float32)
    inputs = pipeline.plan(GenerationRequest(**small(num_inference_steps=6)))
    small_plan = pipeline.place([inputs], free=10**7)
    assert small_plan is not None
    assert "denoise high" not in small_plan.early
    pipeline.place([inputs], free=10**9)
    lanes = {}
    for name, part in pipeline._parts(pipeline.run).items():
        lanes[name] = part.lane = LateLane()
    seen = []

    def watch(steps: Any, phase: str) -> Any:
        for step in steps:
            yield step
            seen.append(tuple(name for name in ("dit low", "vae") if lanes[name].log))

    pipeline.encode_prompts([inputs])
    assert lanes["dit high"].log == ["begun"]
    assert sum(chunk.shape[1] for chunk in pipeline.stream(inputs, progress=watch)) == 5
    assert seen[0] == ("dit low",)  # before its turn
    assert seen[-1] == ("dit low", "vae")
    assert all(lane.log == ["begun", "made"] for name, lane in lanes.items() if name != "text_encoder")
    assert model.log == ["high", "low"]
