"""Stages "t2v", "more", "i2v", "high", "low": train the tiny family's diffusion transformers.

A DiT sees cached latents of training clips, noised as `wan_core.training` says, and frozen states of freshly worded
captions (one in ten empty, for guidance). A share of the samples keeps leading frames clean, so one network makes
videos from text and goes on from images. Single first frames teach outlines at a fifth of a clip's tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from tools.tiny.family import BOUNDARY, DIT, GEOMETRY, SAMPLING
from tools.tiny.text_stage import draw_caption
from tools.tiny.vae_stage import to_pixels, to_video
from tools.tiny.world import WORLD_VERSION, Clip, Combination, Video, training_clip
from wan_core.models import DiTInputs, KeyRanges, TextEncoder, VideoVAE, WanDiT, WanDiTConfig
from wan_core.sampling import Anchors, Denoiser, ExpertDenoiser, make_solver, sample, seeded_noise
from wan_core.tasks import SamplingDefaults
from wan_core.tasks.i2v import first_frame_mask, first_frame_video
from wan_core.training import Cache, FlowBatch, NoiseLevels, draw_clean_frames, make_flow_batch, write_cache

COUNTS = {"clips": 9000, "stills": 30000, "channels": 600}
"""How many examples each cache of latents has: see `latent_cache`."""
IMAGE_CLIPS = 1000
HARD_SHAPES = {"circle": 0.25, "square": 0.35, "triangle": 0.5, "ring": 0.6, "cross": 1.0}
STILL_LEVELS = NoiseLevels(shift=2.0, std=1.2)
_EMPTY_CAPTIONS = 0.1


@dataclass(frozen=True)
class Course:
    """How long and how fast a stage trains, and on what: see `DiTStage` and `wan_core.training.LoopSettings`."""

    steps: int
    rate: float
    decay_share: float
    average: float
    shares: Mapping[str, float] | None = None


COURSES = {
    "t2v": Course(9000, rate=0.7, decay_share=0.5, average=0.998),
    "more": Course(7000, rate=0.5, decay_share=0.7, average=0.999, shares=HARD_SHAPES),
}


class _Attend(torch.autograd.Function):
    """Softmax attention over ``[B, n, L, d]`` whose every step stays in the inputs' dtype.

    Under autocast torch computes the softmax and its gradient in float32, which is half of a CPU training step.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        weights = torch.matmul(query, key.transpose(-1, -2)).softmax(-1)
        mixed = torch.matmul(weights, value)
        ctx.save_for_backward(query, key, value, weights, mixed)
        return mixed

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value, weights, mixed = ctx.saved_tensors
        change = torch.matmul(gradient, value.transpose(-1, -2))
        change.sub_((gradient * mixed).sum(-1, keepdim=True)).mul_(weights)
        of_value = torch.matmul(weights.transpose(-1, -2), gradient)
        return torch.matmul(change, key), torch.matmul(change.transpose(-1, -2), query), of_value


class PlainAttention(nn.Module):
    """Softmax attention spelled out: for a few hundred tokens on a CPU its backward is far faster than torch's own."""

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_lengths: Tensor | None = None,
        mask: KeyRanges | None = None,
    ) -> Tensor:
        """[B, Lq, n, d] from [B, Lq, n, d] and [B, Lk, n, d]; all keys are seen, or those of the ranges in ``mask``."""
        runs = ((query.shape[1], ((0, key.shape[1]),)),) if mask is None else mask.runs
        heads = [tensor.transpose(1, 2).contiguous() for tensor in (query * query.shape[-1] ** -0.5, key, value)]
        mixed, first = [], 0
        with torch.autocast("cpu", enabled=False):
            for count, seen in runs:
                known = [torch.cat([each[:, :, start:stop] for start, stop in seen], dim=2) for each in heads[1:]]
                mixed.append(_Attend.apply(heads[0][:, :, first : first + count], *known))  # type: ignore[no-untyped-call]
                first += count
        return torch.cat(mixed, dim=2).transpose(1, 2)


def use_plain_attention(dit: WanDiT) -> None:
    """Replace the attention kernels of a DiT, in place."""
    for module in dit.modules():
        if hasattr(module, "inner_attention"):
            module.inner_attention = PlainAttention()


def new_dit(config: WanDiTConfig = DIT) -> WanDiT:
    """A DiT to train: Xavier matrices, zero biases, small text and time embeddings, a silent head; always the same."""
    dit = WanDiT(config)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in dit.named_parameters():
        if parameter.ndim == 1:
            nn.init.constant_(
                parameter, 1.0 if name.endswith(("norm_q.weight", "norm_k.weight", "norm3.weight")) else 0.0
            )
        elif name.startswith(("text_embedding", "time_embedding")):
            nn.init.normal_(parameter, std=0.02, generator=generator)
        elif name.endswith("modulation"):
            nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5, generator=generator)
        elif name == "head.head.weight":
            nn.init.zeros_(parameter)
        else:
            nn.init.xavier_uniform_(parameter.flatten(1), generator=generator)
    return dit


