"""Finetuning planned from the seed's flags: a run of the core's trainer with poze's task, data and objectives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pi3 import Pi3Config
from pi3.checkpoints import bundled_weights
from poze.adapter import load_adapter
from poze.datasets import find_dataset, read_wanted, with_latents
from poze.guidance import PI3_ID
from poze.objectives import Rollout, Supervision, check_point_size
from poze.presets import BUNDLED_ADAPTER, TINY_POZE, is_tiny, with_pi3
from poze.task import GuidedImageToVideo
from wan_core import ConfigError, RequestError
from wan_core.presets import Preset, get_preset
from wan_core.tasks import AnchoredVideo, TextImageToVideo, TI2VInputs, TI2VRequest
from wan_core.training import (
    CheckpointFolder,
    Example,
    LoopSettings,
    ResultNames,
    RunOptions,
    TrainingPlan,
    TrainSettings,
    check_apart,
    plan_training,
)

TRAINABLE = ("wan", "adapter", "lora")
NAMES = ResultNames(
    model="wan_finetune_step{step}", lora="lora_step{step}.safetensors", companion="{name}_step{step}.safetensors"
)


@dataclass(frozen=True, kw_only=True)
class FinetuneOptions:
    """What to learn from, which models, where to. Names and defaults are those of the command's flags.

    ``trained`` are some of `TRAINABLE`. ``sampling`` has the fields of a request that were given: num_frames, width,
    height, num_inference_steps, flow_shift, guidance_scale, solver. ``amp`` computes in bfloat16 where the machine can.
    """

    objective: str = "rollout"
    trained: frozenset[str] = frozenset({"wan", "adapter"})
    wan_config: str = "ti2v-5B"
    wan_ckpt_dir: Path | None = None
    pi3_checkpoint: Path | None = None
    pi3_pretrained_id: str = PI3_ID
    prompt: str | None = None
    image: Path | None = None
    gt_video: Path | None = None
    gt_points: Path | None = None
    video_weight: float = 1.0
    point_weight: float = 1.0
    align_points: bool = False
    dataset_root: Path | None = None
    dataset_latents: bool = False
    adapter: Path | None = None
    adapter_tokens: int = 64
    context_space: str = "dit"
    use_pi3: bool = True
    device: str | None = None
    offload_model: bool = False
    amp: bool = True
    save_dir: Path = Path("finetune_outputs")
    sampling: Mapping[str, Any] = field(default_factory=dict)


def parse_trained(text: str) -> frozenset[str]:
    """The parts named in ``--train``. Raises ConfigError for unknown ones, none, or Wan together with its updates."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    unknown = [part for part in parts if part not in TRAINABLE]
    if unknown or not parts:
        raise ConfigError(f"--train takes {', '.join(TRAINABLE)} with commas between them, got {text!r}")
    if {"wan", "lora"} <= set(parts):
        raise ConfigError("--train takes wan or lora, not both: updates of weights that change themselves have no use")
    return frozenset(parts)


def plan_finetuning(
    options: FinetuneOptions, settings: TrainSettings, loop: LoopSettings, *, world: int = 1
) -> TrainingPlan:
    """Read and check everything but weights. Raises RequestError, ConfigError, CheckpointError or MediaError."""
    _check_sources(options)
    preset = _preset(options)
    supervision = None if options.dataset_root is not None else read_supervision(options)
    asked = {**_shape_of(supervision), **options.sampling}
    inputs = None if supervision is None else _plan_inputs(options, preset, asked)
    networks = ["dit"] if options.trained & {"wan", "lora"} else []
    networks += ["adapter"] if "adapter" in options.trained and is_guided(options) else []
    if not networks:
        raise ConfigError("--train adapter needs Pi3; leave out --use-pi3 false")
    run = RunOptions(
        model=preset,
        output=options.save_dir,
        checkpoint_dir=options.wan_ckpt_dir,
        parts=_pi3_place(options, preset),
        offload=options.offload_model,
        networks=networks,
        num_frames=asked.get("num_frames"),
        size=(asked["width"], asked["height"]) if "width" in asked else None,
        device=options.device,
        dtype=None if options.amp else "float32",
        names=NAMES,
        export_at_validation=loop.validate_steps is not None,
        world=world,
    )
    if options.objective == "flow":
        return plan_training(replace(run, examples=_examples(options, preset, supervision, asked)), settings, loop)
    if inputs is None or supervision is None:
        raise ValueError("a rollout has one image and something to compare with")
    files = (options.image, options.gt_video, options.gt_points)
    objective = Rollout(inputs=inputs, supervision=supervision, files=tuple(path for path in files if path is not None))
    plan = plan_training(run, settings, loop, objective)
    _check_sizes(supervision, inputs, plan.pipeline.components.configs["pi3"] or Pi3Config())
    return plan


def is_guided(options: FinetuneOptions) -> bool:
    """Whether Pi3's tokens are used: an adapter that is neither trained nor given would only add noise."""
    return options.use_pi3 and (_adapter_file(options) is not None or "adapter" in options.trained)


def known_seed(folder: Path) -> int | None:
    """The seed of the run that is in ``folder``, or None. Raises CheckpointError when its last step is damaged."""
    saved = CheckpointFolder(folder / "checkpoints").settings()
    return None if saved is None else int(saved["loop"]["seed"])


def read_supervision(options: FinetuneOptions) -> Supervision:
    """The wanted video and points of the options."""
    return Supervision(
        video=None if options.gt_video is None else read_wanted(options.gt_video, "video"),
        points=None if options.gt_points is None else read_wanted(options.gt_points, "points"),
        video_weight=options.video_weight,
        point_weight=options.point_weight,
        align=options.align_points,
    )


