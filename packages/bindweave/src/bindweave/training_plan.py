"""``bindweave train``: a run of the core's trainer on clips, the pictures of their subjects and a model's states."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bindweave.families import CONNECTOR_PART, PROJECTOR
from bindweave.hidden_states import read_hidden_states
from bindweave.request import SubjectRequest
from bindweave.samples import read_samples
from bindweave.steps import digest_of
from bindweave.subject_training import STATES, SUBJECT_FILES, check_width
from bindweave.task import SubjectToVideo
from wan_core import RequestError
from wan_core.checkpoints import read_weights
from wan_core.files import existing_file, plain_text
from wan_core.loading import RuntimeOptions, load_pipeline
from wan_core.pipeline import Pipeline, Progress, silent
from wan_core.presets import Preset, get_preset
from wan_core.training import (
    DEFAULT_TARGETS,
    Cache,
    Example,
    LoopSettings,
    ResultNames,
    RunOptions,
    TrainingPlan,
    TrainSettings,
    look_into,
    plan_training,
)

FULL_RATE = 1e-5
"""The learning rate of all weights in BindWeave's own training."""

CONNECTOR_TARGETS = f"{PROJECTOR}.linear_[12]"
"""A LoRA also changes the connector that the transformer has."""


@dataclass(frozen=True, kw_only=True)
class ValidationSamples:
    """A sample file with states, whose videos are made at each validation; its pictures lie below ``image_root``."""

    path: Path
    image_root: Path


def plan_subject_training(
    options: RunOptions,
    settings: TrainSettings,
    loop: LoopSettings,
    samples: ValidationSamples | None = None,
    *,
    progress: Progress = silent,
) -> TrainingPlan:
    """The checked plan of a run.

    A transformer without connector, such as Wan's own, gets a new one, trained in full beside it. Raises what
    `plan_training` raises, RequestError for another kind of model and for states of another caption, CheckpointError
    for states of another width.
    """
    preset = get_preset(options.model) if isinstance(options.model, str) else options.model
    if not isinstance(preset.task, SubjectToVideo):
        raise RequestError(f"{preset.name} is no model of BindWeave; take bindweave-14B")
    runtime = RuntimeOptions(device=options.device, parts=options.parts)
    pipeline = load_pipeline(preset, options.checkpoint_dir, runtime)
    width = _states_width(options)
    preset = replace(preset, task=SubjectToVideo(mllm_dim=width or preset.task.mllm_dim))
    is_new = pipeline.components.configs["dit"].mllm_dim is None and CONNECTOR_PART.name not in options.parts
    options = replace(
        options, model=preset, requests=_requests(samples, preset, options, pipeline), names=_names(options, settings)
    )
    plan = plan_training(options, _settings(settings, pipeline), loop, progress=progress)
    for example in plan.examples or ():
        _check_states(example, width if is_new else None, pipeline)
    if is_new:
        note = f"these weights have no {PROJECTOR}: a new connector for states of width {width} is trained beside them"
        plan = replace(plan, notes=[*plan.notes, note])
    return plan


def _settings(settings: TrainSettings, pipeline: Pipeline) -> TrainSettings:
    """The settings with BindWeave's rate for all weights, and with the connector among the layers of a LoRA."""
    if settings.lora_rank is None:
        return replace(settings, rate=FULL_RATE) if settings.rate is None else settings
    components = pipeline.components
    has_own = components.configs["dit"].mllm_dim is not None and CONNECTOR_PART.name not in components.parts
    if has_own and tuple(settings.lora_targets) == DEFAULT_TARGETS:
        return replace(settings, lora_targets=(*DEFAULT_TARGETS, CONNECTOR_TARGETS))
    return settings


def _names(options: RunOptions, settings: TrainSettings) -> ResultNames:
    """A connector beside a whole model lies in its folder, where it is found."""
    is_whole = settings.lora_rank is None and (not options.networks or "dit" in options.networks)
    return replace(options.names, companion="model/{name}.safetensors") if is_whole else options.names


def _states_width(options: RunOptions) -> int | None:
    """The width of the states that are trained on, by the first example; None where there is none."""
    if options.cache is not None:
        cache = Cache(options.cache)
        return cache.shape(0, STATES)[1] if cache.settings.get("conditions") == SubjectToVideo.conditions else None
    if not options.data:
        return None
    found = look_into(options.data, options.clips, SUBJECT_FILES)
    return _width_in(found.examples[0].files[STATES]) if found.examples else None


def _width_in(path: Path) -> int:
    """The width of the states in a file, without reading them. Raises CheckpointError."""
    source = read_weights(path)
    shapes = [source.info(name).shape for name in source]
    return shapes[0][2] if len(shapes) == 1 and len(shapes[0]) == 3 else read_hidden_states(path).shape[2]


def _check_states(example: Example, width: int | None, pipeline: Pipeline) -> None:
    """Whether an example's states fit the connector, and are of its caption as far as their file tells."""
    path = example.files[STATES]
    found, said = _width_in(path), read_weights(path).metadata.get("prompt_sha256")
    check_width(found, pipeline.components, path)
    if width is not None and found != width:
        raise RequestError(
            f"{plain_text(path)} has states of width {found}, those of the first example have {width}; all must be of "
            "one language model"
        )
    if said is not None and said != digest_of(example.caption):
        raise RequestError(f"{plain_text(path)} has states of another caption; run 'bindweave extract' again")


def _requests(
    samples: ValidationSamples | None, preset: Preset, options: RunOptions, pipeline: Pipeline
) -> Sequence[SubjectRequest]:
    """The requests of a sample file, with the run's size and number of frames. Raises as `read_samples`."""
    if samples is None:
        return ()
    size: dict[str, Any] = {} if options.size is None else {"width": options.size[0], "height": options.size[1]}
    if options.num_frames is not None:
        size["num_frames"] = options.num_frames
    requests = []
    for sample in read_samples(existing_file(samples.path, "sample file")).values():
        own, negative = (each and Path(each) for each in (sample.hidden_states, sample.hidden_states_negative))
        request = SubjectRequest(
            prompt=sample.prompt,
            images=tuple(samples.image_root / image for image in sample.images),
            hidden_states=own or None,
            hidden_states_negative=negative or None,
            **size,
        )
        preset.plan(request)
        for path in filter(None, (request.hidden_states, request.hidden_states_negative)):
            check_width(_width_in(path), pipeline.components, path)
        requests.append(request)
    return requests
