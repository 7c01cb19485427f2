"""A planned finetuning run carried out: models loaded, examples encoded, the stage trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor

from pi3 import Pi3, load_pi3, pictures_to_tensor
from poze.adapter import Pi3FeatureAdapter
from poze.datasets import read_latents
from poze.finetune import FlowStage, RolloutStage, Stage, run_finetuning
from poze.finetune_plan import FinetunePlan, examples_digest, pi3_source
from poze.network import GuidedNetwork
from wan_core.errors import RequestError
from wan_core.media import load_image, tensor_to_image
from wan_core.models import WanDiT
from wan_core.runtime import Placed
from wan_core.tasks import Clip, Components, Conditioning, encode_prompts
from wan_core.training import (
    Cache,
    ClipSettings,
    ShuffledBatches,
    TrainingResult,
    load_clip,
    load_first_picture,
    write_cache,
)


def carry_out(plan: FinetunePlan, say: Callable[[str], None]) -> TrainingResult:
    """Load the models of a plan and train. Raises what loading and training raise."""
    components = plan.pipeline.components
    if components.device.type == "cpu":  # as in the reference, where only the accelerator computes in 16 bits
        plan = replace(plan, settings=replace(plan.settings, amp=False))
    torch.manual_seed(plan.settings.seed)
    pi3 = load_pi3(pi3_source(plan.options, plan.pipeline.preset), device=components.device)
    adapter = plan.adapter
    if adapter is None:
        dim = network_of(components).config.dim
        adapter = Pi3FeatureAdapter(2 * pi3.config.encoder.dim, dim, plan.options.adapter_tokens)
    if not plan.is_guided:
        say("note: without guidance, since no adapter is given or trained")
    stage: Stage
    if plan.dataset is None and plan.settings.objective == "rollout":
        network, stage = _rollout_stage(plan, adapter, pi3)
    else:
        examples, buckets = _examples(plan, pi3, say)
        network = _network(plan, adapter)
        batches = ShuffledBatches(buckets, plan.settings.batch_size, plan.settings.seed)
        stage = FlowStage(network, examples, batches, plan.settings, is_guided=plan.is_guided)
    counts = [sum(p.numel() for p in network.parameters() if p.requires_grad == flag) for flag in (True, False)]
    say(f"{counts[0]:,} weights are trained, {counts[1]:,} stay as they are")
    return run_finetuning(network, stage, plan.settings, plan.options.save_dir, recipe=plan.recipe(), say=say)


def network_of(components: Components) -> WanDiT:
    """The one transformer of a model, loaded."""
    dit = components.dit
    if not isinstance(dit, Placed):
        raise RequestError("a model with two experts cannot be finetuned here")
    return dit.module()


def picture_tokens(pi3: Pi3, picture: Tensor) -> tuple[Tensor, tuple[int, int]]:
    """Pi3's patch tokens [1, h * w, C] of a picture [3, H, W] in [0, 1] of whole patches, and (h, w)."""
    with torch.no_grad():
        latents = pi3.encode(picture[None, None].to(pi3.register_token.device))
    return latents.patch_hidden.mean(dim=1), latents.grid


def _network(plan: FinetunePlan, adapter: Pi3FeatureAdapter) -> GuidedNetwork:
    components, settings = plan.pipeline.components, plan.settings
    return GuidedNetwork(network_of(components), adapter.to(components.device), settings.trained, settings.lora)


def _condition(plan: FinetunePlan) -> Conditioning:
    if plan.inputs is None:
        raise ValueError("a plan of a folder has no single picture")
    with torch.no_grad():
        return plan.pipeline.preset.task.condition(plan.inputs, plan.pipeline.components, Clip())


def _rollout_stage(plan: FinetunePlan, adapter: Pi3FeatureAdapter, pi3: Pi3) -> tuple[GuidedNetwork, RolloutStage]:
    if plan.inputs is None or plan.supervision is None or plan.options.image is None:
        raise ValueError("rollout needs one picture and what to compare with")
    components = plan.pipeline.components
    conditioning = _condition(plan)
    picture = pictures_to_tensor([load_image(plan.options.image)], pixel_limit=pi3.config.pixel_limit)[0]
    tokens, grid = picture_tokens(pi3, picture)
    network = _network(plan, adapter)
    vae = components.vae.module().requires_grad_(False)
    stage = RolloutStage(
        network=network,
        vae=vae,
        pi3=pi3,
        conditioning=conditioning,
        request=plan.inputs.request,
        supervision=plan.supervision,
        tokens=tokens if plan.is_guided else None,
        grid=grid,
        amp=plan.settings.amp,
    )
    return network, stage


