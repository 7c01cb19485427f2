"""Causal video through the pipeline of the core, on the tiny text-to-video network read as a causal one."""

import shutil
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from selfforcing_unianimate import CAUSAL_DIT, CausalDiTConfig
from selfforcing_unianimate.causal_request import CausalRequest
from selfforcing_unianimate.frame_blocks import FrameBlocks
from selfforcing_unianimate.task import CausalVideo
from wan_core import ConfigError, RequestError
from wan_core.loading import RuntimeOptions, load_pipeline
from wan_core.pipeline import Pipeline, SamplingOptions
from wan_core.presets import Preset, get_preset
from wan_core.tasks import GenerationRequest

TINY = get_preset("tiny-t2v")
CAUSAL = replace(
    TINY.with_part("dit", family=CAUSAL_DIT, config=CausalDiTConfig(**vars(TINY.dit))),
    name="tiny-causal",
    task=CausalVideo(FrameBlocks(size=2, window=4)),
    sampling=replace(TINY.sampling, num_inference_steps=2, solver="renoise", guidance_scale=1.0),
)
REQUEST = CausalRequest(prompt="a red circle moves right", num_frames=9, width=32, height=32)


def loaded(preset: Preset, *, offload: bool = False, batched: bool = False) -> Pipeline:
    sampling = SamplingOptions(batched_guidance=batched)
    options = RuntimeOptions(device="cpu", dtype="float32", offload=offload, sampling=sampling)
    return load_pipeline(preset, options=options)


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return loaded(CAUSAL)


def made(pipeline: Pipeline, request: GenerationRequest) -> tuple[list[Tensor], list[Tensor]]:
    """The latents of each block, and the chunks of frames."""
    latents: list[Tensor] = []
    chunks = list(pipeline.stream(pipeline.plan(request), on_latents=latents.append))
    return latents, chunks


def test_a_block_after_the_other_is_decoded_as_one_video(pipeline: Pipeline) -> None:
    latents, chunks = made(pipeline, REQUEST)
    assert [block.shape[2] for block in latents] == [2, 1]
    with pipeline.components.vae.active() as vae, torch.no_grad():
        whole = vae.decode(torch.cat(latents, dim=2))[0]
    torch.testing.assert_close(torch.cat(chunks, dim=1), whole, rtol=1e-4, atol=1e-4)


def test_frames_of_a_block_come_before_the_next_is_made(pipeline: Pipeline) -> None:
    blocks: list[Tensor] = []
    frames = pipeline.stream(pipeline.plan(REQUEST), on_latents=blocks.append)
    next(frames)
    assert len(blocks) == 1
    frames.close()  # type: ignore[attr-defined]


def test_one_block_is_the_video_of_the_plain_network() -> None:
    settings = {"prompt": REQUEST.prompt, "num_frames": 5, "width": 32, "height": 32, "num_inference_steps": 3}
    request = CausalRequest(**settings, solver="unipc", guidance_scale=3.0)
    plain = loaded(TINY).generate(GenerationRequest(**settings, solver="unipc", guidance_scale=3.0))
    causal = loaded(CAUSAL).generate(request)
    torch.testing.assert_close(causal.frames, plain.frames, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("solver", "scale"), [("unipc", 3.0), ("dpm++", 2.0), ("renoise", 1.0)])
def test_blocks_see_the_ones_before_them(pipeline: Pipeline, solver: str, scale: float) -> None:
    request = replace(REQUEST, solver=solver, guidance_scale=scale)
    latents, _ = made(pipeline, request)
    alone, _ = made(loaded(replace(CAUSAL, task=CausalVideo(FrameBlocks(size=1, window=1)))), request)
    assert all(torch.isfinite(block).all() for block in latents)
    assert not torch.allclose(torch.cat(latents, dim=2)[:, :, 1], torch.cat(alone, dim=2)[:, :, 1])