@cache
def combination_of(number: int) -> Combination:
    """What training clip ``number`` shows."""
    return training_clip(number, frames=1).combination


def latent_cache(folder: Path, kind: str, vae: VideoVAE) -> Cache:
    """Latents of training clips, made where they are missing; ``kind`` is one of COUNTS, the tensors are float16.

    ``clips``: ``latents`` ``[24, 5, 8, 8]``, and of the first 1,000 clips ``images`` ``[24, 4, 8, 8]``, their frames 4,
    8, 12 and 16 encoded as single images. ``stills``: ``latents`` ``[24, 1, 8, 8]`` of first frames alone.
    ``channels``: ``latents`` of clips and the ``channels`` ``[28, 5, 8, 8]`` that image-to-video is given.
    """
    settings = {"world": WORLD_VERSION, "kind": kind}
    encode = partial(encode_clip, vae, kind)
    return Cache(write_cache(folder / kind, COUNTS[kind], encode, settings, shard_size=100))


@torch.inference_mode()
def encode_clip(vae: VideoVAE, kind: str, number: int) -> dict[str, Tensor]:
    """The tensors of one training clip in a `latent_cache`."""
    pixels = to_pixels([training_clip(number).video])
    if kind == "stills":
        pixels = pixels[:, :, :1]
    tensors = {"latents": vae.encode(pixels, latents_per_chunk=None)[0]}
    if kind == "clips" and number < IMAGE_CLIPS:
        frames = pixels[0, :, 4::4].transpose(0, 1).unsqueeze(2)
        tensors["images"] = vae.encode(frames, latents_per_chunk=None)[:, :, 0].transpose(0, 1)
    if kind == "channels":
        tensors["channels"] = first_frame_channels(vae, pixels[0, :, 0])
    return {name: tensor.half() for name, tensor in tensors.items()}


def stacked(examples: Sequence[Mapping[str, Tensor]], name: str) -> Tensor:
    """One tensor of each example as float32 ``[B, ...]``."""
    return torch.stack([example[name].float() for example in examples])


@torch.no_grad()
def channel_weights(vae: VideoVAE, latents: Tensor | None = None) -> Tensor:
    """How much each latent channel shows: the energy of pixel changes by a little noise in it, of mean 1 ``[C]``.

    Standardised channels look alike to a loss, but some move a figure and others trim its edges; a third of the weight
    stays uniform. Seen on ``latents`` ``[B, C, T, h, w]``, by default those of two clips of the world.
    """
    generator = torch.Generator().manual_seed(0)
    if latents is None:
        latents = vae.encode(to_pixels([training_clip(seed).video for seed in range(2)]), latents_per_chunk=None)
    plain = vae.decode(latents, latents_per_chunk=None)
    energies = []
    for channel in range(latents.shape[1]):
        noisy = latents.clone()
        noisy[:, channel] += 0.3 * torch.randn(noisy[:, channel].shape, generator=generator)
        energies.append((vae.decode(noisy, latents_per_chunk=None) - plain).square().mean())
    energy = torch.stack(energies)
    return 1 / 3 + 2 / 3 * energy / energy.mean()


def first_frame_channels(vae: VideoVAE, image: Tensor) -> Tensor:
    """What image-to-video is given of a first frame ``[3, H, W]``: mask channels, its latents ``[28, T, h, w]``."""
    latents = vae.encode(first_frame_video(image, GEOMETRY), latents_per_chunk=None)
    return torch.cat([first_frame_mask(GEOMETRY), latents], dim=1)[0]


def text_states(encoder: TextEncoder, captions: list[str]) -> Tensor:
    """States of captions, padded with zero rows: ``[B, 24, 96]``."""
    rows = nn.utils.rnn.pad_sequence(encoder(captions), batch_first=True)
    return functional.pad(rows, (0, 0, 0, DIT.text_len - rows.shape[1]))


