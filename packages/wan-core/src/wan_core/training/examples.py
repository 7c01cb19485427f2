"""What a network is trained on: examples as tensors, for `wan cache`, and batches of them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wan_core.checkpoints import weights_fingerprint
from wan_core.errors import CheckpointError, ConfigError
from wan_core.files import plain_text
from wan_core.pipeline import Pipeline
from wan_core.presets import Preset
from wan_core.tasks import TrainingClip
from wan_core.training.cache import Cache, ShuffledBatches
from wan_core.training.data import ClipSettings, Example, beside_clip, load_clip, load_first_image

_TEXT = ("context", "empty")
_ANEW = "make the cache anew with 'wan cache'"


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


def examples_fingerprint(examples: Sequence[Example]) -> str:
    """A short name of a list of examples: files by name and size, captions, parts."""
    digest = hashlib.sha256()
    for example in examples:
        parts: tuple[object, ...] = (example.file.name, example.size(), example.caption)
        parts = (*parts, example.image and example.image.name)
        parts = (*parts, "latents") if example.latents is not None else parts
        parts = (*parts, example.repeats) if example.repeats != 1 else parts
        parts = (*parts, str(example.clips)) if example.clips.way == "full" else parts
        further = [(name, path.name, weights_fingerprint(path)) for name, path in sorted(example.files.items())]
        parts = (*parts, *further)
        digest.update(repr((*parts, example.start, example.end)).encode())
    return digest.hexdigest()[:16]


class ExampleEncoder:
    """Examples to the tensors that training reads, with the parts of a pipeline.

    Always ``latents`` [C, T, h, w] and ``context`` [L, dim], ``empty`` [1, dim] (the empty caption), and what the
    model's task adds. Latents and the task's numbers are float16, text states as computed. With ``each_image`` the task
    is asked for single images, too.
    """

    def __init__(self, pipeline: Pipeline, clips: ClipSettings, *, each_image: bool = False) -> None:
        self.pipeline = pipeline
        self.clips = clips
        self.each_image = each_image

    @contextmanager
    def ready(self) -> Iterator[None]:
        """For the time of a ``with`` block every part that is used stays loaded."""
        with ExitStack() as stack:
            for name in encoders(self.pipeline):
                stack.enter_context(self.pipeline.components.part(name).held())
            yield

    @torch.no_grad()
    def __call__(self, example: Example) -> dict[str, Tensor]:
        """The tensors of one example, on the CPU. Raises what `load_clip` and `load_first_image` raise."""
        pipeline, components = self.pipeline, self.pipeline.components
        frames = load_clip(example, self.clips)
        clip = TrainingClip(
            frames=frames,
            image=load_first_image(example, frames),
            each_image=self.each_image,
            beside=beside_clip(example, self.clips),
        )
        tensors = dict(pipeline.preset.task.encode_example(clip, components, pipeline.latent_spec))
        if example.latents is not None:
            tensors["latents"] = example.latents()
        else:
            with components.vae.active() as vae:
                tensors["latents"] = vae.encode(frames[None].to(components.device))[0]
        tensors = {name: value.half() if value.is_floating_point() else value for name, value in tensors.items()}
        with components.text_encoder.active() as encode:
            tensors["context"], tensors["empty"] = encode([example.caption, ""])
        return {name: value.cpu() for name, value in tensors.items()}


def stack(rows: Sequence[Mapping[str, Tensor]], device: torch.device) -> dict[str, Tensor]:
    """Encoded examples as a batch on ``device``, all but the text: floats as float32, with a leading dimension B."""
    if not all("latents" in row for row in rows):
        raise ConfigError(f"these examples have no latents; {_ANEW}")
    if not all(row["latents"].is_floating_point() and row["latents"].ndim == 4 for row in rows):
        raise CheckpointError(f"the latents of these examples are no floats [C, T, H, W]; {_ANEW}")
    try:
        batch = {name: torch.stack([row[name] for row in rows]).to(device) for name in rows[0] if name not in _TEXT}
    except (RuntimeError, LookupError) as error:
        raise CheckpointError(f"these examples do not belong together: {plain_text(error):.200}; {_ANEW}") from error
    return {name: value.float() if value.is_floating_point() else value for name, value in batch.items()}


def alike(rows: Sequence[Mapping[str, Tensor]], names: Sequence[str]) -> list[list[int]]:
    """The indices of rows, those together whose tensors of these names have the same shapes, in the order of rows."""
    groups: dict[object, list[int]] = {}
    for index, row in enumerate(rows):
        shapes = tuple(tuple(row[name].shape) if name in row else None for name in names)
        groups.setdefault(shapes, []).append(index)
    return [*groups.values()]


def text_of(rows: Sequence[Mapping[str, Tensor]], is_empty: Sequence[bool], device: torch.device) -> Tensor:
    """The text states [B, L, dim] of a batch; where ``is_empty``, the empty caption stands for the caption."""
    states = [row["empty" if empty else "context"] for row, empty in zip(rows, is_empty, strict=True)]
    return torch.nn.utils.rnn.pad_sequence(states, batch_first=True).to(device)


class Sampler:
    """Which examples a step of a rank shows: a function of (seed, step, accumulation index, rank, world) only.

    The ``held_out`` examples, drawn by ``seed``, are left out: clips of one video (the cache's ``sources``) together.
    The others come as often as its ``repeats`` say. Batches of all ranks together come from one bucket: one size and
    number of frames.
    """

    def __init__(self, cache: Cache, *, batch: int, seed: int, held_out: int, world: int = 1) -> None:
        order = torch.randperm(len(cache), generator=torch.Generator().manual_seed(seed)).tolist()
        self.held_out = sorted(_held_out(order, cache.settings.get("sources") or range(len(cache)), held_out))
        repeats = cache.settings.get("repeats")
        kept = sorted(set(order) - set(self.held_out))
        self._numbers = [number for number in kept for _ in range(1 if repeats is None else repeats[number])]
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


def _held_out(order: Sequence[int], sources: Sequence[int], count: int) -> list[int]:
    """About ``count`` examples in ``order``, with all of their source or none; some source stays."""
    groups: dict[int, list[int]] = {}
    for number in order:
        groups.setdefault(sources[number], []).append(number)
    held: list[int] = []
    for group in groups.values():
        held += group if len(held) + len(group) <= count else []
    if count and not held and len(groups) > 1:
        held = min(groups.values(), key=len)
    return held


def encoders(pipeline: Pipeline) -> list[str]:
    """The names of the parts that examples are encoded with: all there are that do not denoise, nor are trained."""
    preset, trained = pipeline.preset, pipeline.preset.task.trained_parts
    names = (part.name for part in preset.parts if not part.family.is_denoiser and part.name not in trained)
    return [name for name in dict.fromkeys(names) if name in pipeline.components.parts]


def describe_cache(
    pipeline: Pipeline, clips: ClipSettings, examples: Sequence[Example], *, each_image: bool
) -> dict[str, Any]:
    """The settings that a cache is made with, and refused by."""
    first: dict[object, int] = {}
    # An image and a video of one name show one moment.
    sources = [first.setdefault((each.file.with_suffix(""), each.packed), i) for i, each in enumerate(examples)]
    repeats = [each.repeats for each in examples]
    return {
        **describe_conditions(pipeline),
        "num_frames": clips.num_frames,
        "fps": clips.fps,
        "area": clips.area,
        "pictures": each_image,
        "examples": examples_fingerprint(examples),
        **({"sources": sources} if len(first) < len(sources) else {}),
        **({"repeats": repeats} if set(repeats) != {1} else {}),
    }


def describe_conditions(pipeline: Pipeline) -> dict[str, Any]:
    """What a cache must share with a model that is trained on it: the kind of condition and the encoders.

    Raises ConfigError for a model whose task cannot be trained.
    """
    preset, found = pipeline.preset, pipeline.components.found
    if preset.task.conditions is None:
        raise ConfigError(f"{preset.name} cannot be trained: its task does not say how examples are conditioned")
    return {
        "conditions": preset.task.conditions,
        "latent_channels": preset.vae.z_dim,
        **{name: weights_fingerprint(Path(found[name])) for name in encoders(pipeline)},
    }
