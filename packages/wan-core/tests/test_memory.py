"""What a run takes on the device phase by phase, and what stays there; numbers of bytes, no device."""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import pytest
import torch

from wan_core.errors import ConfigError
from wan_core.memory import (
    TILED_PHASES,
    MemoryPlan,
    Phase,
    RunFacts,
    WorkingMemory,
    describe,
    memory_by_phase,
    phases_of,
    plan_memory,
)
from wan_core.presets import get_preset
from wan_core.tasks import TaskInputs

GB = 10**9


@cache
def weights_of(name: str) -> Mapping[str, int]:
    return RunFacts(preset=get_preset(name), dtype=torch.bfloat16).weights


def run_of(name: str, **values: Any) -> RunFacts:
    run = RunFacts(preset=get_preset(name), dtype=torch.bfloat16, **values)
    if not run.in_blocks:
        vars(run)["weights"] = weights_of(name)  # which are counted once for all tests
    return run


def videos(name: str, count: int = 1, **values: Any) -> Sequence[TaskInputs[Any]]:
    preset = get_preset(name)
    return [preset.plan(preset.task.request_type(prompt="p", seed=seed, **values)) for seed in range(count)]


def peaks(plan: MemoryPlan) -> dict[str, float]:
    return {phase.name: round(phase.peak / GB, 1) for phase in plan.phases}


def test_a_phase_takes_its_parts_and_those_that_stay_once_each() -> None:
    phases = [Phase("one", ("a",), 5), Phase("two", ("b", "c"), 7)]
    rows = memory_by_phase(phases, {"a": 10, "b": 100, "c": 1000}, {"c"})
    assert [(row.name, row.resident, row.peak) for row in rows] == [("one", 1010, 1015), ("two", 1100, 1107)]


def test_weights_are_counted_as_they_will_be_read() -> None:
    weights = run_of("t2v-A14B").weights
    assert weights == {
        "dit high": 28_950_640_896, "dit low": 28_950_640_896, "vae": 507_570_124, "text_encoder": 11_361_820_672,
    }  # fmt: skip


def test_what_two_experts_at_720p_take_with_everything_on_the_device_does_not_fit_into_80_gb() -> None:
    run, jobs = run_of("t2v-A14B", offload=False), videos("t2v-A14B")
    assert peaks(plan_memory(run, jobs, free=None))["decode"] == pytest.approx(84.9, abs=0.5)
    with pytest.raises(
        ConfigError, match=r"needs 8\d\.\d GB on the device at decode with --offload_model False"
    ) as said:
        plan_memory(run, jobs, free=80 * GB)
    assert "80.0 GB are free; --offload_model True needs 37.0 GB" in str(said.value)


def test_by_default_all_stays_that_fits() -> None:
    run, jobs = run_of("t2v-A14B"), videos("t2v-A14B")
    kept = {free: plan_memory(run, jobs, free=free * GB).stays for free in (139, 80, 40)}
    assert kept == {139: frozenset(run.weights), 80: {"dit high", "dit low", "vae"}, 40: {"vae"}}


@pytest.mark.parametrize(
    ("name", "on_host", "limit"), [("ti2v-5B", frozenset({"text_encoder"}), 17.0), ("t2v-A14B", frozenset(), 38.0)]
)
def test_offloading_takes_no_more_than_the_largest_phase_alone(
    name: str, on_host: frozenset[str], limit: float
) -> None:
    run, jobs = run_of(name, offload=True, on_host=on_host), videos(name)
    plan = plan_memory(run, jobs, free=None)
    assert plan.largest.peak <= limit * GB
    alone = memory_by_phase(phases_of(run, jobs[0], run.weights), run.weights, ())
    assert plan.largest.peak == max(row.peak for row in alone)


def test_what_fits_in_no_way_is_refused_with_what_would_make_it_smaller() -> None:
    with pytest.raises(ConfigError, match=r"even where parts leave .* 8\.0 GB are free; take a smaller --size"):
        plan_memory(run_of("t2v-A14B"), videos("t2v-A14B"), free=8 * GB)