@dataclass(frozen=True)
class DiTStage:
    """One DiT with what its loss needs, for `wan_core.training.train`.

    ``clips`` and ``stills`` are caches of latents; examples of ``clips`` with channels give the first frame by them.
    ``clean_share`` of the samples has clean leading frames, ``with_images`` some of them as single images; ``levels``
    are the noise levels trained, ``weights`` those of the latent channels. ``shares`` say how much of the drawn samples
    of a shape is kept, so that hard ones are seen more often. ``rank`` numbers processes that train together.
    """

    dit: WanDiT
    encoder: TextEncoder
    clips: Cache
    levels: NoiseLevels
    weights: Tensor
    stills: Cache | None = None
    clean_share: float = 0.0
    with_images: bool = False
    batch: int = 16
    still_batch: int = 80
    shares: Mapping[str, float] | None = None
    rank: int = 0

    def loss(self, step: int, index: int) -> Tensor:
        """Flow-matching loss of clips, or of stills where accumulation index and rank add up to an odd number."""
        if self.stills is not None and (index + self.rank) % 2:
            return self.still_loss(self.stills, step)
        return self.clip_loss(step)

    def still_loss(self, stills: Cache, step: int) -> Tensor:
        """Loss of one step on single first frames."""
        rng = np.random.default_rng([6, step, self.rank])
        indices = self._draw(rng, len(stills), self.still_batch)
        latents = stacked([stills[index] for index in indices], "latents")
        captions = [self._caption(index, rng) for index in indices]
        batch = make_flow_batch(latents, STILL_LEVELS.sample(self.still_batch), torch.randn_like(latents))
        return self._velocity_loss(batch, captions)

    def clip_loss(self, step: int) -> Tensor:
        """Loss of one step on clips."""
        rng = np.random.default_rng([5, step, self.rank])
        indices = self._draw(rng, len(self.clips), self.batch)
        examples = [self.clips[index] for index in indices]
        latents = stacked(examples, "latents")
        captions = [self._caption(index, rng) for index in indices]
        clean = draw_clean_frames(self.batch, GEOMETRY.latent_frames, self.clean_share) if self.clean_share else None
        if clean is not None and self.with_images:
            put_images(latents, examples, clean)
        batch = make_flow_batch(latents, self.levels.sample(self.batch), torch.randn_like(latents), clean)
        concat = stacked(examples, "channels") if "channels" in examples[0] else None
        return self._velocity_loss(batch, captions, concat)

    def _velocity_loss(self, batch: FlowBatch, captions: list[str], concat: Tensor | None = None) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            context = text_states(self.encoder, captions)
            velocity = self.dit(batch.latents, batch.timesteps, DiTInputs(context=context, channel_concat=concat))
        return batch.loss(velocity, self.weights)

    def _draw(self, rng: np.random.Generator, known: int, count: int) -> list[int]:
        """``count`` numbers of clips below ``known``."""
        if self.shares is None:
            return [int(index) for index in rng.integers(0, known, count)]
        drawn: list[int] = []
        while len(drawn) < count:
            index = int(rng.integers(0, known))
            if rng.random() < self.shares[combination_of(index).shape]:
                drawn.append(index)
        return drawn

    def _caption(self, index: int, rng: np.random.Generator) -> str:
        caption = draw_caption(combination_of(index), rng)
        return "" if rng.random() < _EMPTY_CAPTIONS else caption


def put_images(latents: Tensor, examples: Sequence[Mapping[str, Tensor]], clean: Tensor) -> None:
    """Give half of the samples with several ``clean`` frames those of single images, as users' are; in place.

    Only the first 1,000 clips have such images.
    """
    for row, (example, count) in enumerate(zip(examples, clean.tolist(), strict=True)):
        if count > 1 and "images" in example and torch.rand(()) < 0.5:
            latents[row, :, 1:count] = example["images"][:, : count - 1]


@torch.inference_mode()
def generate(
    dit: WanDiT,
    vae: VideoVAE,
    encoder: TextEncoder,
    clips: list[Clip],
    settings: SamplingDefaults = SAMPLING,
    *,
    from_first_frame: bool = False,
    low_noise: WanDiT | None = None,
    batch: int = 20,
) -> list[Video]:
    """Make a video for each clip's caption; noise by position in the list.

    The first frame is given as an anchor (``from_first_frame``), by channels if the DiT takes them, or not at all.
    ``low_noise`` takes over below the family's boundary.
    """
    videos: list[Video] = []
    empty = text_states(encoder, [""])
    for start in range(0, len(clips), batch):
        part = clips[start : start + batch]
        first = to_pixels([clip.video[:1] for clip in part])
        anchors = concat = None
        if dit.config.in_dim > dit.config.out_dim:
            concat = torch.stack([first_frame_channels(vae, image) for image in first[:, :, 0]])
        elif from_first_frame:
            anchors = Anchors.leading(vae.encode(first), GEOMETRY.latent_frames)
        context = text_states(encoder, [clip.caption for clip in part])
        positive = DiTInputs(context=context, channel_concat=concat)
        negative = DiTInputs(context=empty.expand(len(part), -1, -1), channel_concat=concat)
        scale = settings.guidance_scale
        high, low = (Denoiser(each, positive, negative, scale, anchors=anchors) for each in (dit, low_noise or dit))
        with torch.autocast("cpu", torch.bfloat16):
            latents = denoise(ExpertDenoiser(high, low, BOUNDARY), settings, len(part), start, anchors)
        videos += decode(vae, latents)
    return videos


def denoise(
    denoiser: Denoiser | ExpertDenoiser, settings: SamplingDefaults, count: int, seed: int, anchors: Anchors | None
) -> Tensor:
    """Latents ``[count, 24, 5, 8, 8]`` from noise."""
    noise = seeded_noise((count, *GEOMETRY.latent_shape), seed)
    solver = make_solver(settings.solver, settings.num_inference_steps, flow_shift=settings.flow_shift)
    return sample(denoiser, solver, noise, anchors=anchors)


def decode(vae: VideoVAE, latents: Tensor) -> list[Video]:
    """The videos of latents, four at a time."""
    parts = (vae.decode(four.float(), latents_per_chunk=None) for four in latents.split(4))
    return [to_video(video) for part in parts for video in part]
