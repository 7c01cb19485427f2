"""A planned finetuning run carried out: models loaded, examples encoded, the stage trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from pi3 import Pi3
from pi3.checkpoints import freeze
from poze.adapter import Pi3FeatureAdapter
from poze.datasets import read_latents
from poze.finetune import FlowStage, RolloutStage, Stage, run_finetuning
from poze.finetune_plan import FinetunePlan, pi3_place
from poze.guidance import look, picture_views, pooled_tokens
from poze.network import GuidedNetwork
from wan_core import RequestError
from wan_core.media import load_image, tensor_to_image
from wan_core.models import WanDiT
from wan_core.runtime import Placed
from wan_core.tasks import Clip, Components, Conditioning, encode_prompts
from wan_core.training import (
    Cache,
    ClipSettings,
    Ranks,
    ShuffledBatches,
    TrainingResult,
    complete_model,
    examples_mark,
    load_clip,
    load_first_picture,
    write_cache,
)


def carry_out(plan: FinetunePlan, say: Callable[[str], None], ranks: Ranks | None = None) -> TrainingResult:
    """Load the models of a plan and train. Raises what loading and training raise."""
    ranks = ranks or Ranks()
    components = plan.pipeline.components
    if components.device.type == "cpu":  # as in the reference, where only the accelerator computes in 16 bits
        plan = replace(plan, settings=replace(plan.settings, amp=False))
    torch.manual_seed(plan.settings.seed)
    pi3: Pi3 = freeze(components.part("pi3").module())
    adapter = plan.adapter
    if adapter is None:
        space, config = plan.options.context_space, network_of(components).config
        width = config.text_dim if space == "text" else config.dim
        count = plan.options.adapter_tokens
        adapter = Pi3FeatureAdapter(2 * pi3.config.encoder.dim, width, count, context_space=space)
    if not plan.is_guided:
        say("note: without guidance, since no adapter is given or trained")
    stage: Stage
    if plan.dataset is None and plan.settings.objective == "rollout":
        network, stage = _rollout_stage(plan, adapter, pi3)
    else:
        examples, buckets = _examples(plan, pi3, say, ranks)
        network = _network(plan, adapter)
        batches = ShuffledBatches(buckets, plan.settings.batch_size, plan.settings.seed)
        stage = FlowStage(
            network, examples, batches, plan.settings, is_guided=plan.is_guided, rank=ranks.rank, world=ranks.world
        )
    counts = [sum(p.numel() for p in network.parameters() if p.requires_grad == flag) for flag in (True, False)]
    say(f"{counts[0]:,} weights are trained, {counts[1]:,} stay as they are")
    return run_finetuning(
        network,
        stage,
        plan.settings,
        plan.options.save_dir,
        recipe=plan.recipe(),
        say=say,
        ranks=ranks,
        complete=_completion(plan),
    )


def _completion(plan: FinetunePlan) -> Callable[[Path], Path] | None:
    """What puts the untrained parts beside a trained transformer; the bundled ones have no folder of their own."""
    source = plan.options.wan_ckpt_dir
    return None if source is None else lambda target: complete_model(plan.pipeline.preset, source, target)


def network_of(components: Components) -> WanDiT:
    """The one transformer of a model, loaded."""
    dit = components.dit
    if not isinstance(dit, Placed):
        raise RequestError("a model with two experts cannot be finetuned here")
    return dit.module()


def picture_tokens(pi3: Pi3, picture: Image.Image) -> tuple[Tensor, tuple[int, int]]:
    """Pi3's patch tokens [1, h * w, C] of a picture, and (h, w)."""
    latents, _ = look(pi3, picture_views(picture, pi3))
    return pooled_tokens(latents), latents.grid


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
    tokens, grid = picture_tokens(pi3, load_image(plan.options.image))
    network = _network(plan, adapter)
    vae = components.vae.module().requires_grad_(False)
    stage = RolloutStage(
        network=network,
        vae=vae,
        pi3=pi3,
        conditioning=conditioning,
        sampling=plan.inputs.settings,
        supervision=plan.supervision,
        tokens=tokens if plan.is_guided else None,
        grid=grid,
        amp=plan.settings.amp,
    )
    return network, stage


def _examples(
    plan: FinetunePlan, pi3: Pi3, say: Callable[[str], None], ranks: Ranks
) -> tuple[Sequence[Mapping[str, Tensor]], list[object]]:
    """The encoded examples and what those of one batch must share."""
    encoder = GuidedExampleEncoder(plan, pi3)
    if plan.dataset is None:
        return [encoder.single()], [0]
    dataset, clips = plan.dataset, plan.clips
    count = len(dataset.examples)
    place = pi3_place(plan.options, plan.pipeline.preset).get("pi3")
    settings = {
        "preset": plan.pipeline.preset.name,
        "examples": examples_mark(dataset.examples),
        "clips": None if clips is None else asdict(clips),
        "pi3": None if place is None else str(place),
        "own_latents": dataset.latent_files is not None,
    }
    folder = plan.options.save_dir / "cache"
    if ranks.is_first:
        write_cache(folder, count, encoder, settings, report=lambda done: say(f"encoded {done} of {count} examples"))
    ranks.wait()
    cache = Cache(folder, settings)
    return _Rows(cache), [tuple(cache.shape(number, "latents")) for number in range(count)]


class _Rows(Sequence[Mapping[str, Tensor]]):
    """A cache as a sequence: an example is read when it is asked for."""

    def __init__(self, cache: Cache) -> None:
        self._cache = cache

    def __len__(self) -> int:
        return len(self._cache)

    def __getitem__(self, number: Any) -> Any:
        return self._cache[number]


@dataclass(frozen=True)
class GuidedExampleEncoder:
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
        return self._row(latents, tensor_to_image(picture), example.caption)

    def single(self) -> dict[str, Tensor]:
        """Encode the one wanted video with its picture and prompt."""
        plan = self.plan
        image = plan.options.image
        if plan.inputs is None or plan.supervision is None or plan.supervision.video is None or image is None:
            raise ValueError("this plan has no single video")
        latents = self._latents(plan.supervision.video, plan.inputs.images[0])
        return self._row(latents, load_image(image), plan.inputs.request.prompt)

    def _latents(self, pixels: Tensor, picture: Tensor) -> Tensor:
        """Latents [C, T, h, w] of a clip whose first frame is ``picture``, encoded alone as in sampling."""
        components = self.plan.pipeline.components
        with torch.no_grad(), components.vae.active() as vae:
            latents = vae.encode(pixels[None].to(components.device))[0]
            latents[:, :1] = vae.encode(picture[None, :, None].to(components.device))[0]
        return latents.cpu()

    def _row(self, latents: Tensor, picture: Image.Image, caption: str) -> dict[str, Tensor]:
        components = self.plan.pipeline.components
        tokens, grid = picture_tokens(self.pi3, picture)
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
