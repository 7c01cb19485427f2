"""Stage "causal": the bundled text-to-video transformer learns to go on by single latent frames (teacher forcing).

Every latent frame has a noise level of its own and sees the clean frames before it, which are noised a little, as what
it made itself will be. Clips stand anywhere in a longer video, for rotary positions tell the frame.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from selfforcing_unianimate import TINY_SFU, CausalDiT, CausalInputs, CausalMemory
from tools.tiny.dit_stage import DiTStage, decode, stacked, text_states
from tools.tiny.family import GEOMETRY, SAMPLING, load_bundled
from tools.tiny.world import Clip, Video
from wan_core.models import TextEncoder, VideoVAE
from wan_core.sampling import Denoiser, make_solver, sample, seeded_noise
from wan_core.training import make_flow_batch

BLOCKS = TINY_SFU.task.blocks
HISTORY_NOISE = 0.1
LONGEST = 64
"""Latent frames of a video among which a training clip may stand."""


def new_causal_dit() -> CausalDiT:
    """The causal transformer with the bundled weights of text to video; pose tokens begin at zero."""
    dit = CausalDiT(TINY_SFU.dit)
    dit.load_state_dict({**dit.state_dict(), **load_bundled("dit").state_dict()})
    return dit


@dataclass(frozen=True)
class CausalStage(DiTStage):
    """Frames of clips, each under the clean ones before it; see `DiTStage`."""

    def clip_loss(self, step: int) -> Tensor:
        """Flow-matching loss of one step on clips."""
        rng = np.random.default_rng([7, step, self.rank])
        indices = self._draw(rng, len(self.clips), self.batch)
        latents = stacked([self.clips[index] for index in indices], "latents")
        captions = [self._caption(index, rng) for index in indices]
        frames = latents.shape[2]
        sigmas = self.levels.sample(self.batch * frames).view(self.batch, frames)
        batch = make_flow_batch(latents, sigmas, torch.randn_like(latents))
        history = HISTORY_NOISE * torch.rand(self.batch, frames)
        clean = make_flow_batch(latents, history, torch.randn_like(latents))
        with torch.autocast("cpu", torch.bfloat16):
            inputs = CausalInputs(
                context=text_states(self.encoder, captions),
                blocks=BLOCKS,
                start=int(rng.integers(0, LONGEST)),
                clean_latents=clean.latents,
                clean_timesteps=clean.timesteps,
            )
            velocity = self.dit(batch.latents, batch.timesteps, inputs)
        return batch.loss(velocity, self.weights)


@torch.inference_mode()
def generate_causal(
    dit: CausalDiT, vae: VideoVAE, encoder: TextEncoder, clips: list[Clip], *, batch: int = 20
) -> list[Video]:
    """Make a video for each clip's caption, block by block; noise by position in the list."""
    videos: list[Video] = []
    empty = text_states(encoder, [""])
    for start in range(0, len(clips), batch):
        part = clips[start : start + batch]
        contexts = text_states(encoder, [clip.caption for clip in part]), empty.expand(len(part), -1, -1)
        noise = seeded_noise((len(part), *GEOMETRY.latent_shape), start)
        with torch.autocast("cpu", torch.bfloat16):
            videos += decode(vae, rollout(dit, noise, contexts))
    return videos


def rollout(dit: CausalDiT, noise: Tensor, contexts: tuple[Tensor, Tensor]) -> Tensor:
    """Latents [B, C, T, h, w] from noise under the states of captions and of the empty one, each [B, L, dim]."""
    frames = noise.shape[2]
    branches = [
        CausalInputs(context=context, blocks=BLOCKS, memory=CausalMemory(BLOCKS, frames)).with_cache()
        for context in contexts
    ]
    made = []
    for start, stop in BLOCKS.spans(frames):
        positive, negative = (replace(branch, start=start) for branch in branches)
        denoiser = Denoiser(dit, positive, negative, SAMPLING.guidance_scale)
        solver = make_solver(SAMPLING.solver, SAMPLING.num_inference_steps, flow_shift=SAMPLING.flow_shift)
        made.append(sample(denoiser, solver, noise[:, :, start:stop]))
        denoiser(made[-1], torch.tensor(0.0))  # both branches remember what was made
    return torch.cat(made, dim=2)
