"""Requests through a tiny network: what reaches the sampler, what is decoded, and in which order things load."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from wan_core.cli.jobs import Job
from wan_core.cli.making import notes_on, sound_of
from wan_core.denoising import Turns
from wan_core.errors import ConfigError, RequestError
from wan_core.media import AudioTrack, LatentSpec, load_audio, probe_video, read_provenance
from wan_core.models import DiTInputs
from wan_core.pipeline import SamplingOptions
from wan_core.runtime import Between, Placed
from wan_core.sampling import Anchors, make_solver, seeded_noise
from wan_core.tasks import (
    Clip,
    Conditioning,
    DecodePlan,
    Experts,
    GeneratedClip,
    GenerationRequest,
    I2VRequest,
    Log,
    SamplingSettings,
    TaskInputs,
    TextToVideo,
    TI2VRequest,
    Window,
)
from wan_core.tasks.prompts import PromptCache, encode_prompts

from .tiny_model import CPU, FakeText, Model, small


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "red.png"
    Image.new("RGB", (64, 48), (225, 35, 40)).save(path)
    return path


def test_text_to_video_has_the_requested_size() -> None:
    video = Model("tiny-t2v").pipeline.generate(GenerationRequest(**small()))
    assert video.frames.shape == (5, 3, 32, 32)
    assert video.frames.abs().max() <= 1


def test_a_seed_decides_the_video() -> None:
    pipeline = Model("tiny-t2v").pipeline
    first, again, other = (pipeline.generate(GenerationRequest(**small(seed=seed))).frames for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_latents_are_watched_before_each_step_and_stay_as_they_are() -> None:
    model, seen = Model("tiny-t2v"), list[tuple[float, Tensor]]()
    inputs = model.pipeline.plan(GenerationRequest(**small(num_inference_steps=3)))
    with torch.no_grad():
        made_of = model.preset.task.condition(inputs, model.pipeline.components, Clip())
        found = model.pipeline.denoise(
            made_of, inputs.settings, 1, watch=lambda latents, timestep: seen.append((float(timestep), latents))
        )
        assert torch.equal(found, model.pipeline.denoise(made_of, inputs.settings, 1))
    noise = seeded_noise(made_of.latent_shape, 1)
    assert torch.equal(seen[0][1], noise)
    timesteps = make_solver(inputs.settings.solver, 3, flow_shift=inputs.settings.flow_shift).timesteps
    assert [timestep for timestep, _ in seen] == timesteps.tolist()
    assert not torch.equal(seen[2][1], seen[1][1])


def test_the_context_cache_changes_nothing() -> None:
    model = Model("tiny-t2v")
    network = model.pipeline.components.dit.module()
    nn.init.normal_(network.head.head.weight, std=0.2)
    inputs = DiTInputs(context=torch.randn(1, 3, model.preset.dit.text_dim))
    latents = torch.randn(1, model.preset.dit.in_dim, 2, 4, 4)
    cached = inputs.with_cache()
    with torch.no_grad():
        for timestep in (900.0, 500.0, 10.0):
            plain = network(latents, torch.tensor([timestep]), inputs)
            assert torch.equal(plain, network(latents, torch.tensor([timestep]), cached))


def test_experts_load_once_each_and_never_together() -> None:
    model = Model("tiny-moe", Between.DROP)
    loaded: list[tuple[bool, bool]] = []
    dit = model.pipeline.components.dit

    def watch(steps: object, phase: str) -> object:
        for step in steps:  # type: ignore[attr-defined]
            yield step
            loaded.append((dit.high.is_loaded, dit.low.is_loaded))

    model.pipeline.generate(GenerationRequest(**small(num_inference_steps=6)), progress=watch)
    assert model.log == ["high", "low"]
    assert (True, True) not in loaded
    assert not dit.high.is_loaded
    assert not dit.low.is_loaded


def test_prompts_are_encoded_once() -> None:
    model = Model("tiny-t2v")
    for seed in (1, 2):
        model.pipeline.generate(GenerationRequest(**small(seed=seed, negative_prompt="n")))
    assert model.text.asked == ["p", "n"]


def test_guidance_of_one_needs_no_negative_prompt() -> None:
    model = Model("tiny-t2v")
    model.pipeline.generate(GenerationRequest(**small(guidance_scale=1.0, negative_prompt="n")))
    assert model.text.asked == ["p"]


def test_batched_guidance_gives_the_same_latents() -> None:
    found = []
    for batched in (False, True):
        model = Model("tiny-t2v")
        model.pipeline.options = SamplingOptions(batched_guidance=batched)
        inputs = model.pipeline.plan(GenerationRequest(**small(prompt="longer prompt", negative_prompt="n")))
        list(model.pipeline.stream(inputs, on_latents=found.append))
    assert torch.allclose(*found, atol=1e-5)


def test_ti2v_returns_its_picture_as_first_latent(picture: Path) -> None:
    model = Model("tiny-ti2v")
    inputs = model.pipeline.plan(TI2VRequest(**small(image=picture)))
    conditioning = model.preset.task.condition(inputs, model.pipeline.components, clip=None)  # type: ignore[arg-type]
    found: list[Tensor] = []
    list(model.pipeline.stream(inputs, on_latents=found.append))
    assert conditioning.anchors is not None
    assert torch.equal(found[0][:, :, :1], conditioning.anchors.latents[:, :, :1])


def test_nothing_is_denoised_when_every_frame_is_anchored() -> None:
    model = Model("tiny-ti2v")
    latents = torch.randn(1, model.preset.vae.z_dim, 2, 4, 4)
    request = GenerationRequest(**small()).sampling(model.preset.sampling)
    inputs = DiTInputs(context=torch.zeros(1, 1, model.preset.dit.text_dim))
    conditioning = Conditioning(
        positive=inputs, negative=None, latent_shape=latents.shape, anchors=Anchors.leading(latents, 2)
    )
    assert torch.equal(model.pipeline.denoise(conditioning, request, seed=0), latents)
    assert model.log == []


def test_no_text_is_encoded_when_every_frame_is_anchored(picture: Path) -> None:
    model = Model("tiny-ti2v")
    video = model.pipeline.generate(TI2VRequest(**small(image=picture, num_frames=1)))
    assert video.frames.shape[0] == 1
    assert model.log == []
    assert model.text.asked == []


def test_a_task_watches_the_frames_and_reports() -> None:
    class Watching(TextToVideo):
        def report(self, inputs: TaskInputs, clip: GeneratedClip, log: Log) -> Iterator[Tensor]:
            assert clip.latents.shape == clip.conditioning.latent_shape
            for chunk in clip.frames:
                log(f"{chunk.shape[1]} frames")
                yield chunk

    model, heard = Model("tiny-t2v"), list[str]()
    model.pipeline.preset = replace(model.preset, task=Watching())
    inputs = model.pipeline.plan(GenerationRequest(**small()))
    assert sum(chunk.shape[1] for chunk in model.pipeline.stream(inputs, log=heard.append)) == 5
    assert sum(int(text.split()[0]) for text in heard) == 5


class Sounding(TextToVideo):
    """Videos whose files have a sound."""

    def load(self, request: GenerationRequest, settings: SamplingSettings, latent_spec: LatentSpec) -> TaskInputs:
        sound = AudioTrack(torch.zeros(1, 1600), 16_000, sha256="ab12")
        return replace(super().load(request, settings, latent_spec), sound=sound)


def test_a_video_with_sound_is_saved_with_it_and_names_its_hash(tmp_path: Path) -> None:
    model = Model("tiny-t2v")
    model.pipeline.preset = replace(model.preset, task=Sounding())
    video = model.pipeline.generate(GenerationRequest(**small(fps=20)))
    path = video.save(tmp_path / "a.mp4")
    assert video.frames.shape[0] == 5
    assert probe_video(path).num_frames == 2
    assert load_audio(path).samples.shape == (1, 1600)
    assert read_provenance(path).record["sound_sha256"] == "ab12"


@pytest.mark.parametrize(("name", "has_sound"), [("a.mp4", True), ("a.gif", False), ("%04d.png", False)])
def test_a_file_that_holds_no_sound_is_written_without_and_noted(tmp_path: Path, name: str, has_sound: bool) -> None:
    preset = replace(Model("tiny-t2v").preset, task=Sounding())
    job = Job(preset.plan(GenerationRequest(**small())), tmp_path / name)
    assert bool(sound_of(job)) is has_sound
    assert any("holds no sound" in note for note in notes_on([job], None)) is not has_sound


def test_i2v_joins_mask_and_first_frame(picture: Path) -> None:
    model = Model("tiny-i2v")
    inputs = model.pipeline.plan(I2VRequest(**small(image=picture)))
    conditioning = model.preset.task.condition(inputs, model.pipeline.components, clip=None)  # type: ignore[arg-type]
    joined = conditioning.positive.channel_concat
    assert joined is not None
    assert joined.shape[1] == 4 + model.preset.vae.z_dim
    assert joined[:, :4, 0].eq(1).all()
    assert joined[:, :4, 1:].eq(0).all()
    assert conditioning.negative is not None
    assert conditioning.negative.channel_concat is joined


def test_a_decode_plan_puts_a_prefix_and_drops_frames() -> None:
    model = Model("tiny-t2v")
    latents = torch.randn(1, model.preset.vae.z_dim, 3, 4, 4)
    plain = Conditioning(positive=DiTInputs(context=torch.zeros(1, 1, 96)), negative=None, latent_shape=latents.shape)
    plan = DecodePlan(prefix=latents[:, :, :1], drop_latent_frames=1, drop_frames=3)
    with torch.no_grad():
        whole = torch.cat(list(model.pipeline.decode(latents, plain)), dim=2)
        cut = torch.cat(list(model.pipeline.decode(latents, replace(plain, decode=plan))), dim=2)
        few = list(model.pipeline.decode(latents, replace(plain, decode=replace(plan, keep_frames=4))))
    assert torch.allclose(cut, whole[:, :, 3:], atol=1e-5)
    assert torch.equal(torch.cat(few, dim=2), cut[:, :, :4])


def test_noise_of_a_later_clip_comes_after_earlier_draws_of_one_generator() -> None:
    model = Model("tiny-t2v")
    shape = (1, model.preset.vae.z_dim, 1, 4, 4)
    context = torch.zeros(1, 1, model.preset.dit.text_dim)
    conditioning = Conditioning(positive=DiTInputs(context=context), negative=None, latent_shape=shape, earlier_draws=2)
    settings = replace(model.preset.settings_of(GenerationRequest(prompt="p")), num_inference_steps=1)
    seen: list[Tensor] = []
    with torch.no_grad():
        model.pipeline.denoise(conditioning, settings, 5, watch=lambda latents, timestep: seen.append(latents.clone()))
    generator = torch.Generator().manual_seed(5)
    draws = [torch.randn(shape, generator=generator) for _ in range(3)]
    assert torch.equal(seen[0], draws[2])


def test_the_prompt_cache_forgets_the_oldest() -> None:
    cache, text = PromptCache(size=2), FakeText(4)
    placed = Placed(lambda _: text, CPU)
    for prompt in ("a", "bb", "ccc", "bb", "a"):
        encode_prompts(placed, [prompt], cache, CPU)  # type: ignore[arg-type]
    assert text.asked == ["a", "bb", "ccc", "a"]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"prompt": " "}, "prompt is empty"),
        ({"seed": -1}, "seed must be"),
        ({"width": 64, "height": None}, "width and height belong together"),
        ({"num_frames": 80}, "nearest are 77 and 81"),
        ({"guidance_scale": Experts(high=1.0, low=-1.0)}, "guidance_scale"),
        ({"solver": "heun"}, "unipc"),
    ],
)
def test_impossible_requests_are_refused_before_anything_loads(values: dict[str, object], words: str) -> None:
    model = Model("tiny-t2v")
    with pytest.raises(RequestError, match=words):
        model.pipeline.plan(GenerationRequest(**small(**values)))
    assert model.log == []


def test_overlapping_windows_are_denoised_under_their_own_conditions_and_averaged() -> None:
    model = Model("tiny-t2v")
    inputs = model.pipeline.plan(GenerationRequest(**small(num_frames=9, negative_prompt="n")))  # 3 latent frames
    whole = model.preset.task.condition(inputs, model.pipeline.components, None)  # type: ignore[arg-type]
    other = replace(whole.positive, context=whole.positive.context + 1)
    windows = (
        Window(frames=(0, 1), positive=whole.positive, negative=whole.negative),
        Window(frames=(2, 1), positive=other, negative=whole.negative),
    )

    def velocity(made_of: Conditioning) -> Turns:
        return Turns(model.preset, model.pipeline.components, SamplingOptions(), made_of, 3.0)

    turns = velocity(replace(whole, windows=windows))
    latents, timestep = torch.randn(whole.latent_shape), torch.tensor(500)
    with torch.no_grad():
        found = turns(latents, timestep)
        alone = []
        for window in windows:
            one = replace(whole, positive=window.positive)
            alone.append(velocity(one)(latents[:, :, list(window.frames)], timestep))
    turns.rest()
    wanted = [alone[0][:, :, 0], (alone[0][:, :, 1] + alone[1][:, :, 1]) / 2, alone[1][:, :, 0]]
    assert torch.allclose(found, torch.stack(wanted, dim=2), atol=1e-5)
    with pytest.raises(ConfigError, match="latent frame 2 is in no window"):
        velocity(replace(whole, windows=windows[:1]))(latents, timestep)
