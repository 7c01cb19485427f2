"""Everything `wan train` checks before it reads weights, and what it says in a dry run."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from wan_core.checkpoints import CheckpointLayout, Part, weights_fingerprint
from wan_core.errors import ConfigError, RequestError
from wan_core.files import check_place, quoted
from wan_core.loading import RuntimeOptions, checkpoint_folder, load_pipeline
from wan_core.models import WanDiT
from wan_core.pipeline import Pipeline, Progress, silent
from wan_core.presets import Preset, get_preset
from wan_core.runtime import Placed, resolve_device, resolve_dtype
from wan_core.tasks import Companion, Experts, GenerationRequest
from wan_core.training.cache import Cache, check_cache
from wan_core.training.data import ClipSettings, Example, beside_clip, check_example
from wan_core.training.examples import clip_settings, describe_cache, describe_conditions
from wan_core.training.folders import FoundExamples, look_into, reading_notes, shortened
from wan_core.training.loop import run_identity
from wan_core.training.lora import attach_lora
from wan_core.training.optimizers import require_optimizer
from wan_core.training.ranks import Ranks
from wan_core.training.run_options import RunOptions
from wan_core.training.settings import EXPERTS, LOSS_WEIGHTINGS, LoopSettings, TrainSettings
from wan_core.training.stage import Stage
from wan_core.training.state import BASE_WEIGHTS, CheckpointFolder
from wan_core.training.tensorboard import require_tensorboard

DIT = "dit"


@dataclass(frozen=True, kw_only=True)
class TrainedNetworks:
    """The networks of a run in memory, ready to train: the transformer and its companions by name."""

    dit: WanDiT
    companions: Mapping[str, Companion]

    @property
    def beside(self) -> dict[str, nn.Module]:
        """The companions' networks."""
        return {name: companion.network for name, companion in self.companions.items()}

    @property
    def model(self) -> nn.Module:
        """All of them as one module; the transformer itself where it is alone."""
        return nn.ModuleDict({DIT: self.dit, **self.beside}) if self.companions else self.dit


class Objective(Protocol):
    """What a run minimises, where that is not flow matching on examples."""

    def recipe(self) -> Mapping[str, Any]:
        """What a run that goes on must share, as plain values."""

    def held_parts(self) -> Mapping[str, bool]:
        """The parts of the model that it keeps in memory beside the transformer, and whether it trains them."""

    def stage(self, plan: TrainingPlan, networks: TrainedNetworks, ranks: Ranks) -> Stage:
        """The losses and optimizers of the networks."""


