"""What is planned for each phase of a run is what a run on a GPU that is not there takes, at real widths and sizes."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from tools.simulated_forwards import followers, shortened
from tools.simulated_runs import RunPhase, simulate
from wan_core.memory import RunFacts, plan_memory
from wan_core.presets import Preset, get_preset
from wan_core.tasks import GenerationRequest

GB = 10**9
SLACK = 0.1 * GB  # what a phase finds there of the one before


def with_few_layers(name: str) -> Preset:
    """The model with two blocks, at its widths: what a phase needs besides weights and keys does not know how many."""
    preset = get_preset(name)
    dit, text = preset.dit, preset.part("text_encoder").config
    preset = preset.with_part("dit", config=shortened(dit, 2, 2 if followers(dit) else 1))
    preset = preset.with_part("text_encoder", config=replace(text, num_layers=2))
    if "image_encoder" in preset.part_names:
        eyes = preset.part("image_encoder").config
        preset = preset.with_part("image_encoder", config=replace(eyes, num_layers=2))
    return preset


def assert_planned(phases: list[RunPhase]) -> None:
    """No phase takes more than planned, and the run not much less; what comes early is planned and not simulated."""
    taken = {each.name: (each.counts.peak / GB, each.planned_peak / GB) for each in phases}
    assert all(planned >= 0.97 * peak - SLACK / GB for peak, planned in taken.values()), taken
    most, planned = (max(each) for each in zip(*taken.values(), strict=True))
    assert planned <= 1.1 * most, taken


@pytest.mark.slow
@pytest.mark.parametrize("offload", [True, False], ids=["parts leave", "all stay"])
@pytest.mark.parametrize(
    "name",
    ["ti2v-5B", "t2v-A14B", "i2v-14B-480P", "flf2v-14B", "animate-14B", "mi2v-5B", "poze-5B", "sfu-1.3B",
     "bindweave-14B", "unianimate-14B"],
)  # fmt: skip
def test_a_run_takes_what_was_planned(name: str, offload: bool) -> None:
    preset = with_few_layers(name)
    steps = 5 if preset.has_experts else 1
    assert_planned(simulate(preset, {"num_frames": 33}, steps=steps, memory=10**12, offload=offload))


@pytest.mark.slow
def test_a_video_with_speech_takes_what_was_planned() -> None:
    assert_planned(simulate(with_few_layers("s2v-14B"), {}, steps=1, memory=10**12, offload=True))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "values"),
    [("t2v-1.3B", {"tiling": "on"}), ("ti2v-5B", {"tiling": "on"}), ("t2v-1.3B", {"vae_dtype": torch.bfloat16})],
)
def test_settings_of_the_autoencoder_take_what_was_planned(name: str, values: dict[str, Any]) -> None:
    phases = simulate(with_few_layers(name), {"num_frames": 33}, steps=1, memory=10**12, offload=True, **values)
    assert_planned(phases)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "steps", "values", "limit"),
    [("ti2v-5B", 1, {"text_on_cpu": True}, 17.0), ("t2v-A14B", 4, {}, 38.0)],
)
def test_whole_runs_keep_to_their_limit_and_copy_down_what_they_made_alone(
    name: str, steps: int, values: dict[str, Any], limit: float
) -> None:
    preset = get_preset(name)
    phases = simulate(preset, {}, steps=steps, memory=10**12, offload=True, **values)
    assert max(each.counts.peak for each in phases) <= limit * GB
    usual, text = preset.sampling, preset.part("text_encoder").config
    video = usual.num_frames * usual.height * usual.width * 3 * 4
    states = 0 if values else 2 * preset.dit.text_len * text.dim * 2
    assert sum(each.counts.to_host for each in phases) == video + states


def test_a_video_keeps_no_copy_of_weights_in_host_memory_beside_their_mapping() -> None:
    preset = get_preset("t2v-A14B")
    job = preset.plan(GenerationRequest(prompt="p"))
    for offload in (True, None):
        run = RunFacts(preset=preset, dtype=torch.bfloat16, offload=offload)
        plan = plan_memory(run, [job], free=48 * GB, host_free=256 * GB)
        assert not plan.waits
        assert not plan.in_blocks