def _examples(
    plan: FinetunePlan, pi3: Pi3, say: Callable[[str], None]
) -> tuple[Sequence[Mapping[str, Tensor]], list[object]]:
    """The encoded examples and what those of one batch must share."""
    encoder = ExampleEncoder(plan, pi3)
    if plan.dataset is None:
        return [encoder.single()], [0]
    dataset, clips = plan.dataset, plan.clips
    count = len(dataset.examples)
    source = pi3_source(plan.options, plan.pipeline.preset)
    settings = {
        "preset": plan.pipeline.preset.name,
        "examples": examples_digest(dataset),
        "clips": None if clips is None else asdict(clips),
        "pi3": None if source is None else str(source),
        "own_latents": dataset.latent_files is not None,
    }
    folder = plan.options.save_dir / "cache"
    with torch.no_grad():
        write_cache(folder, count, encoder, settings, report=lambda done: say(f"encoded {done} of {count} examples"))
    cache = Cache(folder, settings)
    rows = [cache[number] for number in range(count)]
    return rows, [tuple(row["latents"].shape) for row in rows]


@dataclass(frozen=True)
class ExampleEncoder:
    """Turns an example's number into the tensors of `FlowStage`."""

    plan: FinetunePlan
    pi3: Pi3

    def __call__(self, number: int) -> dict[str, Tensor]:
        """Encode one example of the plan's folder."""
        dataset, clips = self.plan.dataset, self.plan.clips
        if dataset is None or clips is None:
            raise ValueError("this plan has no folder")
        example = dataset.examples[number]
        pixels = load_clip(example, clips)
        picture = load_first_picture(example, pixels)
        if dataset.latent_files is None:
            latents = self._latents(pixels, picture)
        else:
            spec = self.plan.pipeline.latent_spec
            latents = read_latents(
                dataset.latent_files[number], spec.channels, latent_frames(spec.temporal_stride, clips)
            )
        return self._row(latents, picture, example.caption)

    def single(self) -> dict[str, Tensor]:
        """Encode the one wanted video with its picture and prompt."""
        plan = self.plan
        if plan.inputs is None or plan.supervision is None or plan.supervision.video is None:
            raise ValueError("this plan has no single video")
        first = plan.inputs.images[0]
        return self._row(self._latents(plan.supervision.video, first), first, plan.inputs.request.prompt)

    def _latents(self, pixels: Tensor, picture: Tensor) -> Tensor:
        """Latents [C, T, h, w] of a clip whose first frame is ``picture``, encoded alone as in sampling."""
        components = self.plan.pipeline.components
        with torch.no_grad(), components.vae.active() as vae:
            latents = vae.encode(pixels[None].to(components.device))[0]
            latents[:, :1] = vae.encode(picture[None, :, None].to(components.device))[0]
        return latents.cpu()

    def _row(self, latents: Tensor, picture: Tensor, caption: str) -> dict[str, Tensor]:
        components = self.plan.pipeline.components
        views = pictures_to_tensor([tensor_to_image(picture)], pixel_limit=self.pi3.config.pixel_limit)
        tokens, grid = picture_tokens(self.pi3, views[0])
        with torch.no_grad():
            states = encode_prompts(components.text_encoder, [caption, ""], components.prompt_cache, components.device)
        return {
            "latents": latents.float(),
            "context": states[0][0].float().cpu().clone(),
            "empty": states[1][0].float().cpu().clone(),  # of its own: all examples share one in the prompt cache
            "tokens": tokens[0].half().cpu(),
            "grid": torch.tensor(grid),
        }


def latent_frames(stride: int, clips: ClipSettings) -> int:
    """How many latent frames a clip has."""
    return (clips.num_frames - 1) // stride + 1
