"""A run of distillation, checked before any weight is read; and what it has made, checked after."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from selfforcing_unianimate.config import CausalDiTConfig
from selfforcing_unianimate.distillation.objective import CRITIC, TEACHER, Distillation
from selfforcing_unianimate.distillation.settings import SCORED, DistillSettings
from selfforcing_unianimate.distillation.targets import CHANNELS, CONTEXT, IMAGE, LATENTS, Targets
from selfforcing_unianimate.families import CAUSAL_DIT, TEACHER_DIT
from selfforcing_unianimate.pose_training import MOTION
from selfforcing_unianimate.pose_weights import POSE_PART, check_pose_encoder
from selfforcing_unianimate.task import CausalVideo
from wan_core import CheckpointError, ConfigError, RequestError
from wan_core.checkpoints import CheckpointLayout, Part, build_on_meta, read_weights, weights_fingerprint
from wan_core.files import plain_text
from wan_core.loading import checkpoint_folder
from wan_core.presets import Preset, get_preset
from wan_core.training import (
    LoopSettings,
    RunOptions,
    TrainingPlan,
    TrainSettings,
    check_apart,
    plan_training,
)


@dataclass(frozen=True, kw_only=True)
class Sources:
    """What a student learns from: the folder of ``targets``, and the weights of a ``teacher`` and of a ``critic``.

    The critic begins as the student does where it is None.
    """

    targets: Path
    teacher: Path | None = None
    critic: Path | None = None


def plan_distillation(
    options: RunOptions, settings: TrainSettings, loop: LoopSettings, distill: DistillSettings, sources: Sources
) -> TrainingPlan:
    """Check a run as `plan_training` does, and that targets, networks and pose encoder belong together.

    Raises what that raises, RequestError for sources that a stage needs or does not take, and CheckpointError for
    networks and targets of different models.
    """
    preset = get_preset(options.model) if isinstance(options.model, str) else options.model
    if not isinstance(preset.task, CausalVideo):
        raise RequestError(f"{preset.name} does not make videos block by block; distil sfu-1.3B, or tiny-sfu")
    _check_sources(distill, sources)
    check_apart(options.output, [sources.targets])
    targets = Targets(sources.targets)
    targets.cache.check_headers()
    example = targets.row(0)
    _check_states(targets, distill)
    beside = _networks(preset, options, distill, sources)
    spec, shape = preset.latent_spec, example[LATENTS].shape
    options = replace(
        options,
        model=replace(preset, parts=(*preset.parts, *beside)),
        cache=sources.targets,
        num_frames=spec.temporal_stride * (shape[1] - 1) + 1,
        size=(shape[3] * spec.spatial_stride, shape[2] * spec.spatial_stride),
    )
    objective = Distillation(
        settings=distill,
        targets=targets,
        blocks=preset.task.blocks,
        weights={part.name: weights_fingerprint(Path(part.source or "")) for part in beside},
    )
    plan = plan_training(options, settings, loop, objective)
    _check_networks(plan, example, sources.targets)
    return replace(plan, notes=[*plan.notes, *_notes(plan, example)])


def check_student(folder: Path, config: CausalDiTConfig) -> int:
    """Whether a folder has a plain student: the names of its network, no LoRA, all weights finite; how many there are.

    Raises CheckpointError.
    """
    source = read_weights(folder)
    wanted = {
        name: tuple(tensor.shape)
        for name, tensor in build_on_meta(partial(CAUSAL_DIT.build, config)).state_dict().items()
    }
    differing = sorted(set(wanted) ^ set(source)) or [
        name for name in wanted if tuple(source.info(name).shape) != wanted[name]
    ]
    if differing:
        raise CheckpointError(f"{folder} is no plain student: {len(differing)} tensors differ, first {differing[0]}")
    for name in source:
        if not bool(torch.isfinite(source.read(name)).all()):
            raise CheckpointError(f"{folder} is no student that can be used: {name} has values that are not finite")
    return len(wanted)


def _check_sources(distill: DistillSettings, sources: Sources) -> None:
    stage = distill.stage
    if stage in SCORED and sources.teacher is None:
        raise RequestError(f"--stage {stage} asks a teacher for its scores; give its weights with --teacher PATH")
    if stage not in SCORED and sources.teacher is not None:
        raise RequestError(f"--stage {stage} needs no teacher beside its targets; leave --teacher out")
    if not distill.is_adversarial and sources.critic is not None:
        raise RequestError(f"--stage {stage} trains no critic; leave --critic out")
    for name, path in (("--teacher", sources.teacher), ("--critic", sources.critic)):
        if path is not None and not path.exists():
            raise RequestError(f"{name}: there is no file or folder {plain_text(path)}")


def _check_states(targets: Targets, distill: DistillSettings) -> None:
    wanted, made = distill.timesteps(), targets.timesteps.tolist()
    same = len(wanted) == len(made) and all(abs(one - other) < 0.01 for one, other in zip(wanted, made, strict=True))
    if distill.stage == "ode" and not same:
        raise ConfigError(
            f"the targets in {plain_text(targets.cache.folder)} have states for timesteps {_list(made)}, and the "
            f"student's are {_list(wanted)}: give the --denoising-steps and --shift that they were made for"
        )


def _list(numbers: Sequence[float]) -> str:
    return ", ".join(f"{number:.4g}" for number in numbers)


def _networks(preset: Preset, options: RunOptions, distill: DistillSettings, sources: Sources) -> list[Part]:
    """The networks beside the student, as parts that come from elsewhere."""
    if not distill.is_adversarial:
        return []
    critic = sources.critic or options.parts.get("dit") or _own_file(preset, options)
    found = [Part(name=CRITIC, family=CAUSAL_DIT, source=str(critic))]
    if sources.teacher is not None:
        found.append(Part(name=TEACHER, family=TEACHER_DIT, source=str(sources.teacher)))
    return found


def _own_file(preset: Preset, options: RunOptions) -> Path:
    """Where the student's network lies."""
    part = preset.part("dit")
    if options.checkpoint_dir is not None:
        part = replace(part, file=part.place)
    folder = checkpoint_folder(preset, options.checkpoint_dir)
    return CheckpointLayout(folder, preset.name, preset.bundled is not None).find(part)


