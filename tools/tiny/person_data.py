"""What the tiny persons' networks are trained on, made once: latents, features of skeletons, pictures of every look.

Of UniAnimate's pose encoder only the last layer learns, with a transformer. Its six layers before that are computed:
they hand on the colours of pixels, then the principal components of 2x2x2 of what they have, in the almost straight
part of SiLU. So what they make of the skeletons of every clip can be cached.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from selfforcing_unianimate.drawing import model_picture
from selfforcing_unianimate.keypoints import Poses
from selfforcing_unianimate.pose_config import PoseConfig
from selfforcing_unianimate.pose_encoder import MOTION_STRIDE, PoseEncoder
from tools.tiny.dit_stage import first_frame_channels
from tools.tiny.family import DIT, GEOMETRY
from tools.tiny.people import PEOPLE_VERSION, STYLES, Look, draw_motion, looks, poses_of_body, render, training_person
from tools.tiny.vae_stage import to_pixels
from wan_core.models import VideoVAE
from wan_core.training import Cache, write_cache

CLIPS = {"suit": 640, "dress": 240}
POSE = PoseConfig(hidden=16, token_dim=DIT.dim, reference_channels=DIT.in_dim + 4)
SKELETON_SIDE = GEOMETRY.token_grid[1] * MOTION_STRIDE
"""Pixels of the sides of drawn skeletons, of which 16 make one token."""
PICTURES = 6
"""Pictures of every look."""
OFFSET = 8.0
"""Where SiLU is almost straight: what the trunk adds to its features."""
_CONTRAST = 3.0


def skeleton_frames(poses: Poses) -> Tensor:
    """The drawn skeletons [1, 3, F, S, S] uint8 of poses, as networks see them."""
    frames = [model_picture(poses[index : index + 1], SKELETON_SIDE, SKELETON_SIDE) for index in range(len(poses))]
    return torch.from_numpy(np.stack(frames)).permute(3, 0, 1, 2)[None]


class PoseTrunk(nn.Module):
    """The pose encoder's layers before its last one, computed by principal components: see the module."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = PoseEncoder(POSE).requires_grad_(False)
        self.convs = [layer for layer in self.encoder.dwpose_embedding if isinstance(layer, nn.Conv3d)][:-1]
        for conv in self.convs:
            nn.init.zeros_(conv.weight)
            nn.init.zeros_(_bias(conv))

    @torch.no_grad()
    def features(self, skeletons: Tensor, layers: int = 6) -> Tensor:
        """[B, hidden, T, 2h, 2w] of skeletons [B, 3, F, S, S] uint8, without their offset.

        Only the taps that are not zero are computed, which changes nothing. ``layers``: as far as to that one.
        """
        hidden = torch.cat([skeletons[:, :, :1].expand(-1, -1, 3, -1, -1), skeletons], dim=2).float() / 255
        for conv in self.convs[:layers]:
            taps = [slice(1, 1 + stride) for stride in conv.stride]
            weight = conv.weight[:, :, taps[0], taps[1], taps[2]]
            hidden = functional.silu(functional.conv3d(hidden, weight, conv.bias, stride=conv.stride))
        return hidden - OFFSET


