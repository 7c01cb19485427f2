"""What a network is trained on: examples as tensors, for `wan cache`, and batches of them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wan_core.errors import ConfigError
from wan_core.media import VideoGeometry
from wan_core.models import DiTInputs
from wan_core.pipeline import Pipeline
from wan_core.presets import Preset
from wan_core.tasks import ImageToVideo, TextImageToVideo, TextToVideo
from wan_core.tasks.i2v import first_frame_condition, first_frame_video
from wan_core.training.cache import Cache, ShuffledBatches
from wan_core.training.data import ClipSettings, Example, load_clip, load_first_picture

_MARK_BYTES = 1 << 20


def task_kind(preset: Preset) -> str:
    """How a model is conditioned: ``t2v``, ``ti2v`` (clean leading frames) or ``i2v`` (by channels).

    Raises ConfigError for a model whose task has a trainer of its own.
    """
    for kind, task in (("ti2v", TextImageToVideo), ("i2v", ImageToVideo), ("t2v", TextToVideo)):
        if isinstance(preset.task, task):
            return kind
    raise ConfigError(f"'wan train' does not know how {preset.name} is conditioned; its package has its own trainer")


def clip_settings(
    preset: Preset, *, num_frames: int | None = None, fps: float | None = None, size: tuple[int, int] | None = None
) -> ClipSettings:
    """The clips to train a model on; what is not given is the model's own. ``size`` is width, height. ConfigError."""
    defaults, spec = preset.sampling, preset.latent_spec
    width, height = size or (defaults.width, defaults.height)
    return ClipSettings(
        num_frames=defaults.num_frames if num_frames is None else num_frames,
        fps=float(defaults.fps if fps is None else fps),
        area=width * height,
        multiple=max(spec.width_multiple, spec.height_multiple),
    )


def examples_mark(examples: Sequence[Example]) -> str:
    """A short name of a list of examples: files by name and size, captions, parts."""
    digest = hashlib.sha256()
    for example in examples:
        parts = (example.file.name, example.size(), example.caption, example.image and example.image.name)
        digest.update(repr((*parts, example.start, example.end)).encode())
    return digest.hexdigest()[:16]


def weights_mark(path: Path) -> str:
    """A short name of a file of weights, from its size, beginning and end; a folder's largest file stands for it."""
    if path.is_dir():
        path = max((each for each in path.iterdir() if each.is_file()), key=lambda each: each.stat().st_size)
    size = path.stat().st_size
    with path.open("rb") as file:
        digest = hashlib.sha256(file.read(_MARK_BYTES) + str(size).encode())
        file.seek(max(0, size - _MARK_BYTES))
        digest.update(file.read(_MARK_BYTES))
    return digest.hexdigest()[:16]


class ExampleEncoder:
    """Examples to the tensors that training reads, with the parts of a pipeline.

    Always ``latents`` [C, T, h, w] and ``context`` [L, dim], ``empty`` [1, dim] (the empty caption); for ``ti2v``
    ``first`` [C, 1, h, w] (the given picture, or the clip's own first frame) and, if asked for, ``pictures``
    [C, T, h, w] (the frames that begin each latent frame, encoded on their own); for ``i2v`` ``channels``
    [stride + C, T, h, w] and, for networks with an image branch, ``image`` [tokens, dim]. Latents are float16, the rest
    as computed.
    """

    def __init__(self, pipeline: Pipeline, clips: ClipSettings, *, pictures: bool = False) -> None:
        self.pipeline = pipeline
        self.clips = clips
        self.pictures = pictures
        self.kind = task_kind(pipeline.preset)

    @torch.no_grad()
    def __call__(self, example: Example) -> dict[str, Tensor]:
        """The tensors of one example, on the CPU. Raises what `load_clip` and `load_first_picture` raise."""
        clip = load_clip(example, self.clips)
        tensors = {"latents": self._encode(clip.unsqueeze(0))[0]}
        if self.kind == "ti2v":
            first = load_first_picture(example, clip)
            tensors["first"] = self._encode(first[None, :, None])[0]
            if self.pictures:
                stride = self.pipeline.latent_spec.temporal_stride
                frames = clip[:, ::stride].transpose(0, 1).unsqueeze(2)
                tensors["pictures"] = self._encode(frames)[:, :, 0].transpose(0, 1)
        elif self.kind == "i2v":
            tensors |= self._condition(load_first_picture(example, clip), clip)
        tensors = {name: value.half() for name, value in tensors.items()}
        with self.pipeline.components.text_encoder.active() as encode:
            context, empty = encode([example.caption, ""])
        return {name: value.cpu() for name, value in {**tensors, "context": context, "empty": empty}.items()}

    def _encode(self, frames: Tensor) -> Tensor:
        components = self.pipeline.components
        with components.vae.active() as vae:
            latents: Tensor = vae.encode(frames.to(components.device))
        return latents

    def _condition(self, picture: Tensor, clip: Tensor) -> dict[str, Tensor]:
        spec, components = self.pipeline.latent_spec, self.pipeline.components
        frames, height, width = clip.shape[1:]
        geometry = VideoGeometry.for_video(spec, num_frames=frames, height=height, width=width)
        latents = self._encode(first_frame_video(picture, geometry))
        tensors = {"channels": first_frame_condition(latents, geometry, spec.temporal_stride)[0]}
        if components.image_encoder is not None:
            with components.image_encoder.active() as encode:
                tensors["image"] = encode(picture.unsqueeze(0).to(components.device))[0]
        return tensors


