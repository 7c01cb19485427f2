"""Stages "t2v", "more", "i2v", "high", "low": train the tiny family's diffusion transformers.

A DiT sees cached latents of training clips, noised as `wan_core.training` says, and frozen states of freshly worded
captions (one in ten empty, for guidance). A share of the samples keeps leading frames clean, so one network makes
videos from text and goes on from pictures. Single first frames teach outlines at a fifth of a clip's tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from tools.tiny.evaluate import Video
from tools.tiny.family import BOUNDARY, LATENT_FRAMES, LATENT_SIZE, TEXT_LEN, Z_DIM
from tools.tiny.text_stage import draw_caption
from tools.tiny.vae_stage import to_pixels, to_video
from tools.tiny.world import Clip, Combination, training_clip
from wan_core.drafts import replaced_file
from wan_core.models import DiTInputs, TextEncoder, VideoVAE, WanDiT
from wan_core.sampling import Anchors, Denoiser, ExpertDenoiser, make_solver, sample, seeded_noise
from wan_core.training import FlowBatch, Muon, NoiseLevels, draw_clean_frames, make_flow_batch

CLIPS = 9000
FIRST_CLIPS = 6000
PICTURE_CLIPS = 1000
STILLS = 30000
HARD_SHAPES = {"circle": 0.25, "square": 0.35, "triangle": 0.5, "ring": 0.6, "cross": 1.0}
STILL_LEVELS = NoiseLevels(shift=2.0, std=1.2)
_SHARD = 100
_EMPTY_CAPTIONS = 0.1


@dataclass(frozen=True)
class Course:
    """How long and how fast a stage trains, and on what: see `DiTStage` and `wan_core.training.LoopSettings`."""

    steps: int
    rate: float
    decay_share: float
    average: float
    first_clips: int
    shares: Mapping[str, float] | None = None


COURSES = {
    "t2v": Course(9000, rate=0.7, decay_share=0.5, average=0.998, first_clips=FIRST_CLIPS),
    "more": Course(7000, rate=0.5, decay_share=0.7, average=0.999, first_clips=CLIPS, shares=HARD_SHAPES),
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

    def forward(self, query: Tensor, key: Tensor, value: Tensor, key_lengths: Tensor | None = None) -> Tensor:
        """[B, Lq, n, d] from [B, Lq, n, d] and [B, Lk, n, d]; all keys are seen, the tiny networks mask none."""
        heads = [tensor.transpose(1, 2).contiguous() for tensor in (query * query.shape[-1] ** -0.5, key, value)]
        with torch.autocast("cpu", enabled=False):
            mixed: Tensor = _Attend.apply(*heads)  # type: ignore[no-untyped-call]
        return mixed.transpose(1, 2)


def use_plain_attention(dit: WanDiT) -> None:
    """Replace the attention kernels of a DiT, in place."""
    for module in dit.modules():
        if hasattr(module, "inner_attention"):
            module.inner_attention = PlainAttention()


def start_weights(dit: WanDiT) -> None:
    """Random weights to train from: Xavier matrices, zero biases, small text and time embeddings, a silent head."""
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


def dit_optimizers(dit: WanDiT, rate: float = 1.0) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside blocks, AdamW for the rest; ``rate`` scales both learning rates."""
    matrices = [p for p in dit.blocks.parameters() if p.ndim == 2]
    taken = {id(p) for p in matrices}
    rest = [p for p in dit.parameters() if id(p) not in taken]
    return [
        Muon(matrices, lr=0.02 * rate),
        torch.optim.AdamW(rest, lr=2e-3 * rate, betas=(0.9, 0.98), weight_decay=0.0),
    ]