@dataclass(frozen=True, kw_only=True)
class TrainingPlan:
    """A run that was checked; nothing big is in memory.

    ``networks`` are the names of those trained, ``parts`` the transformers, one run each; ``beside`` are the companions
    that it begins with, as fingerprints, ``base`` those of the transformers by expert. ``found`` is None when a
    finished cache is given, or where an ``objective`` needs none; it says, too, which others were left out. ``notes``
    are sentences that the user should see before the work starts.
    """

    options: RunOptions
    settings: TrainSettings
    loop: LoopSettings
    pipeline: Pipeline
    folder: Path
    parts: Sequence[Part]
    networks: Sequence[str]
    beside: Mapping[str, str]
    base: Mapping[str | None, str]
    clips: ClipSettings
    found: FoundExamples | None
    cache_settings: dict[str, Any]
    requests: Sequence[GenerationRequest]
    dtype: torch.dtype
    objective: Objective | None
    notes: Sequence[str] = ()

    @property
    def examples(self) -> Sequence[Example] | None:
        """What is trained on."""
        return None if self.found is None else self.found.examples

    @property
    def preset(self) -> Preset:
        """The model."""
        return self.pipeline.preset

    @property
    def device(self) -> torch.device:
        """Where it is trained."""
        return self.pipeline.components.device

    @property
    def cache_folder(self) -> Path:
        """Where the latents and text states are, or will be."""
        return self.options.cache or self.options.output / "cache"

    @property
    def trains_all(self) -> bool:
        """Whether every weight of the transformer is trained."""
        return DIT in self.networks and self.settings.lora() is None

    @property
    def weights_dtype(self) -> torch.dtype:
        """What the transformer is kept in: float32 when all of it is trained."""
        return torch.float32 if self.trains_all else self.dtype

    def placed(self, part: Part) -> Placed[WanDiT]:
        """Where one of the transformers lives."""
        dit = self.pipeline.components.dit
        return getattr(dit, part.expert or "") if isinstance(dit, Experts) else dit

    def companions(self) -> Mapping[str, Companion]:
        """The companions, new ones with weights that the seed determines. Raises ConfigError, CheckpointError."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.settings.seed)
            return self.preset.task.companions(self.pipeline.components)

    def checkpoints(self, part: Part) -> CheckpointFolder:
        """The checkpoints of one run."""
        return CheckpointFolder(self.options.output / "checkpoints" / (part.expert or ""), keep=self.options.keep)

    def recipe(self, part: Part) -> dict[str, Any]:
        """What a run that goes on must share, beside the loop's settings."""
        fields = [name for name in TrainSettings.__dataclass_fields__ if name != "checkpointing"]
        values: dict[str, Any] = {name: getattr(self.settings, name) for name in fields}
        values |= {"rate": self.settings.base_rate(), "lora_targets": list(self.settings.lora_targets)}
        # The batch of all processes together: a run may go on with another number of them.
        values |= {"batch": self.settings.batch * self.options.world, BASE_WEIGHTS: self.base[part.expert]}
        values |= {"model": self.preset.name, "expert": part.expert or "", "dtype": str(self.dtype)[6:]}
        if self.dtype is not torch.float32:
            values["precision"] = "float32 modules stay so"  # which older runs are without
        if list(self.networks) != [DIT]:
            values["networks"] = list(self.networks)
        if self.beside:
            values["beside"] = dict(self.beside)
        if self.settings.loss_weighting == LOSS_WEIGHTINGS[0]:
            del values["loss_weighting"]  # runs from before there was a choice go on
        objective = {} if self.objective is None else dict(self.objective.recipe())
        return {**values, "examples": self.cache_settings.get("examples"), **objective}


def plan_training(
    options: RunOptions,
    settings: TrainSettings,
    loop: LoopSettings,
    objective: Objective | None = None,
    *,
    progress: Progress = silent,
) -> TrainingPlan:
    """Check a run as far as can be without reading weights; the model is opened once, here.

    ``progress`` shows the check of the data: every clip is read once.

    Raises RequestError, ConfigError (impossible options), CheckpointError (no such or other weights), MediaError
    (unreadable data, unwritable output) and BackendError (absent hardware or package).
    """
    preset = get_preset(options.model) if isinstance(options.model, str) else options.model
    _check_task(preset, settings, loop)
    choose_experts(preset, options.expert)
    require_optimizer(settings.optimizer, options.world)
    if options.tensorboard:
        require_tensorboard()
    device, dtype = machine(options.device, options.dtype)
    requests = _validation_requests(preset, options)
    check_apart(options.output, [folder.path for folder in options.data])
    clips = clip_settings(preset, num_frames=options.num_frames, fps=options.fps, size=options.size)
    found = _examples(options, preset, clips, progress, seed=settings.seed, is_needed=objective is None)
    check_place(options.output, is_folder=True)
    CheckpointFolder(options.output, keep=options.keep)
    runtime = RuntimeOptions(
        device=str(device), dtype=str(dtype).removeprefix("torch."), parts=options.parts, offload=options.offload
    )
    pipeline = load_pipeline(preset, options.checkpoint_dir, runtime)  # reads the headers of all files
    parts = choose_experts(pipeline.preset, options.expert)
    plan = TrainingPlan(
        options=options, settings=settings, loop=loop, pipeline=pipeline, parts=parts, clips=clips, found=found,
        folder=checkpoint_folder(preset, options.checkpoint_dir), networks=(), beside={},
        base={part.expert: weights_fingerprint(_base(pipeline, part, options)) for part in parts},
        cache_settings={}, requests=requests, dtype=dtype, objective=objective,
    )  # fmt: skip
    companions = plan.companions()
    beside = {name: _fingerprint(each) for name, each in companions.items()}
    notes = [*reading_notes(plan.examples or ()), *lost_words(pipeline, plan.examples or (), requests)]
    plan = replace(plan, networks=_networks(preset, companions, options.networks), beside=beside, notes=notes)
    if DIT not in plan.networks and settings.lora() is not None:
        raise ConfigError(f"--lora-rank is for the network dit, and {', '.join(plan.networks)} is trained alone")
    meta_network(plan)
    if objective is None:
        plan = replace(plan, cache_settings=_cache_settings(plan))
    for part in plan.parts:
        reached = plan.checkpoints(part).compare(run_identity(loop, plan.recipe(part)))
        if reached > loop.steps:
            raise RequestError(
                f"the run in {options.output} has reached step {reached}, {loop.steps} steps are asked for; ask for "
                f"{reached} or more, or name another output folder"
            )
    return plan