@dataclass(frozen=True)
class Batch:
    """Examples stacked: ``latents`` [B, C, T, h, w] float32, the conditions, and what ti2v may put in front.

    ``first`` [B, C, 1, h, w], ``pictures`` [B, C, T, h, w].
    """

    latents: Tensor
    inputs: DiTInputs
    first: Tensor | None = None
    pictures: Tensor | None = None


def stack(examples: Sequence[Mapping[str, Tensor]], is_empty: Sequence[bool], device: torch.device) -> Batch:
    """A batch of cached examples on ``device``; where ``is_empty``, the empty caption stands for the caption."""
    contexts = [each["empty" if empty else "context"] for each, empty in zip(examples, is_empty, strict=True)]
    context = torch.nn.utils.rnn.pad_sequence(list(contexts), batch_first=True).to(device)

    def joined(name: str) -> Tensor | None:
        if name not in examples[0]:
            return None
        return torch.stack([each[name] for each in examples]).to(device).float()

    latents = joined("latents")
    if latents is None:
        raise ConfigError("these examples have no latents; make the cache anew with 'wan cache'")
    inputs = DiTInputs(context=context, channel_concat=joined("channels"), image_context=joined("image"))
    return Batch(latents, inputs, joined("first"), joined("pictures"))


class Sampler:
    """Which examples a step of a rank shows: a function of (seed, step, accumulation index, rank, world) only.

    The ``held_out`` examples, drawn by ``seed``, are left out. Batches of all ranks together come from one bucket.
    """

    def __init__(self, cache: Cache, *, batch: int, seed: int, held_out: int, world: int = 1) -> None:
        order = torch.randperm(len(cache), generator=torch.Generator().manual_seed(seed)).tolist()
        self.held_out = sorted(order[:held_out])
        self._numbers = sorted(order[held_out:])
        self.batch = batch
        self.world = world
        buckets = [tuple(cache.shape(number, "latents")) for number in self._numbers]
        self._batches = ShuffledBatches(buckets, batch * world, seed)

    def numbers(self, position: int, rank: int = 0) -> list[int]:
        """The examples of ``rank`` at a position, step * accumulation + index."""
        whole = self._batches[position][rank * self.batch : (rank + 1) * self.batch]
        return [self._numbers[i] for i in whole]

    @property
    def steps_per_epoch(self) -> int:
        """How many positions show every example once."""
        return self._batches.steps_per_epoch


def describe_cache(
    preset: Preset, vae: Path, text_encoder: Path, clips: ClipSettings, examples: Sequence[Example], *, pictures: bool
) -> dict[str, Any]:
    """The settings that a cache is made with, and refused by."""
    return {
        **model_marks(preset, vae, text_encoder),
        "num_frames": clips.num_frames,
        "fps": clips.fps,
        "area": clips.area,
        "pictures": pictures,
        "examples": examples_mark(examples),
    }


def model_marks(preset: Preset, vae: Path, text_encoder: Path) -> dict[str, Any]:
    """What a cache must share with a model that is trained on it: the kind of condition and the encoders."""
    kind = task_kind(preset)
    branch = "image_encoder" in preset.part_names
    return {
        "conditions": f"{kind}+image" if branch else kind,
        "latent_channels": preset.vae.z_dim,
        "vae": weights_mark(vae),
        "text_encoder": weights_mark(text_encoder),
    }
