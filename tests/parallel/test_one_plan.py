"""Processes of one video decide as one what stays on their devices, and which videos are there."""

import pytest
import torch

from wan_core.errors import ConfigError
from wan_core.loading import RuntimeOptions, load_pipeline
from wan_core.memory import MemoryPlan
from wan_core.pipeline import Pipeline
from wan_core.runtime import Between, Together
from wan_core.tasks import GenerationRequest

from .threads import run_video_in_threads

REQUEST = GenerationRequest(prompt="a red circle", seed=1)


@pytest.fixture(scope="module")
def loaded() -> Pipeline:
    return load_pipeline("tiny-moe", options=RuntimeOptions(device="cpu", dtype="float32"))


def of(loaded: Pipeline, together: Together) -> Pipeline:
    """The model as one of several processes has it."""
    parts = load_pipeline("tiny-moe", options=RuntimeOptions(device="cpu", dtype="float32")).components
    return Pipeline(loaded.preset, parts, latent_spec=loaded.latent_spec, together=together, run=loaded.run)


def test_processes_of_a_video_plan_by_the_least_memory_that_one_has(
    loaded: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = {0: 10**9, 1: 17 * 10**6, 2: 10**8}
    alone = [
        of(loaded, Together(device=torch.device("cpu"))).place([loaded.plan(REQUEST)], free=each)
        for each in free.values()
    ]
    assert alone[0] != alone[1], "each by itself would decide in another way"

    def placed(together: Together) -> tuple[MemoryPlan | None, set[Between]]:
        pipeline = of(loaded, together)
        plan = pipeline.place([loaded.plan(REQUEST)], free=free[together.processes.rank])
        return plan, {part.between for part in pipeline.components.networks}

    found = run_video_in_threads(3, placed, monkeypatch)
    assert [each for each, _ in found] == [(alone[1], {Between.DROP})] * 3
    assert [sent["all-reduce"] for _, sent in found] == [1] * 3


def test_what_one_process_has_no_memory_for_all_refuse(loaded: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(together: Together) -> str:
        with pytest.raises(ConfigError) as error:
            of(loaded, together).place([loaded.plan(REQUEST)], free=10 ** (9 - 3 * together.processes.rank))
        return str(error.value)

    (first, _), (second, _) = run_video_in_threads(2, refused, monkeypatch)
    assert first == second
    assert "1.0 MB are free" in first


def test_amounts_that_nobody_knows_stay_unknown_and_the_first_process_speaks_for_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def agreed(together: Together) -> object:
        rank = together.processes.rank
        return together.least(None, rank + 3, None if rank else 7), together.as_first([rank, "said"])

    found = [each for each, _ in run_video_in_threads(2, agreed, monkeypatch)]
    assert found == [((None, 3, 7), [0, "said"])] * 2
    assert Together(device=torch.device("cpu")).least(None, 5) == (None, 5)
