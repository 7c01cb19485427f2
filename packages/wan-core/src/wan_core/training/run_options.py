"""What a training run is asked for beside its settings: models, data, folders, machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from wan_core.presets import Preset
from wan_core.tasks import GenerationRequest
from wan_core.training.clip_rules import ClipRule
from wan_core.training.data import Example
from wan_core.training.folders import DataFolder


@dataclass(frozen=True, kw_only=True)
class ResultNames:
    """What the files for others are called below the output; ``{step}`` is filled in, and ``{expert}`` as ``-high``."""

    model: str = "model"
    lora: str = "lora{expert}.safetensors"
    companion: str = "{name}{expert}.safetensors"


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """What to train on what, where: files, machine, and what is watched on the way.

    ``data`` are folders of videos and images, ``cache`` a folder made by ``wan cache``, ``examples`` a list; one of
    them. ``clips`` are cut from each video; with ``skip_bad`` what cannot be trained on is left out, not refused.
    ``size`` is width, height; what is None is the model's own. ``parts`` and ``offload`` as for `RuntimeOptions`.
    ``validation_images`` are those that the validation prompts start from; ``requests`` are sampled beside them.
    ``networks`` are trained: ``dit`` and the
    companions of the model's task, all by default. With ``export_at_validation`` the files for others, ``names``, are
    written at each validation, too. ``world`` processes work together, in ``replicas`` groups of the same weights.
    """

    model: str | Preset
    output: Path
    data: Sequence[DataFolder] = ()
    cache: Path | None = None
    examples: Sequence[Example] | None = None
    clips: ClipRule | None = None
    skip_bad: bool = False
    checkpoint_dir: Path | None = None
    parts: Mapping[str, str | Path] = field(default_factory=dict)
    offload: bool | None = None
    networks: Sequence[str] = ()
    expert: str | None = None
    num_frames: int | None = None
    fps: float | None = None
    size: tuple[int, int] | None = None
    device: str | None = None
    dtype: str | None = None
    keep: int = 2
    validation_prompts: Sequence[str] = ()
    validation_images: Sequence[Path] = ()
    requests: Sequence[GenerationRequest] = ()
    tensorboard: bool = False
    names: ResultNames = field(default_factory=ResultNames)
    export_at_validation: bool = False
    world: int = 1
    replicas: int = 1