def _examples(
    options: RunOptions, preset: Preset, clips: ClipSettings, progress: Progress, *, seed: int, is_needed: bool
) -> FoundExamples | None:
    given = [each for each in (options.data or None, options.cache, options.examples) if each is not None]
    if len(given) > 1 or (is_needed and not given):
        raise RequestError(
            "give one of --data FOLDER, with videos or images and captions, and --cache FOLDER, made by 'wan cache'"
        )
    if options.data:
        found = look_into(options.data, options.clips, preset.task.example_files)
        where = ", ".join(str(folder.path) for folder in options.data)
        return examples_of(found, preset, clips, where=where, seed=seed, skip_bad=options.skip_bad, progress=progress)
    if options.examples is None:
        return None
    found = FoundExamples(list(options.examples))
    return examples_of(found, preset, clips, where="the list", seed=seed, progress=progress)


def check_apart(output: Path, data: Sequence[Path]) -> None:
    """Raises RequestError when the output would lie among what is trained on."""
    for folder in data:
        if folder.is_dir() and output.resolve().is_relative_to(folder.resolve()):
            raise RequestError(
                f"the output {output} lies in the data folder {folder}, where the next run would look for examples; "
                "name a folder outside of it"
            )


def _networks(preset: Preset, companions: Collection[str], asked: Sequence[str]) -> list[str]:
    """The names of the networks to train. Raises ConfigError for one that there is not."""
    known = [DIT, *companions]
    unknown = [name for name in asked if name not in known]
    if unknown:
        raise ConfigError(f"{preset.name} has no network {unknown[0]!r} to train; it has {', '.join(known)}")
    return [name for name in known if not asked or name in asked]


def _fingerprint(companion: Companion) -> str:
    """A short name of a companion: what its file says, and its weights, trained or not."""
    digest = hashlib.sha256(repr(sorted(companion.metadata.items())).encode())
    for name, tensor in companion.network.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.float().cpu().contiguous().numpy().data)
    return digest.hexdigest()[:16]


def _base(pipeline: Pipeline, part: Part, options: RunOptions) -> Path:
    """The file or folder that a transformer is read from."""
    if part.expert is None:
        return Path(pipeline.components.found[DIT])
    return CheckpointLayout(checkpoint_folder(pipeline.preset, options.checkpoint_dir)).find(part)


def _cache_settings(plan: TrainingPlan) -> dict[str, Any]:
    """What the cache was, or will be, made with; a cache that exists is compared."""
    examples = plan.examples
    if examples is None:
        cache = Cache(plan.cache_folder, expected=describe_conditions(plan.pipeline))
        cache.check_headers()
        plan.settings.held_out_of(len(cache))
        _check_cache(cache, plan.options)
        return cache.settings
    plan.settings.held_out_of(len(examples))
    made_with = describe_cache(plan.pipeline, plan.clips, examples, each_image=plan.settings.clean_frames > 1)
    check_cache(plan.cache_folder, len(examples), made_with)
    return made_with


def machine(device: str | None, dtype: str | None) -> tuple[torch.device, torch.dtype]:
    """The device and the dtype to train in: bfloat16 on a GPU that has it. Raises as `resolve_device` does, and
    ConfigError for float16, which would need scaled losses."""
    found = resolve_device(device)
    chosen = resolve_dtype(dtype, found)
    if chosen is torch.float16:
        if dtype is not None:
            raise ConfigError("float16 cannot be trained in, small gradients vanish; use bfloat16 or float32")
        chosen = torch.float32
    return found, chosen


