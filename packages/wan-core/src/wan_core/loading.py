"""From a preset name and a checkpoint folder to a ready :class:`Pipeline`. Weights are read when first needed."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from wan_core.checkpoints import (
    CheckpointLayout,
    TensorSource,
    infer_clip_config,
    infer_umt5_config,
    infer_vae_config,
    load_model,
    read_dit_config,
    read_weights,
)
from wan_core.errors import CheckpointError, ConfigError, RequestError
from wan_core.models import CLIPVision, TextEncoder, VideoVAE, WanDiT, WanDiTConfig, load_tokenizer
from wan_core.pipeline import Pipeline, SamplingOptions
from wan_core.presets import Preset, get_preset
from wan_core.runtime import Between, Placed, apply_attention_backend, resolve_device, resolve_dtype
from wan_core.tasks import Components, Experts

ModuleT = TypeVar("ModuleT", bound=nn.Module)


@dataclass(frozen=True, kw_only=True)
class RuntimeOptions:
    """Where and how a model runs; ``None`` lets the machine decide.

    ``offload`` sends each part off the device after use (on the CPU: out of memory); by default it is on, as with
    the original for one process. ``text_encoder_on_cpu`` keeps the text encoder on the CPU. ``mmap=False`` reads
    files instead of mapping them.
    """

    device: str | None = None
    dtype: str | None = None
    offload: bool | None = None
    text_encoder_on_cpu: bool = False
    attention: str = "auto"
    mmap: bool | None = None
    sampling: SamplingOptions = SamplingOptions()


def load_pipeline(
    preset: str | Preset,
    checkpoint_dir: str | Path | None = None,
    options: RuntimeOptions | None = None,
) -> Pipeline:
    """A pipeline for a preset and its checkpoint folder; bundled presets need no folder.

    File names, configs and tensor shapes are checked here; weights are read at first use. Raises ``RequestError``
    (unknown preset, no folder), ``CheckpointError`` (missing, damaged or other model's files), ``ConfigError`` and
    ``BackendError`` (impossible or unavailable options).
    """
    preset = get_preset(preset) if isinstance(preset, str) else preset
    options = options or RuntimeOptions()
    folder = checkpoint_folder(preset, checkpoint_dir)
    return _Loader(preset, folder, options).pipeline()


def checkpoint_folder(preset: Preset, checkpoint_dir: str | Path | None) -> Path:
    """The folder to read: the given one, or the bundled one. Raises ``RequestError`` when there is none."""
    if checkpoint_dir is not None:
        return Path(checkpoint_dir)
    if preset.bundled is None:
        raise RequestError(
            f"{preset.name} needs its weights: give their folder with --ckpt-dir, or fetch them with "
            f"'wan download {preset.name}'"
        )
    return Path(str(files("wan_core") / "weights" / preset.bundled))
