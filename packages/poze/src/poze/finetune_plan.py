"""A finetuning run planned from options: every input is read and checked before a weight is."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pi3 import Pi3Config
from pi3.checkpoints import bundled_weights
from poze.adapter import Pi3FeatureAdapter, load_adapter
from poze.datasets import Dataset, find_dataset, read_latents, read_wanted
from poze.finetune import FinetuneSettings
from poze.guidance import PI3_ID
from poze.objectives import Supervision, check_point_size
from poze.presets import BUNDLED_ADAPTER, TINY_POZE, with_pi3
from wan_core import ConfigError, RequestError
from wan_core.files import check_place
from wan_core.loading import RuntimeOptions, load_pipeline
from wan_core.media import VideoGeometry
from wan_core.models import WanDiTConfig
from wan_core.pipeline import Pipeline, plan_request
from wan_core.presets import Preset, get_preset
from wan_core.runtime import resolve_device
from wan_core.tasks import TextImageToVideo, TI2VInputs, TI2VRequest
from wan_core.training import ClipSettings, clip_settings, examples_mark


@dataclass(frozen=True, kw_only=True)
class FinetuneOptions:
    """What to learn from, which models, where to. Names and defaults are those of the command's flags.

    ``sampling`` has the fields of a request that were given: num_frames, width, height, num_inference_steps,
    flow_shift, guidance_scale, solver.
    """

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
    save_dir: Path = Path("finetune_outputs")
    sampling: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class FinetunePlan:
    """A checked run. ``inputs`` and ``supervision`` are those of one picture, ``dataset`` and ``clips`` of a folder."""

    options: FinetuneOptions
    settings: FinetuneSettings
    pipeline: Pipeline
    adapter: Pi3FeatureAdapter | None
    inputs: TI2VInputs | None = None
    supervision: Supervision | None = None
    dataset: Dataset | None = None
    clips: ClipSettings | None = None

    @property
    def is_guided(self) -> bool:
        """Whether Pi3's tokens are used: an adapter that is neither trained nor given would only add noise."""
        return self.options.use_pi3 and (self.adapter is not None or "adapter" in self.settings.trained)

    def recipe(self) -> dict[str, Any]:
        """What determines the run besides its settings, as plain values."""
        options = self.options
        files = (options.image, options.gt_video, options.gt_points, options.adapter)
        return {
            "preset": self.pipeline.preset.name,
            "prompt": options.prompt,
            "files": [None if path is None else _digest(path) for path in files],
            "weights": [options.video_weight, options.point_weight, options.align_points],
            "examples": None if self.dataset is None else examples_mark(self.dataset.examples),
            "adapter_tokens": options.adapter_tokens,
            "guided": self.is_guided,
            "sampling": dict(options.sampling),
        }


def plan_finetuning(options: FinetuneOptions, settings: FinetuneSettings) -> FinetunePlan:
    """Read and check everything but weights. Raises RequestError, ConfigError, CheckpointError or MediaError."""
    _check_sources(options, settings)
    device = resolve_device(options.device)
    preset = _preset(options)
    is_single = options.dataset_root is None
    inputs = supervision = dataset = clips = None
    if is_single:
        supervision = read_supervision(options)
        inputs = _plan_inputs(options, preset, supervision)
    else:
        dataset = find_dataset(_given(options.dataset_root), with_latents=options.dataset_latents)
        clips = _clips(options, preset)
    adapter = _adapter(options)
    dtype = "float32" if "wan" in settings.trained or device.type == "cpu" else None
    runtime = RuntimeOptions(
        device=str(device), dtype=dtype, offload=options.offload_model, parts=pi3_place(options, preset),
        inference=False,
    )  # fmt: skip
    pipeline = load_pipeline(preset, options.wan_ckpt_dir, runtime)
    configs = pipeline.components.configs
    pi3: Pi3Config = configs["pi3"] or Pi3Config()  # on the hub is the published network
    if adapter is not None:
        _check_adapter(adapter, configs["dit"], pi3)
    if inputs is not None and supervision is not None:
        _check_sizes(supervision, inputs.geometry, settings, pi3)
    if dataset is not None and dataset.latent_files is not None and clips is not None:
        frames = VideoGeometry.for_video(preset.latent_spec, num_frames=clips.num_frames, height=64, width=64)
        for path in dataset.latent_files:
            read_latents(path, preset.latent_spec.channels, frames.latent_frames)
    check_place(options.save_dir, is_folder=True)
    return FinetunePlan(
        options=options,
        settings=settings,
        pipeline=pipeline,
        adapter=adapter,
        inputs=inputs,
        supervision=supervision,
        dataset=dataset,
        clips=clips,
    )


def pi3_place(options: FinetuneOptions, preset: Preset) -> dict[str, str | Path]:
    """Where Pi3 comes from, if not from where the model has it: the file given, or a repository."""
    if options.pi3_checkpoint is not None:
        return {"pi3": options.pi3_checkpoint}
    return {} if preset.bundled else {"pi3": options.pi3_pretrained_id}