def choose_experts(preset: Preset, asked: str | None) -> list[Part]:
    """The transformers to train, one run each. Raises ConfigError for an expert of a model that has none."""
    if asked is not None and asked not in EXPERTS:
        raise ConfigError(f"expert must be one of {', '.join(EXPERTS)}, got {asked!r}")
    if not preset.has_experts:
        if asked in ("high", "low"):
            raise ConfigError(f"{preset.name} is one network and has no {asked}-noise expert; leave --expert out")
        return list(preset.dits)
    return [part for part in preset.dits if asked in (None, "both", part.expert)]


def examples_of(
    found: FoundExamples,
    preset: Preset,
    clips: ClipSettings,
    *,
    where: str,
    seed: int = 0,
    skip_bad: bool = False,
    progress: Progress = silent,
) -> FoundExamples:
    """The clips of all that was found, each read once; ``seed`` draws those of the rule ``random``.

    With ``skip_bad`` the rest is told of, not refused, as long as anything is left. Raises the error of all that cannot
    be trained on: RequestError or MediaError, as the first of them is.
    """
    usable = FoundExamples(bad=list(found.bad))
    for example in progress(found.examples, "check"):
        with usable.judging(example.name):
            if example.is_image and not preset.task.learns_from_images:
                raise RequestError(f"{example.name} is an image; {preset.name} learns from videos only")
            checked = check_example(example, clips, seed)
            for each in checked:
                beside, shape = beside_clip(each, clips), each.shape
                if beside is not None and shape is not None:
                    preset.task.check_files(beside, shape[0])
            usable.examples += checked
    if skip_bad and not usable.examples:
        usable.refuse(where, "mend some of them: nothing else is there to train on")
    if not skip_bad:
        usable.refuse(where)
    return usable


def lost_words(
    pipeline: Pipeline, examples: Sequence[Example], requests: Sequence[GenerationRequest] = ()
) -> list[str]:
    """Sentences on captions and validation prompts that are longer than the model reads: the words that are lost."""
    texts = {example.caption: example.name for example in reversed(examples)}
    texts = {**dict(reversed(texts.items())), **{request.prompt: "validation prompt" for request in requests}}
    lost = [(place, pipeline.components.lost_words(text)) for text, place in texts.items()]
    said = "the caption is too long, the model does not read its end"
    notes = [f"{place}: {said}: {quoted(end)}" for place, end in lost if end]
    return shortened(notes, "more captions are too long")


def meta_network(plan: TrainingPlan) -> WanDiT:
    """The transformer without memory for its weights, as it is trained. Raises ConfigError for idle patterns."""
    build, lora = plan.parts[0].family.network or WanDiT, plan.settings.lora()
    with torch.device("meta"):
        network: Any = build(plan.pipeline.components.configs[DIT])
        if DIT not in plan.networks:
            network.requires_grad_(False)
        elif lora is not None:
            attach_lora(network, lora)
    model: WanDiT = network
    return model


def _check_task(preset: Preset, settings: TrainSettings, loop: LoopSettings) -> None:
    if settings.clean_frames and not preset.task.has_clean_frames:
        kind = preset.task.conditions
        raise ConfigError(f"clean-frames is for ti2v and mi2v models; {preset.name} is a {kind} model")
    if settings.seed != loop.seed:
        raise ConfigError(f"both parts of a run need one seed, got {settings.seed} and {loop.seed}")


def _check_cache(cache: Cache, options: RunOptions) -> None:
    for name in ("num_frames", "fps"):
        asked = getattr(options, name)
        if asked is not None and asked != cache.settings.get(name):
            raise ConfigError(
                f"the cache {cache.folder} was made with {name} {cache.settings.get(name)}, asked is {asked}; "
                "leave it out or make another cache"
            )


def _validation_requests(preset: Preset, options: RunOptions) -> list[GenerationRequest]:
    """The requests of the validation prompts, planned once here, so that what is wrong shows before long work."""
    size: dict[str, Any] = {} if options.size is None else {"width": options.size[0], "height": options.size[1]}
    if options.num_frames is not None:
        size["num_frames"] = options.num_frames
    make, images = preset.task.validation_request, options.validation_images
    if images and not options.validation_prompts:
        raise RequestError("--validation-image needs a --validation-prompt that starts from it")
    requests = [*options.requests, *(make(prompt, images, **size) for prompt in options.validation_prompts)]
    for request in requests:
        preset.plan(request)
    return requests