def _check_sources(options: FinetuneOptions) -> None:
    if options.pi3_checkpoint is not None and not options.pi3_checkpoint.exists():
        raise RequestError(f"--pi3-checkpoint: there is no file or folder {options.pi3_checkpoint}")
    if options.dataset_root is None:
        _check_single(options)
        return
    check_apart(options.save_dir, [options.dataset_root])
    if options.objective != "flow":
        raise RequestError("--dataset-root is for --objective flow; rollout learns from one --gt-video or --gt-points")
    if options.gt_video is not None or options.gt_points is not None:
        raise RequestError("give --dataset-root, or --gt-video and --gt-points, not both")


def _check_single(options: FinetuneOptions) -> None:
    """What a run on one image and prompt needs."""
    is_flow = options.objective == "flow"
    if options.dataset_latents:
        raise RequestError("--dataset-latents needs --dataset-root")
    if options.gt_video is None and options.gt_points is None:
        more = ", or --dataset-root with --objective flow" if is_flow else ""
        raise RequestError(f"finetuning needs something to learn from: give --gt-video, --gt-points or both{more}")
    if is_flow and options.gt_video is None:
        raise RequestError(
            "--objective flow learns from videos: give --gt-video or --dataset-root; points are for rollout"
        )
    if is_flow and options.gt_points is not None:
        raise RequestError("--gt-points are for --objective rollout; flow matching makes no frames to find points in")
    for name, value in (("--prompt", options.prompt), ("--image", options.image)):
        if value is None:
            raise RequestError(f"{name} is needed unless --dataset-root is given")


def _adapter_file(options: FinetuneOptions) -> Path | None:
    """The adapter to go on from: the one given, or the tiny model's own."""
    return options.adapter or (BUNDLED_ADAPTER if is_tiny(options.wan_ckpt_dir) else None)


def _preset(options: FinetuneOptions) -> Preset:
    """The model under guidance, if there is any; without a folder the tiny one."""
    preset = TINY_POZE if is_tiny(options.wan_ckpt_dir) else get_preset(options.wan_config)
    if not isinstance(preset.task, AnchoredVideo) or preset.has_experts:
        raise RequestError(f"--wan-config must be ti2v-5B, got {options.wan_config!r}: the others take no picture")
    if "pi3" not in preset.part_names:
        preset = with_pi3(preset, str(bundled_weights()) if preset.bundled else PI3_ID)
    if not is_guided(options):
        return replace(preset, task=TextImageToVideo())
    path = _adapter_file(options)
    if path is not None:
        tokens = load_adapter(path).target_tokens
        if options.adapter_tokens != tokens:
            raise ConfigError(f"the adapter was trained for --adapter-tokens {tokens}, got {options.adapter_tokens}")
    task = GuidedImageToVideo(path, num_tokens=options.adapter_tokens, context_space=options.context_space)
    return replace(preset, task=task)


def _pi3_place(options: FinetuneOptions, preset: Preset) -> dict[str, str | Path]:
    """Where Pi3 comes from, if not from where the model has it: the file given, or a repository."""
    if options.pi3_checkpoint is not None:
        return {"pi3": options.pi3_checkpoint}
    return {} if preset.bundled else {"pi3": options.pi3_pretrained_id}


def _shape_of(supervision: Supervision | None) -> dict[str, int]:
    """What was not asked for follows the wanted video."""
    if supervision is None or supervision.video is None:
        return {}
    _, frames, height, width = supervision.video.shape
    return {"num_frames": frames, "height": height, "width": width}


def _plan_inputs(options: FinetuneOptions, preset: Preset, asked: Mapping[str, Any]) -> TI2VInputs[TI2VRequest]:
    plain = replace(preset, task=TextImageToVideo())
    request = TI2VRequest(prompt=options.prompt or "", image=options.image, **asked)
    return plain.task.load(request, preset.settings_of(request), preset.latent_spec)  # type: ignore[no-any-return]


def _examples(
    options: FinetuneOptions, preset: Preset, supervision: Supervision | None, asked: Mapping[str, Any]
) -> list[Example]:
    """What flow matching learns from: the videos of the folder, or the one wanted video."""
    if supervision is not None:
        video, file = supervision.video, options.gt_video
        return [Example(file=file or Path(), caption=options.prompt or "", image=options.image, frames=video)]
    folder = options.dataset_root or Path()
    examples = find_dataset(folder)
    if not options.dataset_latents:
        return examples
    frames = asked.get("num_frames", preset.sampling.num_frames)
    spec = preset.latent_spec
    return with_latents(folder, examples, spec.channels, (frames - 1) // spec.temporal_stride + 1)


def _check_sizes(supervision: Supervision, inputs: TI2VInputs[TI2VRequest], pi3: Pi3Config) -> None:
    geometry = inputs.geometry
    if supervision.video is not None:
        wanted = (3, geometry.num_frames, geometry.height, geometry.width)
        if tuple(supervision.video.shape) != wanted:
            raise RequestError(
                f"--gt-video is {list(supervision.video.shape)}, but from --image come {list(wanted)}; cut the video "
                "to the picture's shape, or change --size and --frame-num"
            )
    if supervision.points is None:
        return
    if supervision.points.shape[1] > geometry.num_frames:
        raise RequestError(
            f"--gt-points have {supervision.points.shape[1]} views, the video {geometry.num_frames} frames"
        )
    check_point_size(supervision.points, geometry.width, geometry.height, pi3.pixel_limit)