def test_two_experts_at_720p_fit_into_24_gb_where_their_blocks_pass_through() -> None:
    run, jobs = run_of("t2v-A14B"), videos("t2v-A14B")
    plan = plan_memory(run, jobs, free=24 * GB, host_free=64 * GB)
    assert plan.in_blocks == {"dit high", "dit low"}
    assert peaks(plan) == {"text": 11.7, "denoise high": 10.2, "denoise low": 10.8, "decode": 15.8}
    assert "text encoder go off the device after use, the network's blocks after each; about" in describe(plan, run)
    assert not plan.waits
    asked = plan_memory(run_of("t2v-A14B", in_blocks=True, offload=True), jobs, free=None)
    assert asked.in_blocks == plan.in_blocks
    assert asked.largest.peak < 16.1 * GB
    with pytest.raises(ConfigError, match=r"24\.0 GB are free; --offload_model blocks needs 15\.8"):
        plan_memory(run_of("t2v-A14B", offload=True), jobs, free=24 * GB)
    with pytest.raises(ConfigError, match=r"24\.0 GB are free; --offload_model blocks needs 1"):
        plan_memory(run_of("t2v-A14B", offload=False), jobs, free=24 * GB)
    assert not plan_memory(run, jobs, free=40 * GB).in_blocks


def test_blocks_need_host_memory_and_are_not_divided_as_well() -> None:
    jobs = videos("t2v-A14B")
    with pytest.raises(ConfigError, match=r"copy that takes 29\.0 GB of host memory, and 16\.0 GB are free"):
        plan_memory(run_of("t2v-A14B", in_blocks=True, offload=True), jobs, free=None, host_free=16 * GB)
    with pytest.raises(ConfigError, match="take a smaller --size"):  # no copy has room
        plan_memory(run_of("t2v-A14B"), jobs, free=24 * GB, host_free=16 * GB)
    divided = RunFacts(preset=get_preset("t2v-A14B"), dtype=torch.bfloat16, divided={"dit": 2})
    with pytest.raises(ConfigError, match="take a smaller --size"):
        plan_memory(divided, jobs, free=15 * GB)


@pytest.mark.parametrize(
    ("free", "values", "early"),
    [
        (139, {}, {"text": ("dit high",), "denoise high": ("dit low",), "denoise low": ("vae",)}),
        (80, {}, {"text": ("dit high",), "denoise high": ("dit low",), "denoise low": ("vae",)}),
        (40, {"offload": True}, {}),
        (24, {}, {"text": ("dit high",), "denoise high": ("dit low",), "denoise low": ("vae",)}),
    ],
)
def test_the_next_part_comes_early_where_no_phase_takes_more_than_the_largest(
    free: int, values: dict[str, Any], early: Mapping[str, tuple[str, ...]]
) -> None:
    run, jobs = run_of("t2v-A14B", **values), videos("t2v-A14B")
    plan = plan_memory(run, jobs, free=free * GB, host_free=128 * GB)
    assert plan.early == early
    weights = run_of("t2v-A14B", in_blocks=True).weights if plan.in_blocks else run.weights
    for phase in plan.phases:
        there = {*phase.parts, *plan.early.get(phase.name, ())}
        assert sum(weights[name] for name in there) <= phase.resident
        assert phase.peak <= max(each.peak for each in plan.phases if each.name not in plan.early)


def test_the_largest_video_of_a_run_decides() -> None:
    run, jobs = run_of("t2v-1.3B"), [*videos("t2v-1.3B"), *videos("t2v-1.3B", width=1280, height=720)]
    assert plan_memory(run, jobs, free=None).phases == plan_memory(run, jobs[1:], free=None).phases


def test_the_numbers_are_data() -> None:
    run, jobs = run_of("t2v-1.3B"), videos("t2v-1.3B")
    none = WorkingMemory(per_width=0, per_inner_width=0, decoder_maps=0, other_share=0)
    phases = {phase.name: phase.working for phase in phases_of(run, jobs[0], run.weights, none)}
    assert phases["text"] == phases["decode"] == 0
    keys, latents = 2 * 30 * 2 * 512 * 1536 * 2, 16 * 21 * 60 * 104 * 4
    assert phases["denoise"] == keys + 5 * latents


