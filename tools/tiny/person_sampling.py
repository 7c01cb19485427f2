"""Videos of held-back persons: by the teacher, by a causal student in many steps or in four, with poses and without."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from selfforcing_unianimate import TINY_SFU, CausalDiT, CausalInputs, CausalMemory
from tools.tiny.dit_stage import decode
from tools.tiny.family import GEOMETRY
from tools.tiny.people import Person
from tools.tiny.person_data import PoseTrunk, skeleton_frames
from tools.tiny.person_stages import PosedDiT
from tools.tiny.world import Video
from wan_core.models import DiTInputs, VideoVAE, WanDiT
from wan_core.sampling import Denoiser, make_solver, sample, seeded_noise
from wan_core.tasks import SamplingDefaults

BLOCKS = TINY_SFU.task.blocks


@torch.inference_mode()
def features_of(trunk: PoseTrunk, people: Sequence[Person]) -> Tensor:
    """The trunk's features [B, hidden, T, 2h, 2w] of persons of one length."""
    return torch.cat([trunk.features(skeleton_frames(person.poses)) for person in people])


@torch.inference_mode()
def teacher_latents(
    dit: WanDiT, context: Tensor, empty: Tensor, channels: Tensor, tokens: Tensor, settings: SamplingDefaults, seed: int
) -> Tensor:
    """Latents [B, 24, 5, 8, 8] under texts, pictures and pose tokens; poses are in the positive branch alone."""
    positive = DiTInputs(context=context, channel_concat=channels, add_condition=tokens)
    negative = DiTInputs(context=empty.expand_as(context), channel_concat=channels)
    noise = seeded_noise((len(context), *GEOMETRY.latent_shape), seed)
    solver = make_solver(settings.solver, settings.num_inference_steps, flow_shift=settings.flow_shift)
    scale = settings.guidance_scale
    return sample(Denoiser(dit, positive, None if scale == 1 else negative, scale), solver, noise)


def no_pictures(dit: WanDiT, count: int, frames: int = GEOMETRY.latent_frames) -> Tensor:
    """The channels of a picture [count, C, frames, 8, 8] where there is none."""
    return torch.zeros(count, dit.config.in_dim - dit.config.out_dim, frames, *GEOMETRY.latent_shape[2:])


@torch.inference_mode()
def teacher_videos(
    model: PosedDiT,
    vae: VideoVAE,
    captions: dict[str, Tensor],
    people: Sequence[Person],
    features: Tensor,
    settings: SamplingDefaults,
    batch: int = 10,
) -> list[Video]:
    """A video of every person from text and poses, without a picture."""
    videos: list[Video] = []
    for start in range(0, len(people), batch):
        part = people[start : start + batch]
        context = torch.stack([captions[person.caption] for person in part])
        channels = no_pictures(model.dit, len(part))
        tokens = model.tokens(features[start : start + batch])
        latents = teacher_latents(model.dit, context, captions[""], channels, tokens, settings, start)
        videos += decode(vae, latents)
    return videos


@torch.inference_mode()
def student_latents(
    dit: CausalDiT, context: Tensor, channels: Tensor, tokens: Tensor | None, settings: SamplingDefaults, seed: int
) -> Tensor:
    """Latents [B, 24, T, 8, 8] block by block, as `sfu infer` makes them; T is that of ``channels``."""
    frames = channels.shape[2]
    branch = CausalInputs(
        context=context,
        channel_concat=channels,
        add_condition=tokens,
        blocks=BLOCKS,
        memory=CausalMemory(BLOCKS, frames),
    ).with_cache()
    noise = seeded_noise((len(context), GEOMETRY.latent_shape[0], frames, *GEOMETRY.latent_shape[2:]), seed)
    made = []
    for start, stop in BLOCKS.spans(frames):
        denoiser = Denoiser(dit, replace(branch.frames(start, stop), start=start), None, 1.0)
        solver = make_solver(settings.solver, settings.num_inference_steps, flow_shift=settings.flow_shift)
        made.append(sample(denoiser, solver, noise[:, :, start:stop]))
        denoiser(made[-1], torch.tensor(0.0))
    return torch.cat(made, dim=2)
