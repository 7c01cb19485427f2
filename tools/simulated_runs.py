"""A whole run of a preset on a GPU that is not there: every phase of the plan of memory, clip by clip."""

import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pi3 import Pi3Config
from tools.simulated_inputs import DTYPE
from tools.simulated_requests import planned
from wan_core.checkpoints import Part, load_model
from wan_core.errors import RequestError
from wan_core.memory import MemoryPlan, RunFacts, part_name, phases_of
from wan_core.models import TextEncoder, Tokenizer
from wan_core.pipeline import Pipeline
from wan_core.presets import Preset
from wan_core.run_options import vae_tiling
from wan_core.runtime import Between, Counts, HostCopy, Placed, SimulatedGPU, prepare_model, simulated_gpu
from wan_core.sampling import count_high_noise_steps, make_solver
from wan_core.tasks import Components, Conditioning, Experts, SamplingSettings, TaskInputs

_HOST = 2**40  # bytes of host memory beside the simulated GPU: enough
_FETCHED = {"pi3": Pi3Config()}  # dims of parts that presets leave to what is fetched


@dataclass(frozen=True)
class RunPhase:
    """A phase: what ran, of how many steps out of how many, and the bytes of weights and the peak that were planned.

    ``in_steps`` are the bytes that steps copied to the device, without those by which a network is loaded.
    """

    name: str
    counts: Counts
    in_steps: int = 0
    simulated_steps: int = 1
    steps: int = 1
    planned_weights: int = 0
    planned_peak: int = 0

    @property
    def scale(self) -> float:
        """By how much counts grow to those of all steps."""
        return self.steps / self.simulated_steps

    @property
    def to_device(self) -> int:
        """Bytes that all steps and what is around them copy to the device."""
        return self.counts.to_device + round(self.in_steps * (self.scale - 1))


class _Phases:
    """Counts of each phase, which begins where another part comes into use; phases come again with every clip."""

    def __init__(self, gpu: SimulatedGPU) -> None:
        self._gpu = gpu
        self.names: dict[str, str] = {}
        self.counts: dict[str, Counts] = {}
        self.in_steps: Counter[str] = Counter()
        self._loaded: Counter[str] = Counter()
        self.decodes = False

    @contextmanager
    def entered(self, part: str) -> Iterator[None]:
        """The phase in which a part, under its name of the plan, comes into use; it is loaded within the block."""
        name = self.names.get(part, part)
        if part == "vae":
            name = "decode" if self.decodes else "encode"
        counts = self._gpu.resume(self.counts.setdefault(name, Counts()))
        before = counts.to_device
        yield
        self._loaded[name] += counts.to_device - before

    def progress(self, steps: Iterable[Any], _: str) -> Iterator[Any]:
        """The steps, of which is noted what they copy."""
        for step in steps:
            before = self._copied()
            yield step
            self.in_steps += self._copied() - before

    def _copied(self) -> Counter[str]:
        return Counter({name: counts.to_device - self._loaded[name] for name, counts in self.counts.items()})


class _PhasedPart(Placed[Any]):
    """A part whose use begins a phase, with what it takes to load it."""

    def __init__(
        self, load: Callable[..., Any], device: torch.device, entered: Callable[[], AbstractContextManager[None]]
    ) -> None:
        super().__init__(load, device, between=Between.DROP, load_through=partial(load, device))
        self._entered = entered

    def module(self) -> Any:
        with self._entered():
            return super().module()


class _PhasedPipeline(Pipeline):
    """Tells its phases when frames are decoded."""

    phases: _Phases

    def decode(self, latents: Tensor, conditioning: Conditioning) -> Iterator[Tensor]:
        self.phases.decodes = True
        yield from super().decode(latents, conditioning)
        self.phases.decodes = False


