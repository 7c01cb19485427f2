"""One forward of a preset's network on a GPU that is not there, ours and diffusers'; exact counts, no clock.

Blocks are alike, but for what follows some of them: a forward is counted with one block and with two, and with two of
which both have a follower; the rest follows.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from tools.simulated_inputs import DTYPE, Shapes, base_conditions, call_of, is_known, latent_shape
from wan_core.checkpoints import build_on_meta, load_model
from wan_core.errors import RequestError
from wan_core.models import AnimateDiTConfig, AnimateInputs, DiTInputs, S2VConfig, WanDiTConfig
from wan_core.presets import Preset, get_preset, list_presets
from wan_core.runtime import Counts, SimulatedGPU, prepare_model, simulated_gpu

_IMAGE_TOKENS = 257  # CLIP's, of one image


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

    def plus(self, more: "Forward", less: "Forward", times: int) -> "Forward":
        """This one and ``times`` what ``more`` takes above ``less``."""
        one, a, b = asdict(self), asdict(more), asdict(less)
        return Forward(**{name: value + times * (a[name] - b[name]) for name, value in one.items()})


def usual_shapes(preset: Preset) -> Shapes:
    """What a preset makes when nothing is said; of clips that follow sound, sizes that its history divides."""
    usual = preset.sampling
    multiple = 64 if isinstance(preset.dit, S2VConfig) else 1
    return Shapes(usual.num_frames, usual.height // multiple * multiple, usual.width // multiple * multiple)


def countable() -> list[str]:
    """Presets of real size whose network's inputs can be made."""
    found = {name: get_preset(name) for name in list_presets()}
    return [name for name, preset in found.items() if preset.bundled is None and is_known(inputs_type(preset))]


def inputs_type(preset: Preset) -> type[DiTInputs]:
    """The class of the conditions that the preset's network takes."""
    part = preset.part("dit")
    return build_on_meta(lambda: part.family.build(shortened(part.config, 1, 1))).inputs_type  # type: ignore[no-any-return]


def followers(config: WanDiTConfig) -> int:
    """After how many blocks something else comes: the sound, or a look at the face."""
    if isinstance(config, S2VConfig):
        return len(config.audio_inject_layers)
    return config.num_layers // config.inject_face_latents_blocks if isinstance(config, AnimateDiTConfig) else 0


def shortened(config: WanDiTConfig, layers: int, followed: int) -> WanDiTConfig:
    """The same dims with so many blocks; where blocks have followers, ``followed`` of them have one."""
    if isinstance(config, S2VConfig):
        return replace(config, num_layers=layers, audio_inject_layers=tuple(range(followed)))
    if isinstance(config, AnimateDiTConfig):
        return replace(config, num_layers=layers, inject_face_latents_blocks=layers // followed)
    return replace(config, num_layers=layers)


def our_forward(preset: Preset, shapes: Shapes, gpu: SimulatedGPU) -> Callable[[], Tensor]:
    """A call of our network as sampling calls it, with the cache of its text."""
    family, config = preset.part("dit").family, preset.dit
    network = load_model(config, gpu.weights(config, family, DTYPE), family=family, dtype=DTYPE, device=gpu.device)
    prepare_model(network, inference=True, attention="sdpa")
    call = call_of(preset, shapes, network.inputs_type, gpu)
    for earlier in call.before:
        network(earlier.latents, earlier.timesteps, earlier.inputs)
    return lambda: network(call.latents, call.timesteps, call.inputs)


def their_forward(preset: Preset, shapes: Shapes, gpu: SimulatedGPU) -> Callable[[], Tensor]:
    """A call of diffusers' network of the same dims, with its float32 modules.

    Raises RequestError where diffusers has none.
    """
    import diffusers

    family, config = preset.part("dit").family, preset.dit
    if family.diffusers_config is None or inputs_type(preset) not in (DiTInputs, AnimateInputs):
        raise RequestError(f"diffusers has no network like that of {preset.name}; leave --peer out")
    settings = dict(family.diffusers_config(config))
    with torch.device("meta"):
        network = getattr(diffusers, settings["_class_name"]).from_config(settings)
    onto(network, gpu, set(network._keep_in_fp32_modules or ()))
    network.eval()
    grid = latent_shape(preset, shapes)
    if isinstance(config, AnimateDiTConfig):
        return _their_animation(network, preset, grid, gpu)
    latents = gpu.tensor(1, config.in_dim, *grid, dtype=DTYPE)
    base = base_conditions(preset, grid, gpu)
    images = base["image_context"]
    if images is not None and images.shape[1] > _IMAGE_TOKENS:  # one sample of the batch for each image
        images = gpu.tensor(images.shape[1] // _IMAGE_TOKENS, _IMAGE_TOKENS, images.shape[2], dtype=DTYPE)
    rows = (1, grid[0] * grid[1] * grid[2] // 4) if shapes.per_frame else (1,)
    timesteps = gpu.tensor(*rows, dtype=torch.float32)

    def call() -> Tensor:
        result: Tensor = network(latents, timesteps, base["context"], images, return_dict=False)[0]
        return result

    return call


def _their_animation(
    network: nn.Module, preset: Preset, grid: tuple[int, int, int], gpu: SimulatedGPU
) -> Callable[[], Tensor]:
    """It encodes the face in every forward."""
    config: Any = preset.dit
    base = base_conditions(preset, (1 + grid[0], *grid[1:]), gpu)
    latents = gpu.tensor(1, config.in_dim, 1 + grid[0], *grid[1:], dtype=DTYPE)
    poses = gpu.tensor(1, config.pose_dim, *grid, dtype=DTYPE)
    face = gpu.tensor(1, 3, 4 * grid[0] - 3, config.face_size, config.face_size, dtype=DTYPE)
    timesteps = gpu.tensor(1, dtype=torch.float32)

    def call() -> Tensor:
        result: Tensor = network(
            latents, timesteps, base["context"], base["image_context"], poses, face, return_dict=False
        )[0]
        return result

    return call


def onto(network: nn.Module, gpu: SimulatedGPU, in_float32: set[str], dtype: torch.dtype = DTYPE) -> None:
    """Weights on the simulated GPU, as diffusers loads them in ``dtype``."""
    for path, module in network.named_modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None:
                kind = torch.float32 if in_float32.intersection([*path.split("."), name]) else dtype
                placed = gpu.tensor(*parameter.shape, dtype=kind)
                module._parameters[name] = nn.Parameter(placed, requires_grad=False)
        for name, buffer in list(module._buffers.items()):
            if buffer is not None:
                module._buffers[name] = gpu.tensor(*buffer.shape, dtype=buffer.dtype)


Side = Callable[[Preset, Shapes, SimulatedGPU], Callable[[], Tensor]]


def counted(side: Side, preset: Preset, shapes: Shapes) -> Forward:
    """The second call of a side; the first fills what is kept between calls."""
    with simulated_gpu() as gpu:
        call = side(preset, shapes, gpu)
        call()
        counts = gpu.begin()
        call()
    return Forward.of(counts)


def forward(preset: Preset, shapes: Shapes, side: Side = our_forward) -> Forward:
    """A forward with all blocks, counted with one and with two."""
    config, further = preset.dit, followers(preset.dit)

    def short(layers: int, followed: int) -> Forward:
        return counted(side, preset.with_part("dit", config=shortened(config, layers, followed)), shapes)

    one, two = short(1, 1), short(2, 1)
    found = one.plus(two, one, config.num_layers - 1)
    return found.plus(short(2, 2), two, further - 1) if further else found


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
