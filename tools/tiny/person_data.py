"""What the tiny persons' networks are trained on, made once: latents, features of skeletons, pictures of every look.

The stack of UniAnimate's pose encoder is taught first, to say from skeletons alone which latents a person in one look
has; its features before the last layer are cached then, and that layer alone goes on learning with a transformer.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from selfforcing_unianimate.drawing import model_picture
from selfforcing_unianimate.keypoints import Poses
from selfforcing_unianimate.pose_config import PoseConfig
from selfforcing_unianimate.pose_encoder import MOTION_STRIDE, PoseEncoder
from tools.tiny.dit_stage import channel_weights, first_frame_channels
from tools.tiny.family import DIT, GEOMETRY
from tools.tiny.people import PEOPLE_VERSION, STYLES, Look, draw_motion, looks, poses_of_body, render, training_person
from tools.tiny.vae_stage import is_kernel, split_optimizers, to_pixels
from wan_core.models import VideoVAE
from wan_core.training import Cache, write_cache

CLIPS = {"suit": 1600, "dress": 320}
POSE = PoseConfig(hidden=16, token_dim=DIT.dim, reference_channels=DIT.in_dim + 4)
SKELETON_SIDE = GEOMETRY.token_grid[1] * MOTION_STRIDE
"""Pixels of the sides of drawn skeletons, of which 16 make one token."""
TRUNK_STEPS = 200
PICTURES = 6
"""Pictures of every look."""
_TRUNK_BATCH = 2
_KNOWN_LOOK = Look("white", "black")
_LAST_LAYER = 12


def skeleton_frames(poses: Poses) -> Tensor:
    """The drawn skeletons [1, 3, F, S, S] uint8 of poses, as networks see them."""
    frames = [model_picture(poses[index : index + 1], SKELETON_SIDE, SKELETON_SIDE) for index in range(len(poses))]
    return torch.from_numpy(np.stack(frames)).permute(3, 0, 1, 2)[None]


class PoseTrunk(nn.Module):
    """The pose encoder without its last layer, and what teaches it: a layer that tells latents from its features."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = PoseEncoder(POSE)
        self.stack = self.encoder.dwpose_embedding[:_LAST_LAYER]
        self.tell = nn.Conv3d(POSE.hidden, DIT.in_dim, (1, 2, 2), stride=(1, 2, 2))
        self.requires_grad_(False)
        self.stack.requires_grad_(True)
        self.tell.requires_grad_(True)

    def features(self, skeletons: Tensor) -> Tensor:
        """[B, hidden, T, 2h, 2w] of skeletons [B, 3, F, S, S] uint8."""
        padded = torch.cat([skeletons[:, :, :1].expand(-1, -1, 3, -1, -1), skeletons], dim=2)
        found: Tensor = self.stack(padded.float() / 255)
        return found


class TrunkStage:
    """The trunk on motions of its own, for `wan_core.training.train`."""

    def __init__(self, vae: VideoVAE) -> None:
        self.model = PoseTrunk()
        self.vae = vae
        self.weights = channel_weights(vae)
        self.optimizers = split_optimizers(self.model, is_kernel, 0.02, 2e-3)

    def loss(self, step: int, _: int) -> Tensor:
        """Squared error of the latents of two persons in one look."""
        rng = np.random.default_rng([33, step])
        bodies = [draw_motion(rng, GEOMETRY.num_frames) for _ in range(_TRUNK_BATCH)]
        with torch.no_grad():
            latents = self.vae.encode(to_pixels([render(_KNOWN_LOOK, body) for body in bodies]), latents_per_chunk=None)
        skeletons = torch.cat([skeleton_frames(poses_of_body(body)) for body in bodies])
        told = self.model.tell(self.model.features(skeletons))
        return ((told - latents).square() * self.weights.view(1, -1, 1, 1, 1)).mean()


def latent_clips(folder: Path, style: str, vae: VideoVAE) -> Cache:
    """``latents`` [24, 5, 8, 8] float16 of every training clip of a style."""

    @torch.inference_mode()
    def encode(number: int) -> dict[str, Tensor]:
        pixels = to_pixels([training_person(number, style=style).video])
        return {"latents": vae.encode(pixels, latents_per_chunk=None)[0].half()}

    settings = {"people": PEOPLE_VERSION, "style": style, "kind": "latents"}
    return Cache(write_cache(folder / f"{style}-latents", CLIPS[style], encode, settings, shard_size=80))


def pose_features(folder: Path, style: str, trunk: PoseTrunk) -> Cache:
    """``features`` [16, 5, 16, 16] float16 of the skeletons of every training clip of a style."""

    @torch.inference_mode()
    def encode(number: int) -> dict[str, Tensor]:
        skeletons = skeleton_frames(training_person(number, style=style).poses)
        return {"features": trunk.features(skeletons)[0].half()}

    settings = {"people": PEOPLE_VERSION, "style": style, "kind": "features", "trunk": TRUNK_STEPS}
    return Cache(write_cache(folder / f"{style}-features", CLIPS[style], encode, settings, shard_size=80))


def pictures_of(folder: Path, vae: VideoVAE) -> dict[Look, Tensor]:
    """Channels [PICTURES, 28, 5, 8, 8] of persons in random poses, for every look that is trained."""
    every = [look for style in STYLES for look in looks(held_back=False, style=style)]

    @torch.inference_mode()
    def encode(number: int) -> dict[str, Tensor]:
        rng = np.random.default_rng([34, number])
        images = [to_pixels([render(every[number], draw_motion(rng, 1))])[0, :, 0] for _ in range(PICTURES)]
        return {"channels": torch.stack([first_frame_channels(vae, image) for image in images]).half()}

    settings = {"people": PEOPLE_VERSION, "kind": "pictures"}
    found = Cache(write_cache(folder / "pictures", len(every), encode, settings))
    return {look: found[number]["channels"].float() for number, look in enumerate(every)}


@cache
def look_of(number: int, style: str) -> Look:
    """What training clip ``number`` of a style shows."""
    return training_person(number, style=style, frames=1).look
