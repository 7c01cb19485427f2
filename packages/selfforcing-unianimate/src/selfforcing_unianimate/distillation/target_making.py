"""Making targets: the teacher's videos, with its latents before the steps that a student will take."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from importlib.metadata import version
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from selfforcing_unianimate.distillation.settings import SHIFT, STEPS, check_steps
from selfforcing_unianimate.distillation.targets import (
    CHANNELS,
    COMMAND,
    CONTEXT,
    EMPTY,
    IMAGE,
    LATENTS,
    NEGATIVE,
    STATES,
    VERSION,
)
from selfforcing_unianimate.distillation.wanted import Wanted
from selfforcing_unianimate.pose_training import encode_posed
from selfforcing_unianimate.pose_weights import POSE_PART
from selfforcing_unianimate.teacher import PoseInputs, PoseRequest
from selfforcing_unianimate.windows import WindowPlan
from wan_core import CheckpointError, ConfigError, RequestError, WanError
from wan_core.checkpoints import LoRA, weights_fingerprint
from wan_core.pipeline import Pipeline, Progress
from wan_core.sampling import FlowTable, make_solver
from wan_core.tasks import Clip, Components, SamplingSettings, TaskInputs
from wan_core.training import describe_conditions, shards_of, write_cache

_STORED = (LATENTS, STATES, CHANNELS, IMAGE)
_PACKED_SHARE = 1 / 50  # of the bytes of skeletons; measured: 1 in 90


@dataclass(frozen=True, kw_only=True)
class TargetOptions:
    """What targets hold: states before the teacher's steps nearest to the student's ``steps`` under its ``shift``.

    ``stored`` is the dtype of latents and channels in the files, ``shared`` are fields of every request.
    """

    steps: Sequence[int] = STEPS
    shift: float = SHIFT
    stored: torch.dtype = torch.float32
    shared: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class TargetPlan:
    """Targets that were checked: ``requests``, the teacher's steps whose latents are kept, and the ``settings``."""

    pipeline: Pipeline
    requests: Sequence[PoseRequest]
    kept: Sequence[int]
    stored: torch.dtype
    settings: Mapping[str, Any]

    @property
    def sampling(self) -> SamplingSettings:
        """Of every request, but for the seed."""
        return self.requests[0].sampling(self.pipeline.preset.sampling)

    def evaluations(self) -> int:
        """How often the network is run for one example."""
        return self.sampling.num_inference_steps * (1 if self.sampling.guidance_scale == 1 else 2)

    def example_bytes(self) -> dict[str, int]:
        """Bytes of one example by kind; those of text and skeletons are the most, and an estimate."""
        components = self.pipeline.components
        geometry = self.pipeline.plan(self.requests[0]).geometry
        network, latents = components.configs["dit"], prod(geometry.latent_shape)
        channels = latents // geometry.latent_shape[0] * (network.in_dim - network.out_dim)
        image = components.configs.get("image_encoder")
        size = self.stored.itemsize
        pixels = 3 * geometry.num_frames * geometry.height * geometry.width
        return {
            "latents": latents * size,
            "states": latents * size * len(self.kept),
            "picture": channels * size + (0 if image is None else 257 * image.dim * size),
            "text": (network.text_len + 1) * network.text_dim * 4,
            **({} if self.requests[0].mode == "off" else {"poses": int(pixels * _PACKED_SHARE)}),
        }


def plan_targets(
    pipeline: Pipeline, wanted: Sequence[Wanted], options: TargetOptions, loras: Sequence[LoRA], progress: Progress
) -> TargetPlan:
    """Check every line with its files, and what the targets are made with; no weight is read but for fingerprints.

    Raises RequestError or MediaError naming the line, ConfigError for impossible options.
    """
    requests = [
        PoseRequest(prompt=each.prompt, image=each.image, pose=each.pose, seed=each.seed, **options.shared)
        for each in wanted
    ]
    sampling = requests[0].sampling(pipeline.preset.sampling)
    timesteps, kept, seen = _kept_steps(sampling, options)
    for each, request in zip(progress(wanted, "check"), requests, strict=True):
        try:
            inputs = pipeline.check(pipeline.plan(request))
        except WanError as error:
            raise type(error)(f"{each.place}: {error}") from error
    windows = len(WindowPlan(inputs.geometry.latent_frames).spans)
    if windows > 1:
        raise RequestError(f"{sampling.num_frames} frames are {windows} windows of the teacher; targets are one, of 81")
    settings = {
        **_made_with(pipeline, inputs, loras),
        "sampling": {field.name: getattr(sampling, field.name) for field in fields(sampling) if field.name != "seed"},
        "pose_mode": requests[0].mode,
        "pose_branch": requests[0].pose_branch or "positive",
        "timesteps": timesteps,
        "seen": seen,
        "stored": str(options.stored).removeprefix("torch."),
        "num_frames": sampling.num_frames,
        "fps": sampling.fps,
        "prompts": [each.prompt for each in wanted],
        "seeds": [each.seed for each in wanted],
        "files": _fingerprint([_files(each) for each in wanted]),
    }
    whole = {**settings, "settings_hash": _fingerprint(settings)}
    return TargetPlan(pipeline=pipeline, requests=requests, kept=kept, stored=options.stored, settings=whole)