def _check_networks(plan: TrainingPlan, example: Mapping[str, Any], folder: Path) -> None:
    """Whether all networks take what the targets have. Raises CheckpointError, RequestError."""
    components = plan.pipeline.components
    channels, extra = example[LATENTS].shape[0], len(example[CHANNELS]) if CHANNELS in example else 0
    for name in ("dit", CRITIC, TEACHER):
        config = components.configs.get(name)
        if config is None:
            continue
        what = "student" if name == "dit" else name
        if config.out_dim != channels or config.in_dim not in (channels, channels + extra):
            raise CheckpointError(
                f"the {what} takes {config.in_dim} channels and gives {config.out_dim}; the targets in "
                f"{plain_text(folder)} have {channels} of latents and {extra} of a picture"
            )
        if config.image_dim is not None and IMAGE not in example:
            raise CheckpointError(f"the {what} takes CLIP states, and the targets in {plain_text(folder)} have none")
        if example[CONTEXT].shape[-1] != config.text_dim:
            raise CheckpointError(
                f"the {what} takes text states of width {config.text_dim}, the targets in {plain_text(folder)} have "
                f"{example[CONTEXT].shape[-1]}"
            )
        if MOTION in example:
            check_pose_encoder(components, config.pose_dim)


def _notes(plan: TrainingPlan, example: Mapping[str, Any]) -> list[str]:
    notes = []
    for name, fate in ((CRITIC, "all trained"), (TEACHER, "which stay as they are")):
        config = plan.pipeline.components.configs.get(name)
        if config is not None:
            network = build_on_meta(partial(CAUSAL_DIT.build, config))
            count = sum(each.numel() for each in network.parameters())
            notes.append(f"the {name} has {count:,} weights, {fate}")
    if MOTION not in example and POSE_PART.name in plan.pipeline.components.parts:
        notes.append("the targets have no poses, so the pose encoder has no effect")
    return notes