def read_supervision(options: FinetuneOptions) -> Supervision:
    """The wanted video and points of the options."""
    return Supervision(
        video=None if options.gt_video is None else read_wanted(options.gt_video, "video"),
        points=None if options.gt_points is None else read_wanted(options.gt_points, "points"),
        video_weight=options.video_weight,
        point_weight=options.point_weight,
        align=options.align_points,
    )


def _check_sources(options: FinetuneOptions, settings: FinetuneSettings) -> None:
    if options.dataset_root is not None:
        if settings.objective != "flow":
            raise RequestError(
                "--dataset-root is for --objective flow; rollout learns from one --gt-video or --gt-points"
            )
        if options.gt_video is not None or options.gt_points is not None:
            raise RequestError("give --dataset-root, or --gt-video and --gt-points, not both")
        return
    if options.dataset_latents:
        raise RequestError("--dataset-latents needs --dataset-root")
    if options.gt_video is None and options.gt_points is None:
        more = ", or --dataset-root with --objective flow" if settings.objective == "flow" else ""
        raise RequestError(f"finetuning needs something to learn from: give --gt-video, --gt-points or both{more}")
    if settings.objective == "flow" and options.gt_video is None:
        raise RequestError(
            "--objective flow learns from videos: give --gt-video or --dataset-root; points are for rollout"
        )
    for name, value in (("--prompt", options.prompt), ("--image", options.image)):
        if value is None:
            raise RequestError(f"{name} is needed unless --dataset-root is given")


def _preset(options: FinetuneOptions) -> Preset:
    """The model as one that goes on from a picture; guidance is added by the stage. Without a folder the tiny one."""
    if options.wan_ckpt_dir is None:
        return replace(TINY_POZE, task=TextImageToVideo())
    preset = get_preset(options.wan_config)
    if not isinstance(preset.task, TextImageToVideo) or preset.has_experts:
        raise RequestError(f"--wan-config must be ti2v-5B, got {options.wan_config!r}: the others take no picture")
    if "pi3" not in preset.part_names:
        preset = with_pi3(preset, str(bundled_weights()) if preset.bundled else PI3_ID)
    return replace(preset, task=TextImageToVideo())


def _adapter(options: FinetuneOptions) -> Pi3FeatureAdapter | None:
    """The adapter to go on from: the one given, or the tiny model's own."""
    path = options.adapter or (BUNDLED_ADAPTER if options.wan_ckpt_dir is None else None)
    if path is None or not options.use_pi3:
        return None
    adapter = load_adapter(path)
    if options.adapter_tokens != adapter.target_tokens:
        raise ConfigError(
            f"the adapter was trained for --adapter-tokens {adapter.target_tokens}, got {options.adapter_tokens}"
        )
    return adapter


def _check_adapter(adapter: Pi3FeatureAdapter, network: WanDiTConfig, pi3: Pi3Config) -> None:
    in_text = adapter.context_space == "text"
    wanted = (2 * pi3.encoder.dim, network.text_dim if in_text else network.dim)
    width, in_dim = adapter.state_dict()["proj.1.weight"].shape
    if (in_dim, width) != wanted:
        raise ConfigError(
            f"the adapter leads from width {in_dim} to {width}; this Pi3 and this transformer need {wanted[0]} to "
            f"{wanted[1]}: it was trained for others"
        )


def _plan_inputs(options: FinetuneOptions, preset: Preset, supervision: Supervision) -> TI2VInputs:
    sampling = dict(options.sampling)
    if supervision.video is not None:  # what was not asked for follows the wanted video
        _, frames, height, width = supervision.video.shape
        sampling = {"num_frames": frames, "height": height, "width": width} | sampling
    inputs = plan_request(
        preset, TI2VRequest(prompt=options.prompt or "", image=options.image, **sampling), preset.latent_spec
    )
    if not isinstance(inputs, TI2VInputs):
        raise TypeError(f"inputs must be TI2VInputs, got {type(inputs).__name__}")
    return inputs


def _check_sizes(supervision: Supervision, geometry: VideoGeometry, settings: FinetuneSettings, pi3: Pi3Config) -> None:
    if supervision.video is not None:
        wanted = (3, geometry.num_frames, geometry.height, geometry.width)
        if tuple(supervision.video.shape) != wanted:
            raise RequestError(
                f"--gt-video is {list(supervision.video.shape)}, but from --image come {list(wanted)}; cut the video "
                "to the picture's shape, or change --size and --frame-num"
            )
    if supervision.points is None:
        return
    if settings.objective == "flow":
        raise RequestError("--gt-points are for --objective rollout; flow matching makes no frames to find points in")
    if supervision.points.shape[1] > geometry.num_frames:
        raise RequestError(
            f"--gt-points have {supervision.points.shape[1]} views, the video {geometry.num_frames} frames"
        )
    check_point_size(supervision.points, geometry.width, geometry.height, pi3.pixel_limit)


def _clips(options: FinetuneOptions, preset: Preset) -> ClipSettings:
    asked = options.sampling
    size = (asked["width"], asked["height"]) if "width" in asked else None
    return clip_settings(preset, num_frames=asked.get("num_frames"), size=size)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def _given(path: Path | None) -> Path:
    if path is None:
        raise ValueError("no folder was given")
    return path
