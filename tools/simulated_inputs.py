"""What each network takes in a forward, in the shapes that its task makes, on a GPU that is not there."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bindweave.dit import BindWeaveInputs
from selfforcing_unianimate.causal_dit import CausalInputs
from selfforcing_unianimate.memory import CausalMemory
from wan_core.models import AnimateInputs, ContextCache, DiTInputs, S2VInputs
from wan_core.presets import Preset
from wan_core.runtime import SimulatedGPU

DTYPE = torch.bfloat16
STATES = 1024  # rows of a language model's states: a prompt and a few pictures
_REFERENCES = 4  # images that BindWeave has in front of a video


@dataclass(frozen=True)
class Shapes:
    """Of a forward: frames, height and width of the video, and whether every latent frame has a timestep of its own."""

    num_frames: int
    height: int
    width: int
    per_frame: bool = False


@dataclass(frozen=True)
class Call:
    """A forward's arguments, and those of forwards that come before it in the same video, which it remembers."""

    latents: Tensor
    timesteps: Tensor
    inputs: DiTInputs
    before: tuple["Call", ...] = ()


def latent_shape(preset: Preset, shapes: Shapes) -> tuple[int, int, int]:
    """Frames, rows and columns of a video's latents."""
    spec = preset.latent_spec
    frames = (shapes.num_frames - 1) // spec.temporal_stride + 1
    return frames, shapes.height // spec.spatial_stride, shapes.width // spec.spatial_stride


def call_of(preset: Preset, shapes: Shapes, kind: type[DiTInputs], gpu: SimulatedGPU) -> Call:
    """The arguments of a usual forward of the preset's network, whose inputs are of this ``kind``. Raises KeyError."""
    frames, *sides = latent_shape(preset, shapes)
    return _MAKERS[kind](preset, shapes, (frames, sides[0], sides[1]), gpu)


def is_known(kind: type[DiTInputs]) -> bool:
    """Whether inputs of this kind can be made."""
    return kind in _MAKERS


def base_conditions(preset: Preset, grid: tuple[int, int, int], gpu: SimulatedGPU) -> dict[str, Any]:
    """The conditions that all networks take: text, channels and images, of latents of this ``grid``."""
    config = preset.dit
    joined = config.in_dim - config.out_dim
    images = None
    if config.image_dim is not None:
        images = gpu.tensor(1, config.image_tokens, config.image_dim, dtype=DTYPE)
    return {
        "context": gpu.tensor(1, config.text_len, config.text_dim, dtype=DTYPE),
        "image_context": images,
        "channel_concat": gpu.tensor(1, joined, *grid, dtype=torch.float32) if joined else None,
        "context_cache": ContextCache(),
    }


def _usual(preset: Preset, shapes: Shapes, grid: tuple[int, int, int], gpu: SimulatedGPU) -> Call:
    return _call(preset, grid, gpu, DiTInputs(**base_conditions(preset, grid, gpu)), per_frame=shapes.per_frame)


def _call(
    preset: Preset, grid: tuple[int, int, int], gpu: SimulatedGPU, inputs: DiTInputs, *, per_frame: bool = False
) -> Call:
    latents = gpu.tensor(1, preset.dit.out_dim, *grid, dtype=torch.float32)
    return Call(latents, gpu.tensor(*((1, grid[0]) if per_frame else (1,)), dtype=torch.float32), inputs)


def _speaking(preset: Preset, shapes: Shapes, grid: tuple[int, int, int], gpu: SimulatedGPU) -> Call:
    """A later clip of a video with speech, without poses."""
    config: Any = preset.dit
    stride, depth = preset.latent_spec.temporal_stride, preset.latent_spec.channels
    seen = preset.task.motion_frames
    history = (seen - 1) // stride + 1
    inputs = S2VInputs(
        **base_conditions(preset, grid, gpu),
        audio=gpu.tensor(1, config.audio_layers, config.audio_dim, stride * grid[0], dtype=torch.float32),
        reference_latents=gpu.tensor(1, depth, 1, *grid[1:], dtype=torch.float32),
        motion_latents=gpu.tensor(1, depth, history, *grid[1:], dtype=torch.float32),
        motion_frames=(seen, history),
    )
    return _call(preset, grid, gpu, inputs)


def _driven(preset: Preset, shapes: Shapes, grid: tuple[int, int, int], gpu: SimulatedGPU) -> Call:
    """A segment of an animation, with its reference in front."""
    config: Any = preset.dit
    whole = (1 + grid[0], *grid[1:])
    inputs = AnimateInputs(
        **base_conditions(preset, whole, gpu),
        pose_latents=gpu.tensor(1, config.pose_dim, *grid, dtype=torch.float32),
        face_tokens=gpu.tensor(1, whole[0], config.face_encoder_num_heads + 1, config.dim, dtype=torch.float32),
    )
    return _call(preset, whole, gpu, inputs)


def _in_blocks(preset: Preset, shapes: Shapes, grid: tuple[int, int, int], gpu: SimulatedGPU) -> Call:
    """The last block of a causal video, behind all others."""
    blocks, calls = preset.task.blocks, list[Call]()
    base, memory = base_conditions(preset, grid, gpu), CausalMemory(blocks, grid[0])
    channels = base.pop("channel_concat")
    for start, stop in blocks.spans(grid[0]):
        own = None if channels is None else channels[:, :, start:stop]
        inputs = CausalInputs(**base, channel_concat=own, blocks=blocks, start=start, memory=memory)
        calls.append(_call(preset, (stop - start, *grid[1:]), gpu, inputs))
    last = calls[-1]
    return Call(last.latents, last.timesteps, last.inputs, tuple(calls[:-1]))


def _with_subjects(preset: Preset, shapes: Shapes, grid: tuple[int, int, int], gpu: SimulatedGPU) -> Call:
    """A video behind references, with a language model's states and CLIP tokens of each."""
    config: Any = preset.dit
    base = base_conditions(preset, grid, gpu)
    base["image_context"] = gpu.tensor(1, _REFERENCES * config.image_tokens, config.image_dim, dtype=DTYPE)
    inputs = BindWeaveInputs(
        **base,
        hidden_states=gpu.tensor(1, STATES, config.mllm_dim or config.text_dim, dtype=DTYPE),
        references=gpu.tensor(1, config.in_dim - config.out_dim, _REFERENCES, *grid[1:], dtype=torch.float32),
    )
    return _call(preset, grid, gpu, inputs)


_MAKERS: Mapping[type[DiTInputs], Callable[[Preset, Shapes, tuple[int, int, int], SimulatedGPU], Call]] = {
    DiTInputs: _usual,
    S2VInputs: _speaking,
    AnimateInputs: _driven,
    CausalInputs: _in_blocks,
    BindWeaveInputs: _with_subjects,
}