@torch.no_grad()
def computed_trunk(clips: int = 40) -> PoseTrunk:
    """The trunk whose channels are principal components of drawn skeletons of its own."""
    trunk = PoseTrunk()
    rng = np.random.default_rng(33)
    skeletons = [skeleton_frames(poses_of_body(draw_motion(rng, GEOMETRY.num_frames))) for _ in range(clips)]
    first, *others = trunk.convs
    for channel in range(3):  # the colours, in the almost straight part of SiLU
        first.weight[channel, channel, 1, 1, 1] = _CONTRAST
        _bias(first)[channel] = OFFSET - _CONTRAST / 2
    for conv in others[:2]:
        for channel in range(3):
            conv.weight[channel, channel, 1, 1, 1] = 1
    for channel in range(12):  # four pixels of three colours
        others[2].weight[channel, channel % 3, 1, 1 + channel // 6, 1 + channel // 3 % 2] = 1
    for layers, conv in enumerate(others[3:], start=4):
        cells = torch.cat([_cells(trunk.features(each, layers)) for each in skeletons])
        cells = cells[(cells - cells.median(dim=0).values).abs().amax(dim=1) > 0.1]  # not what is black
        mean = cells.mean(dim=0)
        values, vectors = torch.linalg.eigh(torch.cov(cells.T))
        basis = vectors.flip(1)[:, : POSE.hidden] / values.flip(0)[: POSE.hidden].clamp_min(1e-4).sqrt()
        conv.weight[:, :, 1:, 1:, 1:] = basis.T.reshape(POSE.hidden, POSE.hidden, 2, 2, 2)
        _bias(conv).copy_(OFFSET - basis.T @ (mean + OFFSET))
    return trunk


def _cells(features: Tensor) -> Tensor:
    """Features [1, C, T, h, w] as rows [N, C * 8] of two frames, rows and columns each."""
    _, channels, frames, height, width = features.shape
    cut = features.view(channels, frames // 2, 2, height // 2, 2, width // 2, 2)
    return cut.permute(1, 3, 5, 0, 2, 4, 6).reshape(-1, channels * 8)


def _bias(conv: nn.Module) -> Tensor:
    bias = conv.bias
    if not isinstance(bias, Tensor):
        raise TypeError("this convolution has no bias")
    return bias


def latent_clips(folder: Path, style: str, vae: VideoVAE) -> Cache:
    """``latents`` [24, 5, 8, 8] float16 of every training clip of a style."""

    @torch.inference_mode()
    def encode(number: int) -> dict[str, Tensor]:
        pixels = to_pixels([training_person(number, style=style).video])
        return {"latents": vae.encode(pixels, latents_per_chunk=None)[0].half()}

    settings = {"people": PEOPLE_VERSION, "style": style, "kind": "latents"}
    return Cache(write_cache(folder / f"{style}-latents", CLIPS[style], encode, settings, shard_size=80))


def pose_features(folder: Path, style: str, trunk: PoseTrunk, part: tuple[int, int]) -> None:
    """Write ``features`` [16, 5, 16, 16] float16 of the skeletons of every training clip of a style, or a part."""

    @torch.inference_mode()
    def encode(number: int) -> dict[str, Tensor]:
        skeletons = skeleton_frames(training_person(number, style=style).poses)
        return {"features": trunk.features(skeletons)[0].half()}

    settings = {"people": PEOPLE_VERSION, "style": style, "kind": "features", "trunk": "computed"}
    write_cache(folder / f"{style}-features", CLIPS[style], encode, settings, shard_size=80, part=part)


@cache
def pictured_looks() -> tuple[Look, ...]:
    """The looks that there are pictures of: all that are trained."""
    return tuple(look for style in STYLES for look in looks(held_back=False, style=style))


def write_pictures(folder: Path, vae: VideoVAE) -> None:
    """Write ``channels`` [PICTURES, 28, 5, 8, 8] float16 of persons in random poses, for every look."""

    @torch.inference_mode()
    def encode(number: int) -> dict[str, Tensor]:
        rng, look = np.random.default_rng([34, number]), pictured_looks()[number]
        images = [to_pixels([render(look, draw_motion(rng, 1))])[0, :, 0] for _ in range(PICTURES)]
        return {"channels": torch.stack([first_frame_channels(vae, image) for image in images]).half()}

    settings = {"people": PEOPLE_VERSION, "kind": "pictures"}
    write_cache(folder / "pictures", len(pictured_looks()), encode, settings)


def pictures_of(folder: Path) -> dict[Look, Tensor]:
    """What `write_pictures` wrote, by look."""
    found = Cache(folder / "pictures")
    return {look: found[number]["channels"].float() for number, look in enumerate(pictured_looks())}


@cache
def look_of(number: int, style: str) -> Look:
    """What training clip ``number`` of a style shows."""
    return training_person(number, style=style, frames=1).look