def components_of(preset: Preset, gpu: SimulatedGPU, phases: _Phases, run: RunFacts) -> Components:
    """The preset's parts on the simulated GPU; they load themselves from files that hold nothing."""
    text_len = preset.dit.text_len

    def load(part: Part, device: torch.device, host: HostCopy | None = None) -> nn.Module:
        family, dtype, config = part.family, run.dtype_of(part), run.configs[part.name]
        source = gpu.weights(config, family, dtype)
        place = None if host is None else host.place
        network: nn.Module = load_model(config, source, family=family, dtype=dtype, device=device, place=place)
        if host is not None:
            host.bind(network)
        prepare_model(network, inference=True, attention="sdpa" if family.is_denoiser else None)
        if part.name != "text_encoder":
            return network
        words = Tokenizer(lambda text: [2] * text_len, end_id=1, vocab_size=config.vocab_size)
        return TextEncoder(network, words, text_len)

    parts: dict[str, Any] = {}
    for part in preset.parts:
        if part.name not in run.configs:
            continue
        device = torch.device("cpu") if part.name in run.on_host else gpu.device
        placed = _PhasedPart(partial(load, part), device, partial(phases.entered, part_name(part)))
        earlier = parts.get(part.name)
        parts[part.name] = placed if earlier is None else Experts(high=earlier, low=placed)
    found = dict.fromkeys(parts, "simulated")
    return Components(device=gpu.device, parts=parts, configs=run.configs, found=found)


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
    clips: int = 2,
    tiling: str = "auto",
    vae_dtype: torch.dtype | None = None,
) -> list[RunPhase]:
    """The phases of a video on a GPU with ``memory`` bytes, of which ``steps`` steps a clip are simulated.

    Of a task that makes several clips there are ``clips``. Raises ``RequestError`` for settings that cannot be, or too
    few steps for both experts, ``ConfigError`` for a run that does not fit.
    """
    on_host = frozenset({"text_encoder"} if text_on_cpu else ())
    configs = {
        part.name: part.config or _FETCHED.get(part.name)
        for part in preset.parts
        if part.family.network is not None and not part.is_optional
    }
    run = RunFacts(
        preset=preset,
        dtype=DTYPE,
        offload=offload,
        in_blocks=in_blocks,
        configs=configs,
        on_host=on_host,
        tiling=vae_tiling(tiling),
        vae_dtype=vae_dtype,
    )
    with tempfile.TemporaryDirectory() as folder:
        inputs = planned(preset, settings, Path(folder), with_image=with_image, clips=clips)
        total = inputs.settings.num_inference_steps
        short = replace(inputs, settings=replace(inputs.settings, num_inference_steps=min(steps, total)))
        with simulated_gpu() as gpu:
            phases = _Phases(gpu)
            phases.names = {phase.parts[0]: phase.name for phase in phases_of(run, short, run.weights)[:-1]}
            components = components_of(preset, gpu, phases, run)
            pipeline = _PhasedPipeline(preset, components, latent_spec=preset.latent_spec, run=run)
            pipeline.phases = phases
            plan = pipeline.place([short], free=memory, host_free=_HOST)
            pipeline.encode_prompts([pipeline.check(short)])
            for chunk in pipeline.stream(short, progress=phases.progress):
                chunk.cpu()
    return _described(preset, inputs, short, phases, plan)


def _steps(preset: Preset, settings: SamplingSettings) -> dict[str, int]:
    """How many steps there are by phase."""
    timesteps = make_solver(settings.solver, settings.num_inference_steps, flow_shift=settings.flow_shift).timesteps
    high = count_high_noise_steps(timesteps, preset.boundary) if preset.boundary is not None else 0
    if preset.has_experts:
        return {"denoise high": high, "denoise low": len(timesteps) - high}
    return {"denoise": len(timesteps)}


def _described(
    preset: Preset, inputs: TaskInputs[Any], short: TaskInputs[Any], phases: _Phases, plan: MemoryPlan | None
) -> list[RunPhase]:
    steps, simulated = _steps(preset, inputs.settings), _steps(preset, short.settings)
    clips = preset.task.num_clips(inputs)
    for name, count in steps.items():
        if count and not simulated[name]:
            raise RequestError(f"so few steps leave out {name}; simulate more of them with --steps")
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
                in_steps=phases.in_steps[name],
                simulated_steps=clips * simulated.get(name, 1),
                steps=clips * steps.get(name, 1),
                planned_weights=0 if expected is None else expected.resident,
                planned_peak=0 if expected is None else expected.peak,
            )
        )
    return found