def test_guidance_in_one_batch_and_a_step_cache_take_more() -> None:
    jobs = videos("t2v-1.3B")
    plain, batched, cached = (
        peaks(plan_memory(run_of("t2v-1.3B", **values), jobs, free=None))["denoise"]
        for values in ({}, {"batched": True}, {"tea_cache": True})
    )
    assert batched > plain
    assert cached == pytest.approx(plain + 3 * 32760 * 1536 * 4 / GB, abs=0.1)


def test_several_processes_divide_tokens_branches_and_weights() -> None:
    jobs = videos("t2v-1.3B")
    run = RunFacts(
        preset=get_preset("t2v-1.3B"), dtype=torch.bfloat16, shares_tokens=4, splits_guidance=True, divided={"dit": 8}
    )
    assert run.weights["dit"] == -(-weights_of("t2v-1.3B")["dit"] // 8)
    alone, shared = (phases_of(each, jobs[0], each.weights)[1].working for each in (run_of("t2v-1.3B"), run))
    assert shared < alone / 2


def test_a_part_waits_in_host_memory_where_reading_it_again_costs_more_bytes() -> None:
    jobs, size = videos("ti2v-5B", 2), run_of("ti2v-5B").weights["dit"]
    for read, waits in ((size, False), (size + 1, True)):  # of what was merged more is read, and what is made of it
        plan = plan_memory(run_of("ti2v-5B", offload=True, reads={"dit": read}), jobs, free=None, host_free=64 * GB)
        assert ("dit" in plan.waits) is waits
    short = plan_memory(run_of("ti2v-5B", offload=True, reads={"dit": 2 * size}), jobs, free=None, host_free=16 * GB)
    assert not short.waits
    alone = plan_memory(
        run_of("ti2v-5B", offload=True, reads={"dit": 2 * size}), jobs[:1], free=None, host_free=64 * GB
    )
    assert not alone.waits


def test_the_plan_is_one_line() -> None:
    run, jobs = run_of("t2v-1.3B"), videos("t2v-1.3B")
    kept = describe(plan_memory(run, jobs, free=48 * GB), run)
    assert kept.startswith("every part stays on the device; about ")
    assert kept.endswith("at most of 48.0 GB that are free, at decode")
    assert describe(plan_memory(run, jobs, free=16 * GB), run).startswith(
        "text encoder goes off the device after use; "
    )


def test_the_autoencoder_works_in_tiles_where_a_phase_would_not_fit_and_nowhere_else() -> None:
    run, jobs = run_of("ti2v-5B", on_host=frozenset({"text_encoder"})), videos("ti2v-5B")
    whole = plan_memory(run, jobs, free=18 * GB)
    assert whole.tiled == frozenset()
    assert "tile" not in describe(whole, run)
    small = plan_memory(run, jobs, free=14 * GB)
    assert small.tiled == {"decode"}
    assert peaks(small)["decode"] < peaks(whole)["decode"] / 2
    assert describe(small, run).endswith("; decode tile by tile")
    shared = run_of("ti2v-5B", on_host=run.on_host, tiling=TILED_PHASES, shares_tokens=4, splits_guidance=True)
    assert describe(plan_memory(shared, jobs, free=None), shared).endswith("tile by tile, decoded by 8 processes")
    asked = plan_memory(run_of("ti2v-5B", on_host=run.on_host, tiling=TILED_PHASES), jobs, free=80 * GB)
    assert asked.tiled == {"decode", "encode"}
    with pytest.raises(ConfigError, match=r"14\.0 GB are free; --vae-tiling on needs 1"):
        plan_memory(run_of("ti2v-5B", on_host=run.on_host, tiling=frozenset()), jobs, free=14 * GB)


def test_an_autoencoder_of_16_bits_takes_half_of_its_memory() -> None:
    jobs = videos("t2v-1.3B")
    full = {phase.name: phase for phase in phases_of(run_of("t2v-1.3B"), jobs[0], weights_of("t2v-1.3B"))}
    run = RunFacts(preset=get_preset("t2v-1.3B"), dtype=torch.bfloat16, vae_dtype=torch.bfloat16)
    assert 2 * run.weights["vae"] == weights_of("t2v-1.3B")["vae"]
    half = {phase.name: phase for phase in phases_of(run, jobs[0], run.weights)}
    assert 0.5 < half["decode"].working / full["decode"].working < 0.55
