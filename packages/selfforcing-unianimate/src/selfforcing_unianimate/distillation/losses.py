"""The losses of the stages, as the core's loop calls them: (step, accumulation index) to a scalar."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from selfforcing_unianimate.causal_dit import CausalInputs
from selfforcing_unianimate.config import CausalDiTConfig
from selfforcing_unianimate.distillation.adversary import discriminator_loss, generator_loss, roughness
from selfforcing_unianimate.distillation.batches import Batch, Batches
from selfforcing_unianimate.distillation.forcing import History, forcing_loss, regression_loss
from selfforcing_unianimate.distillation.long_video import scored_end
from selfforcing_unianimate.distillation.matching import (
    Predict,
    ScoreTimes,
    critic_loss,
    guided,
    match_distribution,
    match_scores,
    prediction,
)
from selfforcing_unianimate.distillation.rollout import (
    LEARNED_FRAMES,
    Rolled,
    SelfForcing,
    draw_exits,
    draw_frames,
)
from selfforcing_unianimate.distillation.settings import DistillSettings
from selfforcing_unianimate.distillation.targets import STATES
from selfforcing_unianimate.frame_blocks import FrameBlocks
from wan_core.models import VideoVAE
from wan_core.runtime import Placed
from wan_core.sampling import FlowTable

_ENTRIES = 1000


@dataclass(frozen=True, kw_only=True)
class StageNetwork:
    """A network of a stage with its dims."""

    module: Callable[..., Any]
    config: CausalDiTConfig

    def __call__(self, latents: Tensor, timesteps: Tensor, inputs: CausalInputs) -> Any:
        return self.module(latents, timesteps, inputs)


@dataclass(frozen=True, kw_only=True)
class StudentLoss:
    """What all losses share: the student, its layout of blocks, batches, and the table of noise levels."""

    student: StageNetwork
    blocks: FrameBlocks
    batches: Batches
    settings: DistillSettings
    table: FlowTable
    accumulation: int

    def batch(self, step: int, index: int, role: int = 0, roles: int = 1) -> Batch:
        """The examples of one of several losses of a step: each sees others."""
        return self.batches((step * self.accumulation + index) * roles + role)


@dataclass(frozen=True, kw_only=True)
class PathLoss(StudentLoss):
    """Regression on the states of a teacher's path, at the timesteps where the teacher had them, ``seen``."""

    seen: Sequence[float]

    def __call__(self, step: int, index: int) -> Tensor:
        batch, count = self.batch(step, index), len(self.seen)
        entries = batch.integers(0, count, batch.latents.shape[2])
        inputs = batch.conditions(self.student.config, self.blocks)
        states = batch.tensors[STATES]
        return regression_loss(self.student, states, batch.latents, entries, self.seen, inputs, self.table).loss


class ForcingLoss(StudentLoss):
    """Flow matching block by block, under the clean frames before each, or the noisy ones."""

    def __call__(self, step: int, index: int) -> Tensor:
        batch, settings = self.batch(step, index), self.settings
        frames = batch.latents.shape[2]
        entries, little = batch.integers(0, _ENTRIES, frames), batch.integers(0, settings.history_noise, frames)
        noise, other = batch.noise(batch.latents), batch.noise(batch.latents)
        history = None
        if settings.clean_history:
            history = History(entries=little, noise=other) if settings.history_noise else History()
        inputs = batch.conditions(self.student.config, self.blocks)
        return forcing_loss(self.student, batch.latents, noise, entries, inputs, self.table, history=history).loss


@dataclass(frozen=True)
class Made:
    """The end of a student's own video, which is scored: ``latents`` [B, C, T, h, w], the ``mask`` of those that count,
    the rollout and the conditions of the same frames."""

    latents: Tensor
    mask: Tensor | None
    rolled: Rolled
    batch: Batch


