"""One forward of a preset's network on a GPU that is not there, ours and diffusers'; exact counts, no clock.

Blocks are alike, so a forward is counted with one block and with two; the rest follows.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from wan_core.checkpoints import DIT, load_model
from wan_core.models import ContextCache, DiTInputs
from wan_core.presets import Preset, get_preset, list_presets
from wan_core.runtime import Counts, SimulatedGPU, prepare_model, simulated_gpu

DTYPE = torch.bfloat16


@dataclass(frozen=True)
class Forward:
    """What a forward takes: kernels, bytes outside of matrix products and attention, those in float32, and FLOPs.

    ``waits`` is how often the host waits for the device.
    """

    kernels: int
    traffic: int
    float32_traffic: int
    flops: int
    waits: int

    @classmethod
    def of(cls, counts: Counts) -> "Forward":
        """From what was counted."""
        return cls(
            kernels=counts.kernels,
            traffic=counts.traffic,
            float32_traffic=round(counts.float32_share * counts.traffic),
            flops=counts.flops.total(),
            waits=counts.waits.total(),
        )

    def with_blocks(self, two: "Forward", count: int) -> "Forward":
        """Of ``count`` blocks, this one having one, and ``two`` two of them."""
        one, second = asdict(self), asdict(two)
        return Forward(**{name: value + (count - 1) * (second[name] - value) for name, value in one.items()})


@dataclass(frozen=True)
class Shapes:
    """Of a forward: frames, height and width of the video, and whether every latent frame has a timestep of its own."""

    num_frames: int
    height: int
    width: int
    per_frame: bool = False


def usual_shapes(preset: Preset) -> Shapes:
    """What a preset makes when nothing is said."""
    usual = preset.sampling
    return Shapes(usual.num_frames, usual.height, usual.width)


def countable() -> list[str]:
    """Presets of real size whose network takes nothing but text, channels and images."""
    found = {name: get_preset(name) for name in list_presets()}
    return [name for name, preset in found.items() if preset.bundled is None and preset.part("dit").family == DIT]


def _latent_shape(preset: Preset, shapes: Shapes) -> tuple[int, int, int]:
    spec = preset.latent_spec
    frames = (shapes.num_frames - 1) // spec.temporal_stride + 1
    return frames, shapes.height // spec.spatial_stride, shapes.width // spec.spatial_stride


def _timesteps(preset: Preset, shapes: Shapes, gpu: SimulatedGPU) -> Tensor:
    frames = _latent_shape(preset, shapes)[0]
    rows = (1, frames) if shapes.per_frame else (1,)
    return gpu.tensor(*rows, dtype=torch.float32)


def our_forward(preset: Preset, shapes: Shapes, gpu: SimulatedGPU, layers: int | None = None) -> Callable[[], Tensor]:
    """A call of our network as sampling calls it, with the cache of its text."""
    family, config = preset.part("dit").family, preset.dit
    if layers is not None:
        config = replace(config, num_layers=layers)
    network = load_model(config, gpu.weights(config, family, DTYPE), family=family, dtype=DTYPE, device=gpu.device)
    prepare_model(network, inference=True, attention="sdpa")
    grid, joined = _latent_shape(preset, shapes), config.in_dim - config.out_dim
    latents = gpu.tensor(1, config.out_dim, *grid, dtype=torch.float32)
    images = None
    if config.image_dim is not None:
        images = gpu.tensor(1, config.image_tokens, config.image_dim, dtype=DTYPE)
    inputs = DiTInputs(
        context=gpu.tensor(1, config.text_len, config.text_dim, dtype=DTYPE),
        image_context=images,
        channel_concat=gpu.tensor(1, joined, *grid, dtype=torch.float32) if joined else None,
        context_cache=ContextCache(),
    )
    timesteps = _timesteps(preset, shapes, gpu)
    return lambda: network(latents, timesteps, inputs)


def their_forward(preset: Preset, shapes: Shapes, gpu: SimulatedGPU, layers: int | None = None) -> Callable[[], Tensor]:
    """A call of diffusers' network of the same dims, with its float32 modules."""
    from diffusers import WanTransformer3DModel

    family, config = preset.part("dit").family, preset.dit
    config = replace(config, num_layers=layers or config.num_layers)
    if family.diffusers_config is None:
        raise ValueError(f"diffusers has no network like that of {preset.name}")
    with torch.device("meta"):
        network = WanTransformer3DModel.from_config(dict(family.diffusers_config(config)))
    _onto(network, gpu, set(network._keep_in_fp32_modules or ()))
    network.eval()
    grid, frames = _latent_shape(preset, shapes), _latent_shape(preset, shapes)[0]
    latents = gpu.tensor(1, config.in_dim, *grid, dtype=DTYPE)
    context = gpu.tensor(1, config.text_len, config.text_dim, dtype=DTYPE)
    images = None
    if config.image_dim is not None:
        images = gpu.tensor(1, config.image_tokens, config.image_dim, dtype=DTYPE)
    rows = (1, frames * grid[1] * grid[2] // 4) if shapes.per_frame else (1,)
    timesteps = gpu.tensor(*rows, dtype=torch.float32)

    def call() -> Tensor:
        result: Tensor = network(latents, timesteps, context, images, return_dict=False)[0]
        return result

    return call


def _onto(network: nn.Module, gpu: SimulatedGPU, in_float32: set[str]) -> None:
    """Weights on the simulated GPU, as diffusers loads them in 16 bits."""
    for path, module in network.named_modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None:
                dtype = torch.float32 if in_float32.intersection([*path.split("."), name]) else DTYPE
                placed = gpu.tensor(*parameter.shape, dtype=dtype)
                module._parameters[name] = nn.Parameter(placed, requires_grad=False)
        for name, buffer in list(module._buffers.items()):
            if buffer is not None:
                module._buffers[name] = gpu.tensor(*buffer.shape, dtype=buffer.dtype)


Side = Callable[[Preset, Shapes, SimulatedGPU, int | None], Callable[[], Tensor]]


def counted(side: Side, preset: Preset, shapes: Shapes, layers: int | None = None) -> Forward:
    """The second call of a side; the first fills what is kept between calls."""
    with simulated_gpu() as gpu:
        call = side(preset, shapes, gpu, layers)
        call()
        counts = gpu.begin()
        call()
    return Forward.of(counts)


def forward(preset: Preset, shapes: Shapes, side: Side = our_forward) -> Forward:
    """A forward with all blocks, counted with one and with two."""
    one, two = counted(side, preset, shapes, 1), counted(side, preset, shapes, 2)
    return one.with_blocks(two, preset.dit.num_layers)


def all_forwards() -> dict[str, dict[str, Any]]:
    """The forward of every preset that can be counted, at its usual shapes; of given frames too where it has them."""
    found: dict[str, dict[str, Any]] = {}
    known: dict[Any, Forward] = {}
    for name in countable():
        preset = get_preset(name)
        for per_frame in (False, True) if preset.task.has_clean_frames else (False,):
            shapes = replace(usual_shapes(preset), per_frame=per_frame)
            key = preset.dit, shapes
            if key not in known:
                known[key] = forward(preset, shapes)
            found[f"{name}, a timestep of each frame" if per_frame else name] = asdict(known[key])
    return found
