"""Runs are counted on a GPU that is not there, and a forward that takes more than is stored is found."""

import json

import pytest
import torch

from tools.simulate import GPUS, STORED, differences
from tools.simulated_coding import coding, our_coding, their_coding
from tools.simulated_forwards import Forward, counted, forward, our_forward, their_forward
from tools.simulated_inputs import Shapes
from tools.simulated_runs import simulate
from wan_core.errors import ConfigError, RequestError
from wan_core.presets import get_preset
from wan_core.runtime import Counts, simulated_gpu
from wan_core.sampling import WindowDenoiser, draw_noise, make_solver, seeded_generator

SMALL = Shapes(num_frames=17, height=64, width=64)
PRESET = get_preset("tiny-t2v")


def test_a_rise_is_told_and_a_fall_is_not_a_fault() -> None:
    old = {"kernels": 10, "traffic": 100, "float32_traffic": 0, "flops": 5, "waits": 1}
    stored = {"a": old, "b": old, "c": old}
    rose, fell = differences({"a": {**old, "traffic": 101}, "b": {**old, "kernels": 9}, "d": old}, stored)
    assert rose == ["a: traffic 100 -> 101", "c is stored and not there", "d is not stored"]
    assert fell == ["b: kernels 10 -> 9"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tiny-t2v", "tiny-s2v", "tiny-animate", "tiny-sfu", "tiny-bindweave"])
def test_a_forward_follows_from_few_blocks(name: str) -> None:
    preset = get_preset(name)
    assert forward(preset, SMALL) == counted(our_forward, preset, SMALL)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tiny-t2v", "tiny-animate"])
def test_the_forward_of_diffusers_does_too(name: str) -> None:
    preset = get_preset(name)
    assert forward(preset, SMALL, their_forward) == counted(their_forward, preset, SMALL)


@pytest.mark.slow
@pytest.mark.parametrize("encodes", [False, True])
@pytest.mark.parametrize("name", ["tiny-t2v", "tiny-ti2v"])
def test_the_coding_of_a_clip_follows_from_short_ones(name: str, encodes: bool) -> None:
    preset = get_preset(name)
    frames = 7
    clip = Shapes(num_frames=1 + (frames - 1) * preset.vae.temporal_stride, height=64, width=64)
    for side in (our_coding, their_coding):
        with simulated_gpu() as gpu:
            code = side(preset, clip, gpu, encodes)
            code(1)
            counts = gpu.begin()
            code(frames)
        assert coding(preset, clip, side, encodes=encodes) == Forward.of(counts)


@pytest.mark.slow
def test_no_forward_and_no_coding_lets_the_host_wait() -> None:
    stored = json.loads(STORED.read_text())
    assert {"s2v-14B", "animate-14B", "flf2v-14B", "sfu-1.3B", "bindweave-14B", "ti2v-5B, decoding"} <= set(stored)
    assert all(each["waits"] == 0 for each in stored.values())


@pytest.mark.slow
def test_the_stored_forward_is_that_of_now() -> None:
    preset = get_preset("t2v-1.3B")
    usual = preset.sampling
    now = forward(preset, Shapes(usual.num_frames, usual.height, usual.width))
    assert vars(now) == json.loads(STORED.read_text())["t2v-1.3B"]


@pytest.mark.slow
def test_values_that_are_read_copies_and_memory_are_counted() -> None:
    with simulated_gpu() as gpu:
        counts = gpu.begin()
        first = gpu.tensor(1000, 1000, dtype=torch.float32)
        second = (first + 1).to(torch.bfloat16)
        assert not second.sum().item()
        assert second.cpu().shape == (1000, 1000)
        del first
        assert torch.ones(3).sum().item() == 3  # the CPU computes
        assert gpu.resident == pytest.approx(2e6, abs=2000)
    assert counts.peak == pytest.approx(10e6, abs=2000)
    assert counts.to_host == 2_000_000
    assert set(counts.waits) == {"_local_scalar_dense", "to host"}
    assert counts.per_operation["add"] == 8_000_000


@pytest.mark.slow
def test_what_a_result_is_written_to_is_not_read() -> None:
    with simulated_gpu() as gpu:
        one, half = gpu.tensor(1000, dtype=torch.float32), gpu.tensor(1000, dtype=torch.bfloat16)
        counts = gpu.begin()
        torch.addcmul(one, one, one, out=half)
    assert counts.traffic == 6000


@pytest.mark.slow
def test_a_product_takes_its_arithmetic_or_its_traffic_whichever_is_longer() -> None:
    with simulated_gpu() as gpu:
        large, row = (gpu.tensor(n, 4096, dtype=torch.bfloat16) for n in (4096, 1))
        both: list[Counts] = []
        for left in (large, row):
            both.append(gpu.begin())
            left @ large
    gpu_of = GPUS["H100"]
    many, one = (counts.seconds(gpu_of.flops_per_second, gpu_of.bandwidth) for counts in both)
    assert many == pytest.approx(2 * 4096**3 / gpu_of.bfloat16)
    assert one == pytest.approx((4096 * 4096 + 2 * 4096) * 2 / gpu_of.bandwidth)
    assert both[0].traffic == 0


@pytest.mark.slow
def test_phases_of_a_run_have_their_weights_and_what_was_planned() -> None:
    preset = get_preset("tiny-moe")
    phases = {phase.name: phase for phase in simulate(preset, {}, steps=4, memory=10**9, offload=True)}
    assert list(phases) == ["text", "denoise high", "denoise low", "decode"]
    high, low = phases["denoise high"], phases["denoise low"]
    assert high.simulated_steps + low.simulated_steps == 4
    assert high.steps + low.steps == preset.sampling.num_inference_steps
    assert all(phase.counts.peak > 0 < phase.planned_weights for phase in phases.values())
    assert high.counts.attention.total() == 2 * 2 * preset.dit.num_layers * high.simulated_steps


@pytest.mark.slow
def test_blocks_that_pass_through_let_the_host_wait_no_more_and_take_less() -> None:
    preset = get_preset("tiny-moe")
    whole, passing = (
        {each.name: each.counts for each in simulate(preset, {}, steps=4, memory=10**9, offload=True, in_blocks=blocks)}
        for blocks in (False, True)
    )
    for name in ("denoise high", "denoise low"):
        assert passing[name].waits.total() <= whole[name].waits.total()
        assert passing[name].flops == whole[name].flops
        assert passing[name].to_device > 2 * whole[name].to_device
        assert passing[name].peak < whole[name].peak
        assert passing[name].to_host == 0


@pytest.mark.slow
def test_what_steps_copy_grows_with_them_and_what_is_loaded_does_not() -> None:
    preset = get_preset("tiny-moe")
    fewer, more = (
        {each.name: each for each in simulate(preset, {}, steps=steps, memory=10**9, offload=True, in_blocks=True)}
        for steps in (4, 8)
    )
    for name in ("denoise high", "denoise low"):
        assert fewer[name].counts.to_device < more[name].counts.to_device
        assert fewer[name].to_device == pytest.approx(more[name].to_device, rel=1e-3)


@pytest.mark.slow
def test_what_cannot_be_simulated_is_refused_in_words() -> None:
    with pytest.raises(ConfigError, match="offload_model True needs"):
        simulate(get_preset("t2v-A14B"), {}, steps=1, memory=80 * 10**9, offload=False)
    with pytest.raises(RequestError, match="so few steps leave out denoise low"):
        simulate(get_preset("tiny-moe"), {}, steps=1, memory=80 * 10**9)
    with pytest.raises(RequestError, match="leave --peer out"):
        forward(get_preset("tiny-s2v"), SMALL, their_forward)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "expected"),
    [("tiny-s2v", ["text", "sound", "encode", "denoise", "decode"]),
     ("tiny-animate", ["text", "image", "encode", "denoise", "decode"]),
     ("tiny-sfu", ["text", "denoise", "decode"])],
)  # fmt: skip
def test_several_clips_come_through_each_phase_again(name: str, expected: list[str]) -> None:
    preset = get_preset(name)
    phases = {phase.name: phase for phase in simulate(preset, {}, steps=2, memory=10**9, clips=2)}
    assert sorted(phases) == sorted(expected)
    denoised = phases["denoise"]
    assert denoised.simulated_steps >= 4
    assert denoised.steps * 2 == denoised.simulated_steps * preset.sampling.num_inference_steps
    # Frames alone come to the host while they are decoded, those of every clip.
    assert phases["decode"].counts.waits["to host"] >= 2


@pytest.mark.slow
def test_steps_in_windows_and_steps_with_fresh_noise_wait_once_at_most() -> None:
    generator, shape = seeded_generator(3), (1, 4, 5, 2, 2)
    solver = make_solver("renoise", 4, flow_shift=5.0)
    with simulated_gpu() as gpu:
        latents = gpu.tensor(*shape, dtype=torch.float32)
        denoiser = WindowDenoiser([lambda latents, timestep: latents] * 2, [(0, 1, 2, 3), (0, 3, 4)])
        waits = []
        for index, timestep in enumerate(solver.timesteps):
            counts = gpu.begin()
            latents = solver.step(denoiser(latents, timestep), index, latents, generator)
            waits.append(dict(counts.waits))
    assert waits[0]
    assert waits[1:] == [{}] * 3
    again = seeded_generator(3)
    for _ in range(3):  # no noise for the last step
        draw_noise(shape, again)
    assert torch.equal(generator.get_state(), again.get_state())