@dataclass(frozen=True, kw_only=True)
class OwnVideoLoss(StudentLoss):
    """What the losses on the student's own videos share: the rollout, and the critic that looks at them."""

    critic: StageNetwork
    vae: Placed[VideoVAE]

    def make(self, batch: Batch) -> Made:
        """A video of the student, as long as the examples allow; of one that is too long the end."""
        settings, longest = self.settings, batch.latents.shape[2]
        size = self.blocks.size
        frames = longest
        if longest > LEARNED_FRAMES:
            given = int(self.blocks.first_alone)
            most, least = (given + (count - given) // size * size for count in (longest, LEARNED_FRAMES))
            frames = draw_frames(most, size, batch.shared, least=least, given=given)
        steps = settings.timesteps()
        exits = draw_exits(
            self.blocks.count(frames),
            len(steps),
            batch.shared,
            same=settings.same_step,
            last_only=settings.last_step_only,
        )
        forcing = SelfForcing(table=self.table, timesteps=steps, context_noise=settings.context_noise)
        inputs = batch.frames(0, frames).conditions(self.student.config, self.blocks)
        noise = batch.noise(batch.latents)[:, :, :frames]
        rolled = forcing.roll(self.student, noise, inputs, exits, draw=batch.noise)
        latents, mask = self._end(rolled.latents)
        return Made(latents, mask, rolled, batch.frames(frames - latents.shape[2], frames))

    def _end(self, latents: Tensor) -> tuple[Tensor, Tensor | None]:
        if latents.shape[2] <= LEARNED_FRAMES:
            return latents, None
        with self.vae.active() as vae:
            return scored_end(latents, vae, self.blocks)

    def times(self, made: Made) -> Tensor:
        """Timesteps [B] at which a video is scored."""
        least, most, rolled = 0, 1000, made.rolled
        if self.settings.score_times != "any" and rolled.left is not None:
            least = rolled.left
        if self.settings.score_times == "within-exit" and rolled.entered is not None:
            most = rolled.entered
        drawn = made.batch.integers(least, most)
        return ScoreTimes(flow_shift=self.settings.flow_shift).shifted(drawn).to(made.latents.device)

    def inputs(self, network: StageNetwork, made: Made, *, negative: bool = False) -> CausalInputs:
        """The conditions of a network that sees all frames at once."""
        whole = FrameBlocks(size=made.latents.shape[2])
        with_pose = not negative or self.settings.pose_in_negative
        return made.batch.conditions(network.config, whole, negative=negative, with_pose=with_pose)

    def score(self, network: StageNetwork, made: Made, scale: float) -> Predict:
        """The clean predictions of a network under guidance."""
        positive = prediction(network, self.inputs(network, made), self.table)
        if scale == 0:
            return positive
        return guided(positive, prediction(network, self.inputs(network, made, negative=True), self.table), scale)


@dataclass(frozen=True, kw_only=True)
class MatchingLoss(OwnVideoLoss):
    """The student's videos against the scores of a teacher and of the critic: DMD, or SiD."""

    teacher: StageNetwork

    def __call__(self, step: int, index: int) -> Tensor:
        made = self.make(self.batch(step, index, 0, 2))
        timesteps, noise = self.times(made), made.batch.noise(made.latents)
        real = self.score(self.teacher, made, self.settings.guidance_scale)
        fake = self.score(self.critic, made, self.settings.fake_guidance_scale)
        if self.settings.stage == "sid":
            alpha = self.settings.sid_alpha
            return match_scores(made.latents, real, fake, noise, timesteps, self.table, alpha=alpha, mask=made.mask)
        return match_distribution(made.latents, real, fake, noise, timesteps, self.table, mask=made.mask)


class CriticLoss(OwnVideoLoss):
    """The critic learns the velocity of the student's videos."""

    def __call__(self, step: int, index: int) -> Tensor:
        with torch.no_grad():
            made = self.make(self.batch(step, index, 1, 2))
        timesteps, noise = self.times(made), made.batch.noise(made.latents)
        noisy = self.table.add_noise(made.latents, noise, timesteps)
        return critic_loss(self.critic(noisy, timesteps, self.inputs(self.critic, made)), made.latents, noise)


class GANLoss(OwnVideoLoss):
    """Shared by both losses of the GAN stage: what the critic says of noisy videos."""

    def real(self, made: Made) -> Tensor:
        """The end of the teacher's videos, as long as the student's."""
        frames = made.rolled.latents.shape[2]
        with torch.no_grad():
            return self._end(made.batch.latents[:, :, :frames])[0]

    def logits(self, latents: Tensor, noise: Tensor, timesteps: Tensor, made: Made) -> Tensor:
        """[B, K]."""
        noisy = self.table.add_noise(latents, noise, timesteps)
        return self.say(noisy, timesteps, made)

    def say(self, noisy: Tensor, timesteps: Tensor, made: Made) -> Tensor:
        """The logits [B, K] of videos that are noisy already."""
        found: Tensor = self.critic(noisy, timesteps, self.inputs(self.critic, made))[1]
        return found


class GANGeneratorLoss(GANLoss):
    """The student is to be taken for real."""

    def __call__(self, step: int, index: int) -> Tensor:
        made = self.make(self.batch(step, index, 0, 2))
        timesteps, noise = self.times(made), made.batch.noise(made.latents)
        fake, real = self.logits(made.latents, noise, timesteps, made), None
        if self.settings.relativistic:
            with torch.no_grad():
                real = self.logits(self.real(made), noise, timesteps, made)
        return self.settings.generator_weight * generator_loss(fake, real)


class GANCriticLoss(GANLoss):
    """The critic is to tell the teacher's videos from the student's."""

    def __call__(self, step: int, index: int) -> dict[str, Tensor]:
        with torch.no_grad():
            made = self.make(self.batch(step, index, 1, 2))
        settings, timesteps, noise = self.settings, self.times(made), made.batch.noise(made.latents)
        videos = {"r1": self.real(made), "r2": made.latents}
        noisy = {name: self.table.add_noise(each, noise, timesteps) for name, each in videos.items()}
        logits = {name: self.say(each, timesteps, made) for name, each in noisy.items()}
        told = settings.critic_weight * discriminator_loss(
            logits["r1"], logits["r2"], relativistic=settings.relativistic
        )
        parts = {"loss": told}
        for name, weight in (("r1", settings.r1_weight), ("r2", settings.r2_weight)):
            if weight > 0:
                moved = noisy[name] + settings.r_sigma * made.batch.noise(noisy[name])
                penalty = roughness(logits[name], self.say(moved, timesteps, made), settings.r_sigma)
                parts[name] = penalty
                parts["loss"] = parts["loss"] + 0.5 * weight * penalty
        return parts
