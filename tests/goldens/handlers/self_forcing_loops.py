"""Families sf_few_step, sf_causal_diffusion and the same under poses: block after block through the one sampler."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from einops import rearrange
from torch import Tensor

from selfforcing_unianimate.causal_dit import CausalDiT, CausalInputs
from selfforcing_unianimate.memory import CausalMemory
from selfforcing_unianimate.pose_encoder import PoseEncoder
from selfforcing_unianimate.pose_encoder import pose_tokens as as_tokens
from selfforcing_unianimate.pose_weights import STACKS, read_pose_config
from tests.goldens.handlers.self_forcing import blocks_of, build_causal, pose_tokens
from tests.goldens.harness import GoldenCase, finished, handles
from wan_core.checkpoints import MemorySource
from wan_core.sampling import Denoiser, Solver, make_solver, sample


def made_in_blocks(
    case: GoldenCase, network: CausalDiT, branches: Sequence[CausalInputs], solvers: Iterator[Solver], revisit: float
) -> Tensor:
    """The video [B, T, C, H, W] behind the initial frames, each block seen once more at timestep ``revisit``."""
    noise = case.inputs["noise"].transpose(1, 2)
    given = case.inputs.get("initial_latent")
    video = [] if given is None else [given.transpose(1, 2)]
    known = sum(part.shape[2] for part in video)
    total = known + noise.shape[2]
    remembering = [replace(each.with_cache(), memory=CausalMemory(each.blocks, total)) for each in branches]
    for start, stop in branches[0].blocks.spans(total):
        denoiser = Denoiser(
            network, *(each.frames(start, stop) for each in remembering), case.call.get("guidance_scale", 1.0)
        )
        if stop <= known:
            denoiser(video[0][:, :, start:stop], torch.tensor(0.0))
            continue
        video.append(sample(denoiser, next(solvers), noise[:, :, start - known : stop - known]))
        denoiser(video[-1], torch.tensor(revisit))
    return torch.cat(video, dim=2).transpose(1, 2)


def conditions(case: GoldenCase, context: Tensor, pose: Tensor | None) -> CausalInputs:
    return CausalInputs(context=context, add_condition=pose, blocks=blocks_of(case))


@handles("sf_few_step", "sfu_pose_few_step")
def few_step(case: GoldenCase) -> Mapping[str, Tensor]:
    call, noise = case.call, case.inputs["noise"]
    draws = iter(range(len(case.named("in.renoise."))))

    def drawn(shape: Sequence[int]) -> Tensor:
        return rearrange(case.inputs[f"renoise.{next(draws)}"], "(b t) c h w -> b c t h w", b=shape[0])

    def solver() -> Solver:
        steps = call["denoising_step_list"]
        options = {"timesteps": steps, "shift_timesteps": call["warp_denoising_step"], "noise": drawn}
        return make_solver("renoise", len(steps), flow_shift=call["timestep_shift"], **options)

    inputs = conditions(case, case.inputs["context"], pose_tokens(case, noise.transpose(1, 2)))
    network = build_causal(case, case.weights)
    computed = {
        "out.latents": made_in_blocks(case, network, [inputs], iter(solver, None), float(call["context_noise"])),
        "out.denoising_steps": solver().timesteps,
    }
    return {name: value for name, value in computed.items() if name in case.expected}


@handles("sf_causal_diffusion")
def causal_diffusion(case: GoldenCase) -> Mapping[str, Tensor]:
    branches = [conditions(case, case.inputs[f"context_{name}"], None) for name in ("pos", "neg")]
    return guided(case, branches, build_causal(case, case.weights))


def guided(case: GoldenCase, branches: Sequence[CausalInputs], network: CausalDiT) -> Mapping[str, Tensor]:
    call = case.call

    def solver() -> Solver:
        return make_solver(call["solver"], call["sampling_steps"], flow_shift=call["timestep_shift"])

    return {
        "out.latents": made_in_blocks(case, network, branches, iter(solver, None), 0.0),
        "out.timesteps": solver().timesteps.float(),
    }


@handles("sfu_pose_causal_diffusion")
def pose_causal_diffusion(case: GoldenCase) -> Mapping[str, Tensor]:
    """Both branches see the poses, as in the fork."""
    stacks = {name: tensor for name, tensor in case.weights.items() if name.startswith(STACKS)}
    motion = PoseEncoder(read_pose_config(Path(case.name), MemorySource(stacks)))
    motion.dwpose_embedding.load_state_dict(case.named(f"weights.{STACKS[0]}."))
    embedded = finished(motion).embed_motion(case.inputs["dwpose"][None])
    network = build_causal(case, {name: tensor for name, tensor in case.weights.items() if name not in stacks})
    texts = (case.inputs[f"context_{name}"] for name in ("pos", "neg"))
    branches = [conditions(case, text, as_tokens(embedded)) for text in texts]
    return {"mid.dwpose_embedding": embedded, **guided(case, branches, network)}
