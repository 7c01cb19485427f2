"""Stages "teacher" and "lora": a transformer that sees a text, a picture of who moves and pose tokens, all at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from selfforcing_unianimate.pose_encoder import PoseEncoder, pose_tokens
from tools.tiny.dit_stage import stacked, text_states
from tools.tiny.family import DIT, I2V, load_bundled
from tools.tiny.people import Look, caption_of, looks
from tools.tiny.person_data import OFFSET, PICTURES, POSE, PoseTrunk, look_of
from tools.tiny.world import TEMPLATES
from wan_core.models import DiTInputs, TextEncoder, WanDiT
from wan_core.training import Cache, LoRASettings, NoiseLevels, attach_lora, make_flow_batch

LEVELS = NoiseLevels(shift=3.0, std=1.2)
LORA_RANK = 8
_BOTH_DROPPED, _TEXT_DROPPED, _POSE_DROPPED, _PICTURES_SHOWN = 0.08, 0.13, 0.18, 0.5


def widened_dit() -> WanDiT:
    """The bundled text-to-video transformer with channels for a picture, which change nothing at first."""
    tensors = load_bundled("dit").state_dict()
    patch = tensors["patch_embedding.weight"]
    more = patch.new_zeros(patch.shape[0], I2V.in_dim - DIT.in_dim, *patch.shape[2:])
    dit = WanDiT(I2V)
    dit.load_state_dict(tensors | {"patch_embedding.weight": torch.cat([patch, more], dim=1)})
    return dit


class PosedDiT(nn.Module):
    """A transformer and the last layer of the pose encoder, whose other layers are `PoseTrunk`'s."""

    def __init__(self, dit: WanDiT) -> None:
        super().__init__()
        self.dit = dit
        torch.manual_seed(1)
        self.last = nn.Conv3d(POSE.hidden, POSE.token_dim, (1, 2, 2), stride=(1, 2, 2))

    def tokens(self, features: Tensor) -> Tensor:
        """Pose tokens [B, T, h * w, dim] of the trunk's features [B, hidden, T, 2h, 2w]."""
        return pose_tokens(self.last(features))


@dataclass(frozen=True)
class Teaching:
    """Flow matching on the clips of one style, for `wan_core.training.train`."""

    model: PosedDiT
    style: str
    clips: Cache
    features: Cache
    pictures: Mapping[Look, Tensor]
    captions: Mapping[str, Tensor]
    weights: Tensor
    batch: int
    rank: int = 0

    def loss(self, step: int, _: int) -> Tensor:
        """The loss of one step."""
        rng = np.random.default_rng([35, step, self.rank])
        numbers = [int(number) for number in rng.integers(0, len(self.clips), self.batch)]
        latents = stacked([self.clips[number] for number in numbers], "latents")
        features = stacked([self.features[number] for number in numbers], "features")
        dropped = rng.random(self.batch)
        rows = [
            self._text(look_of(number, self.style), drop, rng) for number, drop in zip(numbers, dropped, strict=True)
        ]
        channels = torch.stack([self._picture(look_of(number, self.style), rng) for number in numbers])
        with_pose = torch.from_numpy(
            (dropped >= _BOTH_DROPPED) & ~((dropped >= _TEXT_DROPPED) & (dropped < _POSE_DROPPED))
        )
        tokens = self.model.tokens(features) * with_pose.view(-1, 1, 1, 1)
        batch = make_flow_batch(latents, LEVELS.sample(self.batch), torch.randn_like(latents))
        inputs = DiTInputs(context=torch.stack(rows), channel_concat=channels, add_condition=tokens)
        return batch.loss(self.model.dit(batch.latents, batch.timesteps, inputs), self.weights)

    def _text(self, look: Look, drop: float, rng: np.random.Generator) -> Tensor:
        template = int(rng.integers(len(TEMPLATES)))
        return self.captions["" if drop < _TEXT_DROPPED else caption_of(look, template)]

    def _picture(self, look: Look, rng: np.random.Generator) -> Tensor:
        shown, number = rng.random() < _PICTURES_SHOWN, int(rng.integers(PICTURES))
        channels = self.pictures[look][number]
        return channels if shown else torch.zeros_like(channels)


@torch.no_grad()
def caption_states(encoder: TextEncoder) -> dict[str, Tensor]:
    """Text states [24, 96] of every wording of every look, and of no text."""
    every = [look for held_back in (False, True) for look in looks(held_back=held_back)]
    captions = ["", *(caption_of(look, template) for look in every for template in range(len(TEMPLATES)))]
    return dict(zip(captions, text_states(encoder, captions).clone(), strict=True))


def with_lora(model: PosedDiT) -> PosedDiT:
    """The same with fresh adapters, which alone are trained."""
    torch.manual_seed(2)
    attach_lora(model.dit, LoRASettings(rank=LORA_RANK))
    model.last.requires_grad_(False)
    return model


@torch.no_grad()
def pose_encoder(trunk: PoseTrunk, last: nn.Conv3d) -> PoseEncoder:
    """The whole encoder of motions with a trained ``last`` layer; it says nothing of the skeleton of a picture."""
    encoder = trunk.encoder
    layer = encoder.dwpose_embedding[-1]
    layer.load_state_dict(last.state_dict())
    layer.bias -= OFFSET * last.weight.sum(dim=(1, 2, 3, 4))
    for parameter in encoder.randomref_embedding_pose.parameters():
        nn.init.zeros_(parameter)
    return encoder