def make_targets(plan: TargetPlan, folder: Path, *, shard_size: int, part: tuple[int, int], progress: Progress) -> Path:
    """Make the part's share of the targets; goes on where an earlier run stopped. Raises what `write_cache` raises.

    ``progress`` shows the steps of each example.
    """
    numbers = [number for shard in shards_of(len(plan.requests), shard_size, part) for number in shard]
    places = {number: f"{place} of {len(numbers)}" for place, number in enumerate(numbers, 1)}

    def encode(number: int) -> Mapping[str, Tensor]:
        return _encode(plan, number, lambda steps, _: progress(steps, places[number]))

    common = None if plan.sampling.guidance_scale == 1 else partial(_common, plan)
    count = len(plan.requests)
    return write_cache(folder, count, encode, plan.settings, shard_size=shard_size, common=common, part=part)


@torch.no_grad()
def _encode(plan: TargetPlan, number: int, progress: Progress) -> Mapping[str, Tensor]:
    pipeline, components = plan.pipeline, plan.pipeline.components
    task, inputs = pipeline.preset.task, pipeline.check(pipeline.plan(plan.requests[number]))
    if not isinstance(inputs, PoseInputs) or inputs.image is None:
        raise TypeError(f"the teacher's inputs must be PoseInputs with a picture, got {type(inputs).__name__}")
    for text in (inputs.request.prompt, inputs.settings.negative_prompt):
        _text(components, text)  # alone, before the task would encode both together
    conditioning = task.condition(inputs, components, Clip())
    states: list[Tensor] = []
    steps = iter(range(inputs.settings.num_inference_steps))

    def watch(latents: Tensor, timestep: Tensor) -> None:
        if next(steps) in plan.kept:
            states.append(latents[0].to(plan.stored).cpu())

    seed = task.noise_seed(inputs.settings.seed, Clip())
    latents = pipeline.denoise(conditioning, inputs.settings, seed, progress, watch=watch)
    if not bool(torch.isfinite(latents).all()):
        raise CheckpointError(f"the teacher's latents of example {number} are not finite; check weights and --dtype")
    tensors = {
        LATENTS: latents[0],
        STATES: torch.stack(states),
        CONTEXT: conditioning.positive.context[0],
        EMPTY: _text(components, ""),
        **encode_posed(inputs.image, inputs.skeletons, inputs.geometry, components),
    }
    return {
        name: (value.to(plan.stored) if name in _STORED else value).cpu().clone() for name, value in tensors.items()
    }


@torch.no_grad()
def _common(plan: TargetPlan) -> Mapping[str, Tensor]:
    """The text states of the negative prompt."""
    return {NEGATIVE: _text(plan.pipeline.components, plan.sampling.negative_prompt)}


def _text(components: Components, text: str) -> Tensor:
    """The states [L, dim] of a text that was encoded alone: beside others its last bits would be others."""
    if text not in components.prompt_cache:
        with components.text_encoder.active() as encode:
            components.prompt_cache.put(text, encode([text])[0])
    return components.prompt_cache.get(text).clone()


def _kept_steps(sampling: SamplingSettings, options: TargetOptions) -> tuple[list[float], list[int], list[float]]:
    """The student's timesteps, the teacher's steps nearest to them, and the timesteps of those."""
    check_steps(options.steps)
    timesteps = FlowTable(options.shift).warped(options.steps)
    solver = make_solver(sampling.solver, sampling.num_inference_steps, flow_shift=sampling.flow_shift)
    taken = [float(value) for value in solver.timesteps.tolist()]
    kept = [min(range(len(taken)), key=lambda i: abs(taken[i] - each)) for each in timesteps]
    if len(set(kept)) < len(kept):
        raise ConfigError(
            f"the teacher's {len(taken)} steps are too few for the student's {len(kept)}: two would have one state; "
            "take more with --sample-steps"
        )
    return timesteps, kept, [taken[index] for index in kept]


def _made_with(pipeline: Pipeline, inputs: TaskInputs[Any], loras: Sequence[LoRA]) -> dict[str, Any]:
    """The model and how it computes; not the machine, on which another process may go on."""
    record, found = pipeline.provenance(inputs).record, pipeline.components.found
    return {
        "made_by": COMMAND,
        "version": VERSION,
        **describe_conditions(pipeline),
        "model": pipeline.preset.name,
        **{name: weights_fingerprint(Path(found[name])) for name in ("dit", POSE_PART.name) if name in found},
        "lora": [[weights_fingerprint(lora.path), lora.strength] for lora in loras],
        **{name: record[name] for name in ("dtype", "noise_device", "cfg", "tea_cache") if name in record},
        "versions": {name: version(name) for name in ("wan-core", "selfforcing-unianimate", "torch")},
    }


def _files(wanted: Wanted) -> list[str]:
    return [weights_fingerprint(path) for path in (wanted.image, wanted.pose) if path is not None]


def _fingerprint(values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]
