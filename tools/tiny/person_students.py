"""Stages "ode" and "dmd": the causal student of the persons' teacher, by the losses of the package.

Both learn from what `sfu make-targets` wrote: regression needs the states of the teacher's paths, self-forcing its
prompts, pictures and poses alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from selfforcing_unianimate import TINY_SFU, CausalDiT, CausalInputs
from selfforcing_unianimate.distillation.forcing import regression_loss
from selfforcing_unianimate.distillation.matching import (
    ScoreTimes,
    critic_loss,
    guided,
    match_distribution,
    prediction,
)
from selfforcing_unianimate.distillation.rollout import SelfForcing, draw_exits
from selfforcing_unianimate.distillation.targets import Targets
from tools.tiny.family import DIT, GEOMETRY
from tools.tiny.person_data import PoseTrunk
from tools.tiny.person_sampling import BLOCKS
from tools.tiny.person_stages import PosedDiT
from wan_core.models import DiTInputs, WanDiT
from wan_core.sampling import FlowTable

TABLE = FlowTable(TINY_SFU.sampling.flow_shift)
TIMES = (1000, 750, 500, 250)
STEPS = TABLE.warped(TIMES)
_POSE_DROPPED, _PICTURES_DROPPED = 0.08, 0.5
_SCORE_TIMES = ScoreTimes(flow_shift=TINY_SFU.sampling.flow_shift)
_GUIDANCE = 0.5  # a scale of 1.5 where guidance counts from 1


def new_student(teacher: WanDiT) -> CausalDiT:
    """A causal transformer with the weights of the teacher; pose tokens have its width, so nothing is between."""
    student = CausalDiT(TINY_SFU.dit)
    student.load_state_dict(teacher.state_dict())
    return student


@dataclass(frozen=True)
class Shown:
    """Conditions of targets: ``context`` [N, 24, 96], ``channels`` [N, 28, 5, 8, 8] and ``tokens`` [N, 5, 64, 128]."""

    context: Tensor
    channels: Tensor
    tokens: Tensor

    @classmethod
    @torch.no_grad()
    def of(cls, targets: Targets, trunk: PoseTrunk, model: PosedDiT) -> Shown:
        """Those of every target, read once."""
        examples = [targets[number] for number in range(len(targets))]
        context = torch.zeros(len(examples), DIT.text_len, DIT.text_dim)
        for row, example in enumerate(examples):
            context[row, : len(example.context)] = example.context.float()
        motions = [example.motion for example in examples if example.motion is not None]
        tokens = torch.cat([model.tokens(trunk.features(motion[None])) for motion in motions])
        return cls(context, torch.stack([example.channels.float() for example in examples]), tokens)

    def draw(self, numbers: list[int], rng: np.random.Generator) -> dict[str, Tensor]:
        """The fields of inputs for some targets, some without a picture, a few without poses."""
        with_picture = torch.from_numpy(rng.random(len(numbers)) >= _PICTURES_DROPPED)
        with_pose = torch.from_numpy(rng.random(len(numbers)) >= _POSE_DROPPED)
        return {
            "context": self.context[numbers],
            "channel_concat": self.channels[numbers] * with_picture.view(-1, 1, 1, 1, 1),
            "add_condition": self.tokens[numbers] * with_pose.view(-1, 1, 1, 1),
        }


@dataclass(frozen=True)
class Regression:
    """Clean latents at the states of the teacher's paths, for `wan_core.training.train`."""

    student: CausalDiT
    shown: Shown
    states: Tensor
    clean: Tensor
    batch: int
    rank: int = 0

    def loss(self, step: int, _: int) -> Tensor:
        """The loss of one step."""
        rng = np.random.default_rng([36, step, self.rank])
        numbers = [int(number) for number in rng.integers(0, len(self.clean), self.batch)]
        inputs = CausalInputs(**self.shown.draw(numbers, rng), blocks=BLOCKS)
        clean = self.clean[numbers]
        entries = torch.from_numpy(rng.integers(0, len(STEPS), (self.batch, clean.shape[2])))
        judged = regression_loss(self.student, self.states[numbers], clean, entries, STEPS, inputs, TABLE)
        return judged.loss


@dataclass
class Matching:
    """Self-forcing with DMD: two updates of a model of ``student`` and ``critic``, for `wan_core.training.train`."""

    student: CausalDiT
    critic: WanDiT
    teacher: WanDiT
    shown: Shown
    empty: Tensor
    batch: int
    rank: int = 0
    _made: tuple[int, Tensor, Mapping[str, Tensor]] | None = field(default=None, repr=False)

    def student_loss(self, step: int, _: int) -> Tensor:
        """The DMD loss of videos that the student makes as in sampling."""
        latents, fields = self._roll(step)
        self._made = step, latents.detach(), fields
        inputs, noise = DiTInputs(**fields), torch.randn_like(latents)
        without: dict[str, Any] = {**fields, "context": self.empty.expand_as(fields["context"]), "add_condition": None}
        real = guided(
            prediction(self.teacher, inputs, TABLE), prediction(self.teacher, DiTInputs(**without), TABLE), _GUIDANCE
        )
        fake = prediction(self.critic, inputs, TABLE)
        times = _SCORE_TIMES.shifted(torch.randint(0, 1001, (self.batch,)))
        return match_distribution(latents.float(), real, fake, noise, times, TABLE).float()

    def critic_loss(self, step: int, _: int) -> Tensor:
        """Flow matching of the critic on such videos."""
        made = self._made
        if made is None or made[0] != step:
            with torch.no_grad():
                latents, fields = self._roll(step)
        else:
            _, latents, fields = made
        times = _SCORE_TIMES.shifted(torch.randint(0, 1001, (self.batch,)))
        noise = torch.randn_like(latents)
        noisy = TABLE.add_noise(latents, noise, times)
        return critic_loss(self.critic(noisy, times, DiTInputs(**fields)), latents, noise)

    def _roll(self, step: int) -> tuple[Tensor, Mapping[str, Tensor]]:
        rng = np.random.default_rng([37, step, self.rank])
        numbers = [int(number) for number in rng.integers(0, len(self.shown.context), self.batch)]
        fields = self.shown.draw(numbers, rng)
        noise = torch.randn(self.batch, *GEOMETRY.latent_shape)
        exits = draw_exits(BLOCKS.count(noise.shape[2]), len(STEPS), torch.Generator().manual_seed(step))
        forcing = SelfForcing(table=TABLE, timesteps=STEPS, learned_frames=noise.shape[2])
        rolled = forcing.roll(self.student, noise, CausalInputs(**fields, blocks=BLOCKS), exits)
        return rolled.latents, fields


class Pair(nn.Module):
    """Student and critic as one model."""

    def __init__(self, student: CausalDiT, critic: WanDiT) -> None:
        super().__init__()
        self.student, self.critic = student, critic