def test_what_is_remembered_may_have_noise_in_it(pipeline: Pipeline) -> None:
    tasks = [CausalVideo(FrameBlocks(size=2, window=4), 300.0, noised_context=noised) for noised in (False, True)]
    plain, noised = (
        made(Pipeline(replace(CAUSAL, task=task), pipeline.components, latent_spec=pipeline.latent_spec), REQUEST)[0]
        for task in tasks
    )
    assert torch.equal(plain[0], noised[0])
    assert not torch.allclose(plain[1], noised[1], atol=1e-3)


def test_a_given_image_is_the_first_frame(pipeline: Pipeline, tmp_path: Path) -> None:
    image = tmp_path / "first.png"
    Image.new("RGB", (32, 32), (200, 30, 30)).save(image)
    latents, _ = made(pipeline, replace(REQUEST, image=image))
    assert [block.shape[2] for block in latents] == [1, 2]
    with pipeline.components.vae.active() as vae, torch.no_grad():
        encoded = vae.encode(torch.tensor([200.0, 30.0, 30.0]).view(1, 3, 1, 1, 1).expand(1, 3, 1, 32, 32) / 127.5 - 1)
    torch.testing.assert_close(latents[0], encoded, rtol=1e-3, atol=1e-2)
    other, _ = made(pipeline, REQUEST)
    assert not torch.allclose(latents[1], other[0])


def test_seeds_have_noise_of_their_own_in_every_block() -> None:
    from wan_core.tasks import Clip

    seeds = {CAUSAL.task.noise_seed(seed, Clip(index=index)) for seed in range(20) for index in range(50)}
    assert len(seeds) == 1000
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_what_is_remembered_is_told_before() -> None:
    inputs = CAUSAL.plan(REQUEST)
    once = CAUSAL.task.kept_bytes(inputs, CAUSAL.dit, 4)
    assert once == 2 * 6 * 3 * inputs.geometry.tokens_per_frame * 128 * 4
    assert CAUSAL.task.kept_bytes(CAUSAL.plan(replace(REQUEST, guidance_scale=3.0)), CAUSAL.dit, 4) == 2 * once
    assert CAUSAL.task.describe(inputs)["clips"] == 2


def test_the_network_stays_where_it_is_between_blocks() -> None:
    pipeline = loaded(CAUSAL, offload=True)
    frames = pipeline.stream(pipeline.plan(REQUEST))
    next(frames)
    network = pipeline.components.networks[0].module()
    for _ in frames:
        assert pipeline.components.networks[0].module() is network
    assert not pipeline.components.networks[0].is_loaded


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"window": 1}, "window of 1"), ({"sink": 3}, "has no room"), ({"num_frames": 8}, "4n"), ({"sink": -1}, "sink")],
)
def test_what_cannot_be_made_is_refused_before_a_model_is_there(changes: dict[str, int], said: str) -> None:
    with pytest.raises((RequestError, ConfigError), match=said):
        CAUSAL.plan(replace(REQUEST, **changes))


def test_branches_in_one_batch_are_refused() -> None:
    with pytest.raises(ConfigError, match="leave out --cfg batched"):
        loaded(CAUSAL, batched=True)


def test_a_trainers_file_is_read_with_its_averaged_weights(pipeline: Pipeline, tmp_path: Path) -> None:
    tiny = Path(str(files("wan_core") / "weights" / "tiny" / "t2v"))
    weights = load_file(tiny / "model.safetensors")
    wrapped = {f"model._fsdp_wrapped_module.{name}": tensor for name, tensor in weights.items()}
    last = {f"model.{name}": torch.zeros_like(tensor) for name, tensor in weights.items()}
    torch.save({"generator_ema": wrapped, "generator": last, "critic": last}, tmp_path / "self_forcing_dmd.pt")
    shutil.copy(tiny / "config.json", tmp_path)
    options = RuntimeOptions(device="cpu", dtype="float32", parts={"dit": tmp_path / "self_forcing_dmd.pt"})
    read = load_pipeline(CAUSAL, options=options)
    assert any("generator_ema is taken" in note for note in read.notes)
    request = replace(REQUEST, num_frames=5)
    assert torch.equal(torch.cat(made(read, request)[0], dim=2), torch.cat(made(pipeline, request)[0], dim=2))
