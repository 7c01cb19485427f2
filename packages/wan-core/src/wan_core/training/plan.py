"""Everything `wan train` checks before it reads weights, and what it says in a dry run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from wan_core.checkpoints import CheckpointLayout, Part, native_weights, read_weights
from wan_core.errors import ConfigError, RequestError
from wan_core.files import check_place
from wan_core.loading import RuntimeOptions, checkpoint_folder, load_pipeline
from wan_core.models import WanDiT, WanDiTConfig
from wan_core.pipeline import Pipeline, plan_request
from wan_core.presets import Preset, get_preset
from wan_core.runtime import resolve_device, resolve_dtype
from wan_core.tasks import TaskInputs
from wan_core.training.cache import Cache, check_cache
from wan_core.training.data import ClipSettings, Example, bucket, check_example, find_examples
from wan_core.training.examples import clip_settings, describe_cache, model_marks, task_kind
from wan_core.training.loop import LoopSettings, run_identity
from wan_core.training.lora import LoRASettings, attach_lora
from wan_core.training.optimizers import require_optimizer
from wan_core.training.settings import EXPERTS, TrainSettings
from wan_core.training.state import CheckpointFolder
from wan_core.training.tensorboard import require_tensorboard


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """What to train on what, where: files, machine, and what is watched on the way.

    ``data`` is a folder of videos, ``cache`` a folder made by ``wan cache``; one of them. ``size`` is width, height;
    what is None is the model's own. ``validation_image`` is the picture that the validation prompts of image-to-video
    start from. ``world`` processes work together.
    """

    model: str
    output: Path
    data: Path | None = None
    cache: Path | None = None
    checkpoint_dir: Path | None = None
    expert: str | None = None
    num_frames: int | None = None
    fps: float | None = None
    size: tuple[int, int] | None = None
    device: str | None = None
    dtype: str | None = None
    keep: int = 2
    validation_prompts: Sequence[str] = ()
    validation_image: Path | None = None
    tensorboard: bool = False
    world: int = 1


@dataclass(frozen=True)
class Expert:
    """One network to train: ``name`` is high, low, or empty for a model of one; ``part`` where it lies."""

    name: str
    part: Part


@dataclass(frozen=True, kw_only=True)
class TrainingPlan:
    """A run that was checked; nothing big is in memory. ``examples`` is None when a finished cache is given."""

    preset: Preset
    options: RunOptions
    settings: TrainSettings
    loop: LoopSettings
    experts: Sequence[Expert]
    folder: Path
    clips: ClipSettings
    examples: Sequence[Example] | None
    cache_settings: dict[str, Any]
    prompts: Sequence[TaskInputs]
    device: torch.device
    dtype: torch.dtype

    @property
    def cache_folder(self) -> Path:
        """Where the latents and text states are, or will be."""
        return self.options.cache or self.options.output / "cache"

    @property
    def weights_dtype(self) -> torch.dtype:
        """What the trained network is kept in: float32 when all of it is trained."""
        return torch.float32 if self.settings.lora() is None else self.dtype

    def pipeline(self, dtype: torch.dtype, *, inference: bool = True) -> Pipeline:
        """The model, in ``dtype``; weights are read when first needed. Networks to train are not for ``inference``."""
        name = str(dtype).removeprefix("torch.")
        runtime = RuntimeOptions(device=str(self.device), dtype=name, inference=inference)
        return load_pipeline(self.preset, self.options.checkpoint_dir, runtime)

    def checkpoints(self, expert: Expert) -> CheckpointFolder:
        """The checkpoints of one network."""
        return CheckpointFolder(self.options.output / "checkpoints" / expert.name, keep=self.options.keep)

    def recipe(self, expert: Expert) -> dict[str, Any]:
        """What a run that goes on must share, beside the loop's settings."""
        fields = [name for name in TrainSettings.__dataclass_fields__ if name != "checkpointing"]
        values: dict[str, Any] = {name: getattr(self.settings, name) for name in fields}
        values |= {"rate": self.settings.base_rate(), "lora_targets": list(self.settings.lora_targets)}
        # The batch of all processes together: a run may go on with another number of them.
        values |= {"batch": self.settings.batch * self.options.world}
        values |= {"model": self.preset.name, "expert": expert.name, "dtype": str(self.dtype)[6:]}
        return {**values, "examples": self.cache_settings["examples"]}


def plan_training(options: RunOptions, settings: TrainSettings, loop: LoopSettings) -> TrainingPlan:
    """Check a run as far as can be without reading weights.

    Raises RequestError, ConfigError (impossible options), CheckpointError (no such or other weights), MediaError
    (unreadable data, unwritable output) and BackendError (absent hardware or package).
    """
    preset = get_preset(options.model)
    _check_task(preset, settings, loop)
    experts = choose_experts(preset, options.expert)
    require_optimizer(settings.optimizer, options.world)
    if options.tensorboard:
        require_tensorboard()
    device, dtype = machine(options.device, options.dtype)
    prompts = _plan_prompts(preset, options)
    clips = clip_settings(preset, num_frames=options.num_frames, fps=options.fps, size=options.size)
    if (options.data is None) == (options.cache is None):
        raise RequestError(
            "give one of --data FOLDER, with videos and captions, and --cache FOLDER, made by 'wan cache'"
        )
    examples = None if options.data is None else examples_of(options.data, clips)
    check_place(options.output, is_folder=True)
    CheckpointFolder(options.output, keep=options.keep)
    folder = checkpoint_folder(preset, options.checkpoint_dir)
    plan = TrainingPlan(
        preset=preset, options=options, settings=settings, loop=loop, experts=experts, folder=folder, clips=clips,
        examples=examples, cache_settings={}, prompts=prompts, device=device, dtype=dtype,
    )  # fmt: skip
    plan.pipeline(plan.weights_dtype)  # reads the headers of all files
    _check_network(plan)
    plan = replace(plan, cache_settings=_cache_settings(plan))
    for expert in experts:
        plan.checkpoints(expert).compare(run_identity(loop, plan.recipe(expert)))
    return plan