class LatentCache:
    """Latents of training clips in shards of 100 on disk, made when first asked for.

    ``clips`` are the latents of whole clips ``[24, 5, 8, 8]``, ``pictures`` those of their frames 4, 8, 12 and 16
    encoded as single pictures ``[24, 4, 8, 8]``, ``stills`` those of their first frame alone ``[24, 1, 8, 8]``,
    ``conditions`` those of their first frame followed by grey, as image-to-video by channels is given them
    ``[24, 5, 8, 8]``.
    """

    def __init__(self, folder: Path, vae: VideoVAE) -> None:
        self.folder = folder
        self.vae = vae
        self._shards: dict[tuple[str, int], Tensor] = {}
        self._combinations: dict[int, list[Combination]] = {}

    def rows(self, indices: list[int], kind: str = "clips") -> Tensor:
        """Stack the latents of clips by their numbers."""
        return torch.stack([self._shard(kind, i // _SHARD)[i % _SHARD] for i in indices]).float()

    def combination(self, index: int) -> Combination:
        """What clip ``index`` shows."""
        shard = index // _SHARD
        if shard not in self._combinations:
            numbers = range(shard * _SHARD, (shard + 1) * _SHARD)
            self._combinations[shard] = [training_clip(n, frames=1).combination for n in numbers]
        return self._combinations[shard][index % _SHARD]

    def _shard(self, kind: str, number: int) -> Tensor:
        if (kind, number) not in self._shards:
            path = self.folder / f"{kind}-{number:04d}.safetensors"
            if not path.exists():
                with replaced_file(path) as draft:
                    save_file({kind: self._encode(kind, number)}, draft)
            self._shards[kind, number] = load_file(path)[kind]
        return self._shards[kind, number]

    @torch.inference_mode()
    def _encode(self, kind: str, number: int) -> Tensor:
        encoded = []
        for index in range(number * _SHARD, (number + 1) * _SHARD, 4):
            shown = slice(0, 1) if kind == "stills" else slice(None)
            pixels = to_pixels([training_clip(index + k).video[shown] for k in range(4)])
            if kind == "pictures":
                frames = pixels[:, :, 4::4].transpose(1, 2).flatten(0, 1).unsqueeze(2)
                latents = self.vae.encode(frames, latents_per_chunk=None)
                encoded.append(latents.squeeze(2).unflatten(0, (4, 4)).transpose(1, 2))
                continue
            if kind == "conditions":
                pixels[:, :, 1:] = 0
            encoded.append(self.vae.encode(pixels, latents_per_chunk=None))
        return torch.cat(encoded).half()


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


def first_frame_channels(conditions: Tensor) -> Tensor:
    """Four mask channels, 1 on the first latent frame, before the encoded condition ``[B, 24, 5, 8, 8]``."""
    mask = torch.zeros(conditions.shape[0], 4, *conditions.shape[2:])
    mask[:, :, 0] = 1
    return torch.cat([mask, conditions], dim=1)


def text_states(encoder: TextEncoder, captions: list[str]) -> Tensor:
    """States of captions, padded with zero rows: ``[B, 24, 96]``."""
    rows = nn.utils.rnn.pad_sequence(encoder(captions), batch_first=True)
    return functional.pad(rows, (0, 0, 0, TEXT_LEN - rows.shape[1]))


@dataclass(frozen=True)
class DiTStage:
    """One DiT with what its loss needs, for `wan_core.training.train`.

    ``clean_share`` of the samples has clean leading frames, ``with_pictures`` some of them as single pictures;
    ``from_condition`` gives the first frame by channels instead; ``levels`` are the noise levels trained,
    ``weights`` those of the latent channels. ``shares`` say how much of the drawn samples of a shape is kept, so that
    hard ones are seen more often. ``rank`` numbers processes that train together.
    """

    dit: WanDiT
    encoder: TextEncoder
    cache: LatentCache
    levels: NoiseLevels
    weights: Tensor
    clean_share: float = 0.0
    with_pictures: bool = False
    from_condition: bool = False
    batch: int = 16
    clips: int = CLIPS
    first_clips: int = FIRST_CLIPS
    stills: int = 80
    shares: Mapping[str, float] | None = None
    rank: int = 0

    def loss(self, step: int, index: int) -> Tensor:
        """Flow-matching loss of clips, or of stills where accumulation index and rank add up to an odd number."""
        return self.still_loss(step) if (index + self.rank) % 2 else self.clip_loss(step)

    def still_loss(self, step: int) -> Tensor:
        """Loss of one step on single first frames."""
        rng = np.random.default_rng([6, step, self.rank])
        indices = self._draw(rng, STILLS, self.stills)
        latents = self.cache.rows(indices, "stills")
        captions = [self._caption(index, rng) for index in indices]
        batch = make_flow_batch(latents, STILL_LEVELS.sample(self.stills), torch.randn_like(latents))
        return self._velocity_loss(batch, captions)

    def clip_loss(self, step: int) -> Tensor:
        """Loss of one step on clips; the set of clips grows by two a step until it is whole."""
        rng = np.random.default_rng([5, step, self.rank])
        known = min(self.clips, self.first_clips + 2 * step) // _SHARD * _SHARD
        indices = self._draw(rng, known, self.batch)
        latents = self.cache.rows(indices)
        captions = [self._caption(index, rng) for index in indices]
        clean = draw_clean_frames(self.batch, LATENT_FRAMES, self.clean_share) if self.clean_share else None
        if clean is not None and self.with_pictures:
            latents = self._with_pictures(latents, indices, clean)
        batch = make_flow_batch(latents, self.levels.sample(self.batch), torch.randn_like(latents), clean)
        concat = first_frame_channels(self.cache.rows(indices, "conditions")) if self.from_condition else None
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
            if rng.random() < self.shares[self.cache.combination(index).shape]:
                drawn.append(index)
        return drawn

    def _caption(self, index: int, rng: np.random.Generator) -> str:
        caption = draw_caption(self.cache.combination(index), rng)
        return "" if rng.random() < _EMPTY_CAPTIONS else caption

    def _with_pictures(self, latents: Tensor, indices: list[int], clean: Tensor) -> Tensor:
        """Give half of the samples with several clean frames those of single pictures, as users' pictures are.

        Only the first 1,000 clips have such pictures.
        """
        latents = latents.clone()
        for row, (index, count) in enumerate(zip(indices, clean.tolist(), strict=True)):
            if count > 1 and index < PICTURE_CLIPS and torch.rand(()) < 0.5:
                latents[row, :, 1:count] = self.cache.rows([index], "pictures")[0, :, : count - 1]
        return latents


@torch.inference_mode()
def generate(
    dit: WanDiT,
    vae: VideoVAE,
    encoder: TextEncoder,
    clips: list[Clip],
    *,
    steps: int = 20,
    guidance_scale: float = 4.0,
    flow_shift: float = 3.0,
    solver: str = "euler",
    from_first_frame: bool = False,
    low_noise: WanDiT | None = None,
    batch: int = 20,
) -> list[Video]:
    """Make a video for each clip's caption; noise by position in the list.

    The first frame is given as an anchor (``from_first_frame``), by channels if the DiT takes them, or not at all.
    ``low_noise`` takes over below the family's boundary.
    """
    videos: list[Video] = []
    by_channels = dit.config.in_dim > Z_DIM
    empty = text_states(encoder, [""])
    for start in range(0, len(clips), batch):
        part = clips[start : start + batch]
        noise = seeded_noise((len(part), Z_DIM, LATENT_FRAMES, LATENT_SIZE, LATENT_SIZE), start)
        anchors = concat = None
        if by_channels:
            pixels = to_pixels([clip.video for clip in part])
            pixels[:, :, 1:] = 0
            concat = first_frame_channels(vae.encode(pixels))
        elif from_first_frame:
            first = vae.encode(to_pixels([clip.video[:1] for clip in part]))
            anchors = Anchors.leading(first, LATENT_FRAMES)
        context = text_states(encoder, [clip.caption for clip in part])
        positive = DiTInputs(context=context, channel_concat=concat)
        negative = DiTInputs(context=empty.expand(len(part), -1, -1), channel_concat=concat)
        high, low = (
            Denoiser(each, positive, negative, guidance_scale, anchors=anchors) for each in (dit, low_noise or dit)
        )
        denoiser = ExpertDenoiser(high, low, BOUNDARY)
        with torch.autocast("cpu", torch.bfloat16):
            latents = sample(denoiser, make_solver(solver, steps, flow_shift=flow_shift), noise, anchors=anchors)
        for one in latents.split(4):
            videos.extend(to_video(video) for video in vae.decode(one.float(), latents_per_chunk=None))
    return videos
