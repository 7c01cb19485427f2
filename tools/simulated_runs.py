"""A whole run of a preset on a GPU that is not there: text, encode, each expert's steps, decode."""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from tools.simulated_forwards import DTYPE
from wan_core.checkpoints import Part, load_model
from wan_core.errors import RequestError
from wan_core.memory import MemoryPlan, RunFacts, part_name
from wan_core.models import TextEncoder, Tokenizer
from wan_core.pipeline import Pipeline
from wan_core.presets import Preset
from wan_core.runtime import Between, Counts, HostCopy, Placed, SimulatedGPU, prepare_model, simulated_gpu
from wan_core.sampling import count_high_noise_steps, make_solver
from wan_core.tasks import Clip, Components, Experts, TaskInputs

_HOST = 2**40  # bytes of host memory beside the simulated GPU: enough
_IMAGES = ("image", "first_frame", "last_frame")


@dataclass(frozen=True)
class RunPhase:
    """A phase: what ran, of how many steps out of how many, and the bytes of weights and the peak that were planned."""

    name: str
    counts: Counts
    simulated_steps: int = 1
    steps: int = 1
    planned_weights: int = 0
    planned_peak: int = 0

    @property
    def scale(self) -> float:
        """By how much counts grow to those of all steps."""
        return self.steps / self.simulated_steps


def components_of(preset: Preset, gpu: SimulatedGPU, *, text_on_cpu: bool = False) -> Components:
    """The preset's parts on the simulated GPU; they load themselves from files that hold nothing."""
    text_len = preset.dit.text_len

    def load(part: Part, device: torch.device, host: HostCopy | None = None) -> nn.Module:
        family, dtype = part.family, part.family.dtype_in(DTYPE)
        source = gpu.weights(part.config, family, dtype)
        place = None if host is None else host.place
        network: nn.Module = load_model(part.config, source, family=family, dtype=dtype, device=device, place=place)
        if host is not None:
            host.bind(network)
        prepare_model(network, inference=True, attention="sdpa" if family.is_denoiser else None)
        if part.name != "text_encoder":
            return network
        words = Tokenizer(lambda text: [2] * text_len, end_id=1, vocab_size=part.config.vocab_size)
        return TextEncoder(network, words, text_len)

    parts: dict[str, Any] = {}
    for part in preset.parts:
        if part.family.network is None or part.is_optional:
            continue
        device = torch.device("cpu") if part.name == "text_encoder" and text_on_cpu else gpu.device
        through = partial(load, part, device)
        placed: Placed[Any] = Placed(partial(load, part), device, between=Between.DROP, load_through=through)
        earlier = parts.get(part.name)
        parts[part.name] = placed if earlier is None else Experts(high=earlier, low=placed)
    configs = {part.name: part.config for part in preset.parts if part.name in parts}
    return Components(device=gpu.device, parts=parts, configs=configs)


def planned(preset: Preset, settings: Mapping[str, Any], *, with_image: bool) -> TaskInputs[Any]:
    """A request at these settings with grey images where the task wants them. Raises ``RequestError``."""
    names = {each.name for each in fields(preset.task.request_type)}
    wants = with_image or preset.task.prompt_kind in ("i2v", "flf2v")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "grey.png"
        usual = preset.sampling
        size = settings.get("width") or usual.width, settings.get("height") or usual.height
        Image.new("RGB", size, (128, 128, 128)).save(path)
        images = {name: path for name in _IMAGES if name in names} if wants else {}
        return preset.plan(preset.task.request_type(prompt="simulated", **images, **settings))


class _Phases:
    """Begins a phase where another name comes up, and counts its steps."""

    def __init__(self, gpu: SimulatedGPU) -> None:
        self._gpu = gpu
        self.counts: dict[str, Counts] = {}
        self.steps: dict[str, int] = {}

    def enter(self, name: str) -> None:
        self.steps[name] = self.steps.get(name, 0) + 1
        if name not in self.counts:
            self.counts[name] = self._gpu.begin()


def simulate(
    preset: Preset,
    settings: Mapping[str, Any],
    *,
    steps: int,
    memory: int,
    offload: bool | None = None,
    in_blocks: bool = False,
    text_on_cpu: bool = False,
    with_image: bool = False,
) -> list[RunPhase]:
    """The phases of a video on a GPU with ``memory`` bytes, of which ``steps`` steps are simulated.

    Raises ``RequestError`` for a preset whose videos need more than text and images, ``ConfigError`` for a run that
    does not fit.
    """
    inputs = planned(preset, settings, with_image=with_image)
    if preset.task.streams or preset.task.num_clips(inputs) > 1:
        raise RequestError(f"{preset.name} makes its videos clip by clip; only those of one clip are simulated")
    total = inputs.settings.num_inference_steps
    short = replace(inputs, settings=replace(inputs.settings, num_inference_steps=min(steps, total)))
    with simulated_gpu() as gpu:
        components = components_of(preset, gpu, text_on_cpu=text_on_cpu)
        on_host = frozenset({"text_encoder"} if text_on_cpu else ())
        run = RunFacts(
            preset=preset,
            dtype=DTYPE,
            offload=offload,
            in_blocks=in_blocks,
            configs=components.configs,
            on_host=on_host,
        )
        pipeline = Pipeline(preset, components, latent_spec=preset.latent_spec, run=run)
        plan = pipeline.place([short], free=memory, host_free=_HOST)
        phases = _Phases(gpu)
        _run(pipeline, short, phases)
    return _described(preset, inputs, phases, plan)


def _run(pipeline: Pipeline, inputs: TaskInputs[Any], phases: _Phases) -> None:
    preset, components = pipeline.preset, pipeline.components
    networks = [part_name(part).replace("dit", "denoise") for part in preset.dits]

    def watch(latents: Tensor, timestep: Tensor) -> None:
        low = preset.boundary is not None and not count_high_noise_steps(timestep.reshape(1), preset.boundary)
        phases.enter(networks[-1 if low else 0])

    phases.enter("text")
    pipeline.encode_prompts([inputs])
    phases.enter("encode")
    conditioning = preset.task.finish(preset.task.condition(inputs, components, Clip()), components)
    latents = pipeline.denoise(conditioning, inputs.settings, 0, watch=watch)
    phases.enter("decode")
    for chunk in pipeline.decode(latents, conditioning):
        chunk.cpu()


def _described(preset: Preset, inputs: TaskInputs[Any], phases: _Phases, plan: MemoryPlan | None) -> list[RunPhase]:
    settings = inputs.settings
    timesteps = make_solver(settings.solver, settings.num_inference_steps, flow_shift=settings.flow_shift).timesteps
    high = count_high_noise_steps(timesteps, preset.boundary) if preset.boundary is not None else 0
    steps = {"denoise": len(timesteps), "denoise high": high, "denoise low": len(timesteps) - high}
    unseen = [name for name in steps if name.startswith("denoise ") and steps[name] and name not in phases.counts]
    if unseen and preset.has_experts:
        raise RequestError(f"so few steps leave out {unseen[0]}; simulate more of them with --steps")
    memory = {} if plan is None else {phase.name: phase for phase in plan.phases}
    found = []
    for name, counts in phases.counts.items():
        if not counts.kernels:
            continue
        expected = memory.get(name)
        found.append(
            RunPhase(
                name,
                counts,
                simulated_steps=phases.steps[name],
                steps=steps.get(name, 1),
                planned_weights=0 if expected is None else expected.resident,
                planned_peak=0 if expected is None else expected.peak,
            )
        )
    return found