def _cache_settings(plan: TrainingPlan) -> dict[str, Any]:
    """What the cache was, or will be, made with; a cache that exists is compared."""
    preset, files, examples = plan.preset, encoder_files(plan.preset, plan.folder), plan.examples
    if examples is None:
        cache = Cache(plan.cache_folder, expected=model_marks(preset, *files))
        cache.check_headers()
        plan.settings.held_out_of(len(cache))
        _check_cache(cache, plan.options)
        return cache.settings
    plan.settings.held_out_of(len(examples))
    pictures = plan.settings.clean_frames > 1
    made_with = describe_cache(preset, *files, plan.clips, examples, pictures=pictures)
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


def choose_experts(preset: Preset, asked: str | None) -> list[Expert]:
    """The networks to train, one run each. Raises ConfigError for an expert of a model that has none."""
    if asked is not None and asked not in EXPERTS:
        raise ConfigError(f"expert must be one of {', '.join(EXPERTS)}, got {asked!r}")
    parts = [Expert(part.expert or "", part) for part in preset.dits]
    if not preset.has_experts:
        if asked in ("high", "low"):
            raise ConfigError(f"{preset.name} is one network and has no {asked}-noise expert; leave --expert out")
        return parts
    return [expert for expert in parts if asked in (None, "both", expert.name)]


def encoder_files(preset: Preset, folder: Path) -> tuple[Path, Path]:
    """The files of VAE and text encoder in a checkpoint folder. Raises CheckpointError."""
    layout = CheckpointLayout(folder, preset.name)
    return layout.find(preset.part("vae")), layout.find(preset.part("text_encoder"))


def examples_of(folder: Path, clips: ClipSettings) -> list[Example]:
    """The examples of a folder, each one's video opened once. Raises RequestError for a wrong folder, MediaError naming
    the first video that cannot be read or is too short."""
    examples = find_examples(folder)
    for example in examples:
        check_example(example, clips)
    return examples


def meta_network(config: WanDiTConfig, lora: LoRASettings | None) -> WanDiT:
    """The network without memory for its weights, with its adapters. Raises ConfigError for idle patterns."""
    with torch.device("meta"):
        network = WanDiT(config)
        if lora is not None:
            attach_lora(network, lora)
    return network


def network_config(preset: Preset, folder: Path, part: Part) -> WanDiTConfig:
    """The dims of a network in a checkpoint folder. Raises CheckpointError."""
    if preset.bundled is not None:
        return preset.dit  # some bundled files hold only the change of another
    path = CheckpointLayout(folder, preset.name).find(part)
    config: WanDiTConfig = part.family.read_config(path, native_weights(read_weights(path), part.family))
    return config


def count_weights(network: nn.Module) -> tuple[int, int]:
    """Counts of all weights and of the trained ones."""
    every = [(p.numel(), p.requires_grad) for p in network.parameters()]
    return sum(count for count, _ in every), sum(count for count, is_trained in every if is_trained)


def bucket_counts(examples: Sequence[Example], clips: ClipSettings) -> dict[str, int]:
    """How many examples are trained at which size."""
    return dict(Counter("{}x{}".format(*bucket(example, clips)) for example in examples))


def _check_task(preset: Preset, settings: TrainSettings, loop: LoopSettings) -> None:
    kind = task_kind(preset)
    if settings.clean_frames and kind != "ti2v":
        raise ConfigError(f"clean-frames is for ti2v and mi2v models; {preset.name} is a {kind} model")
    if settings.seed != loop.seed:
        raise ConfigError(f"both parts of a run need one seed, got {settings.seed} and {loop.seed}")


def _check_network(plan: TrainingPlan) -> None:
    for expert in plan.experts:
        meta_network(network_config(plan.preset, plan.folder, expert.part), plan.settings.lora())


def _check_cache(cache: Cache, options: RunOptions) -> None:
    for name in ("num_frames", "fps"):
        asked = getattr(options, name)
        if asked is not None and asked != cache.settings.get(name):
            raise ConfigError(
                f"the cache {cache.folder} was made with {name} {cache.settings.get(name)}, asked is {asked}; "
                "leave it out or make another cache"
            )


def _plan_prompts(preset: Preset, options: RunOptions) -> list[TaskInputs]:
    size: dict[str, Any] = {} if options.size is None else {"width": options.size[0], "height": options.size[1]}
    if options.num_frames is not None:
        size["num_frames"] = options.num_frames
    kind = task_kind(preset)
    image: dict[str, Any] = {}
    if options.validation_prompts and options.validation_image is not None:
        if kind == "t2v":
            raise RequestError(f"{preset.name} takes no picture; leave --validation-image out")
        image["image" if kind == "i2v" or "image" in _fields(preset) else "images"] = options.validation_image
    if options.validation_prompts and kind == "i2v" and options.validation_image is None:
        raise RequestError(f"the validation prompts of {preset.name} need a picture; give --validation-image FILE")
    if "images" in image:
        image["images"] = (image["images"],)
    make = preset.task.request_type
    requests = [make(prompt=prompt, **size, **image) for prompt in options.validation_prompts]
    return [plan_request(preset, request, preset.latent_spec) for request in requests]


def _fields(preset: Preset) -> set[str]:
    return set(preset.task.request_type.__dataclass_fields__)
