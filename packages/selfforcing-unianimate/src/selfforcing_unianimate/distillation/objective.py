"""Distillation as an objective of the core's runs: which networks there are, and which losses change them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from selfforcing_unianimate.distillation.adversary import GANCritic
from selfforcing_unianimate.distillation.batches import Batches
from selfforcing_unianimate.distillation.losses import (
    CriticLoss,
    ForcingLoss,
    GANCriticLoss,
    GANGeneratorLoss,
    MatchingLoss,
    PathLoss,
    StageNetwork,
)
from selfforcing_unianimate.distillation.settings import BETAS, SCORED, DistillSettings
from selfforcing_unianimate.distillation.targets import Targets
from selfforcing_unianimate.frame_blocks import FrameBlocks
from selfforcing_unianimate.pose_weights import POSE_PART
from wan_core.runtime import prepare_model
from wan_core.sampling import FlowTable
from wan_core.training import (
    AveragedWeights,
    Ranks,
    Sampler,
    Stage,
    TrainedNetworks,
    TrainingPlan,
    WeightUpdate,
    build_optimizers,
    own_weights,
)

CRITIC, TEACHER = "critic", "teacher"
_STUDENT = "dit"
_TARGETS = ("settings_hash", "count", "seen")


@dataclass(frozen=True, kw_only=True)
class Distillation:
    """What `wan_core.training.carry_out` minimises for a student; an `Objective` of the core's runs.

    ``targets`` are a teacher's, ``weights`` the fingerprints of the networks beside the student, ``blocks`` the layout
    of the student's frames.
    """

    settings: DistillSettings
    targets: Targets
    blocks: FrameBlocks
    weights: Mapping[str, str]

    def recipe(self) -> Mapping[str, Any]:
        """The settings, the targets and the other networks, as plain values."""
        blocks = self.blocks
        return {
            "distillation": {**self.settings.recipe(), "denoising_steps": list(self.settings.denoising_steps)},
            "targets": {name: self.targets.settings.get(name) for name in _TARGETS},
            "blocks": [blocks.size, blocks.first_alone, blocks.window, blocks.sink],
            "beside_student": dict(self.weights),
        }

    def held_parts(self) -> Mapping[str, bool]:
        """The critic, which is trained, and the teacher, which stays as it is, where the stage has them."""
        return {name: name == CRITIC for name in self.weights}

    def stage(self, plan: TrainingPlan, networks: TrainedNetworks, ranks: Ranks) -> Stage:
        """The losses and optimizers of the student and, where there is one, of its critic."""
        return _Stages(self, plan, networks, ranks).stage()


class _Stages:
    """Puts a stage together, network by network."""

    def __init__(self, objective: Distillation, plan: TrainingPlan, networks: TrainedNetworks, ranks: Ranks) -> None:
        self.plan, self.ranks, self.settings = plan, ranks, objective.settings
        self.student: Any = networks.dit
        self.common: dict[str, Any] = {
            "student": self._network(self.student),
            "blocks": objective.blocks,
            "batches": self._batches(objective.targets),
            "settings": objective.settings,
            "table": FlowTable(objective.settings.flow_shift),
            "accumulation": plan.loop.accumulation,
        }
        self.seen = objective.targets.settings["seen"]

    def stage(self) -> Stage:
        """The stage that the settings name."""
        settings = self.settings
        if not settings.is_adversarial:
            loss: Any = ForcingLoss(**self.common)
            if settings.stage == "ode":
                loss = PathLoss(**self.common, seen=self.seen)
            model = nn.ModuleDict({_STUDENT: self.student})
            update = WeightUpdate(loss=loss, optimizers=self._optimizers(self.student, self.plan.settings.base_rate()))
            return Stage(model=model, updates=[update], average=self._average(model, 1))
        critic = self._critic()
        model = nn.ModuleDict({_STUDENT: self.student, CRITIC: critic})
        shared = {
            **self.common,
            "critic": self._network(critic),
            "vae": self.plan.pipeline.components.vae,
        }
        generator, fake = self._pair(shared)
        updates = [
            WeightUpdate(
                loss=generator,
                optimizers=self._optimizers(self.student, self.plan.settings.base_rate()),
                name="generator",
                every=settings.critic_steps,
            ),
            WeightUpdate(loss=fake, optimizers=self._optimizers(critic, settings.critic_rate()), name=CRITIC),
        ]
        return Stage(model=model, updates=updates, average=self._average(model, settings.critic_steps))

    def _pair(self, shared: dict[str, Any]) -> tuple[Any, Any]:
        """The losses of the student and of its critic."""
        if self.settings.stage in SCORED:
            part = self.plan.pipeline.components.part(TEACHER)
            teacher = part.trainable(self.plan.dtype, self.ranks.division).requires_grad_(False)
            prepare_model(teacher, inference=False, shard=self.ranks.shard, dtype=self.plan.dtype)
            found = self._network(teacher)
            return MatchingLoss(**shared, teacher=found), CriticLoss(**shared)
        return GANGeneratorLoss(**shared), GANCriticLoss(**shared)

    def _critic(self) -> Any:
        critic = self.plan.pipeline.components.part(CRITIC).trainable(torch.float32, self.ranks.division)
        if self.settings.stage == "gan":
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.plan.settings.seed)
                critic = GANCritic(critic, ffn_dim=critic.config.ffn_dim).to(self.plan.device)
        own_weights(critic)
        prepare_model(
            critic,
            inference=False,
            shard=self.ranks.shard,
            dtype=self.plan.dtype,
            recompute=self.plan.settings.checkpointing,
        )
        return critic.train()

    def _network(self, module: Any) -> StageNetwork:
        config: Any = (module.model if isinstance(module, GANCritic) else module).config
        return StageNetwork(module=module, config=config)

    def _batches(self, targets: Targets) -> Batches:
        plan, ranks, encoder = self.plan, self.ranks, None
        if POSE_PART.name in plan.pipeline.components.parts:
            encoder = plan.pipeline.components.part(POSE_PART.name).trainable(torch.float32).requires_grad_(False)
        seed, batch = plan.settings.seed, plan.settings.batch
        return Batches(
            targets=targets,
            order=Sampler(targets.cache, batch=batch, seed=seed, held_out=0, world=ranks.world),
            batch=batch,
            seed=seed,
            device=plan.device,
            encoder=encoder,
            pose_dropout=self.settings.pose_dropout,
            rank=ranks.rank,
            world=ranks.world,
        )

    def _optimizers(self, network: nn.Module, rate: float) -> list[torch.optim.Optimizer]:
        settings = self.plan.settings
        return build_optimizers(network, settings.optimizer, rate, weight_decay=settings.weight_decay, betas=BETAS)

    def _average(self, model: nn.Module, every: int) -> AveragedWeights | None:
        decay, start = self.plan.settings.ema, self.settings.ema_start
        if decay is None:
            return None
        return AveragedWeights(model, decay, start=start, every=every, chosen=is_student)


def is_student(name: str) -> bool:
    """Whether a weight of a stage is the student's."""
    return name.startswith(f"{_STUDENT}.")
