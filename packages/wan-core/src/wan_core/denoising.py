"""From conditions to clean latents: which network is where at which step, and what is kept between steps."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from wan_core.errors import ConfigError
from wan_core.models import ContextCache
from wan_core.presets import Preset
from wan_core.runtime import step_cached
from wan_core.sampling import (
    Denoiser,
    ExpertDenoiser,
    FlowTable,
    SharedBranches,
    StepCacheRule,
    StepCaches,
    WindowDenoiser,
    draw_noise,
    make_solver,
    sample,
    seeded_generator,
)
from wan_core.tasks import Components, Conditioning, Experts, Log, SamplingSettings, Window

if TYPE_CHECKING:
    from wan_core.models import DiTInputs, WanDiT
    from wan_core.runtime import Placed

Progress = Callable[[Iterable[Any], str], Iterable[Any]]
"""Wraps an iterable of steps and shows them; the string names the phase."""

Velocity = Callable[[Tensor, Tensor], Tensor]
"""(latents, scalar timestep) to a velocity."""

Watch = Callable[[Tensor, Tensor], None]
"""Sees latents [B, C, T, h, w] on their way, and the timestep that the network sees with them."""


def silent(steps: Iterable[Any], phase: str) -> Iterable[Any]:
    """Progress that shows nothing."""
    return steps


def unheard(text: str) -> None:
    """A log that nobody reads."""


def unwatched(latents: Tensor, timestep: Tensor) -> None:
    """A watch that nobody keeps."""


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """How a run computes, apart from what it makes.

    ``batched_guidance`` runs both guidance branches as one batch of two; ``noise_device`` is where the initial noise
    is drawn (``cpu``: a seed means the same on every machine). ``tea_cache`` is the threshold below which steps leave
    the network's blocks out, for presets that have its coefficients. ``shared_branches`` evaluates one branch of
    guidance here and the other one in another process.
    """

    batched_guidance: bool = False
    noise_device: str = "cpu"
    tea_cache: float | None = None
    shared_branches: SharedBranches | None = None


def denoise(
    preset: Preset,
    components: Components,
    options: SamplingOptions,
    conditioning: Conditioning,
    settings: SamplingSettings,
    seed: int,
    *,
    progress: Progress = silent,
    log: Log = unheard,
    watch: Watch = unwatched,
) -> Tensor:
    """The clean latents [B, C, T, h, w] float32 of one clip; the networks leave, with what they remember.

    ``watch`` sees the latents before each step. Raises ``ConfigError`` for a step cache on two experts, on given frames
    or on clips that go on from each other.
    """
    anchors = conditioning.anchors
    given = anchors.latents.float() if anchors is not None and anchors.is_complete else None
    if given is not None and conditioning.revisit is None:
        return given  # every frame is given: there is nothing to denoise
    caches = _step_caches(preset, components, options, conditioning, settings)
    solver_options = {"flow_shift": settings.flow_shift, **conditioning.solver_options}
    solver = make_solver(settings.solver, settings.num_inference_steps, **solver_options)
    generator = seeded_generator(seed, options.noise_device)
    turns = Turns(preset, components, options, conditioning, settings.guidance_scale, caches)
    try:
        if given is not None:
            latents = given
        else:
            for _ in range(conditioning.earlier_draws):
                draw_noise(conditioning.latent_shape, generator)
            latents = sample(
                _watched(turns, watch),
                solver,
                draw_noise(conditioning.latent_shape, generator, components.device),
                anchors=anchors,
                generator=generator,
                progress=lambda steps: progress(steps, "denoise"),
            )
        if conditioning.revisit is not None:  # the network remembers what it sees once more
            seen, timestep = latents, torch.tensor(conditioning.revisit)
            if conditioning.noised_revisit and given is None:
                noise = draw_noise(latents.shape, generator, latents.device)
                seen = FlowTable(settings.flow_shift).add_noise(latents, noise, timestep.view(1))
            turns(seen, timestep)
    finally:
        turns.rest()
    if caches is not None:
        total = caches.computed + caches.skipped
        log(f"tea-cache: {caches.skipped} of {total} network evaluations left out their blocks")
    return latents


class Turns:
    """The velocity of one clip, by one network or by the expert whose turn it is; only that one is on the device.

    What a network keeps of the conditions leaves with it, but for what clips hand on.
    """

    def __init__(
        self,
        preset: Preset,
        components: Components,
        options: SamplingOptions,
        conditioning: Conditioning,
        scale: float | Experts[float],
        caches: StepCaches | None = None,
    ) -> None:
        def turn(placed: Placed[WanDiT], scale: float) -> _Turn:
            return _Turn(placed, lambda network: _guided(network, conditioning, scale, options), caches)

        dit = components.dit
        self._velocity: Velocity
        if not isinstance(dit, Experts):
            self._all = [turn(dit, _single(scale))]
            self._velocity = self._all[0]
            return
        scales = scale if isinstance(scale, Experts) else Experts(high=_single(scale), low=_single(scale))
        high, low = turn(dit.high, scales.high), turn(dit.low, scales.low)
        high.other, low.other = low, high
        self._all = [high, low]
        self._velocity = ExpertDenoiser(high=high, low=low, boundary=preset.boundary or 0.0)

    def __call__(self, latents: Tensor, timestep: Tensor) -> Tensor:
        return self._velocity(latents, timestep)

    def rest(self) -> None:
        """Every network leaves."""
        for each in self._all:
            each.rest()


class _Turn:
    """A network that comes to the device at its first step and sends the other expert away."""

    def __init__(
        self, placed: Placed[WanDiT], guide: Callable[[Any], Velocity], caches: StepCaches | None = None
    ) -> None:
        self._placed = placed
        self._guide = guide
        self._caches = caches
        self._velocity: Velocity | None = None
        self.other: _Turn | None = None

    def __call__(self, latents: Tensor, timestep: Tensor) -> Tensor:
        if self._velocity is None:
            if self.other is not None:
                self.other.rest()
            self._velocity = self._guide(self._network(self._placed.module()))
        return self._velocity(latents, timestep)

    def rest(self) -> None:
        if self._velocity is not None:
            self._velocity = None
            self._placed.rest()

    def _network(self, module: WanDiT) -> Callable[[Tensor, Tensor, DiTInputs], Tensor]:
        caches = self._caches
        if caches is None:
            return module

        def cached(latents: Tensor, timesteps: Tensor, inputs: DiTInputs) -> Tensor:
            with step_cached(module, caches.of(inputs)):
                velocity: Tensor = module(latents, timesteps, inputs)
            return velocity

        return cached


def _guided(network: Any, conditioning: Conditioning, guidance_scale: float, options: SamplingOptions) -> Velocity:
    # Windows have one text, so they share what follows from it; clips may go on with what those before them found.
    positive, negative = (
        ContextCache() if inputs is None or inputs.context_cache is None else inputs.context_cache
        for inputs in (conditioning.positive, conditioning.negative)
    )

    def denoiser(of: Conditioning | Window) -> Denoiser:
        return Denoiser(
            network,
            replace(of.positive, context_cache=positive),
            None if of.negative is None else replace(of.negative, context_cache=negative),
            guidance_scale,
            anchors=conditioning.anchors,
            batched=options.batched_guidance,
            shared=options.shared_branches,
        )

    if not conditioning.windows:
        return denoiser(conditioning)
    windows = conditioning.windows
    return WindowDenoiser([denoiser(window) for window in windows], [window.frames for window in windows])


def _step_caches(
    preset: Preset,
    components: Components,
    options: SamplingOptions,
    conditioning: Conditioning,
    settings: SamplingSettings,
) -> StepCaches | None:
    threshold = options.tea_cache
    if threshold is None:
        return None
    if isinstance(components.dit, Experts) or conditioning.anchors is not None:
        what = "one network" if conditioning.anchors is None else "videos without given frames"
        raise ConfigError(f"tea_cache knows {what} only; leave it out")
    if conditioning.revisit is not None:
        raise ConfigError("tea_cache would leave out what a network must see to remember it; leave it out")
    return StepCaches(StepCacheRule(preset.tea_cache, threshold), settings.num_inference_steps)


def _watched(denoiser: Velocity, watch: Watch) -> Velocity:
    def velocity(latents: Tensor, timestep: Tensor) -> Tensor:
        watch(latents, timestep)
        return denoiser(latents, timestep)

    return velocity


def _single(scale: float | Experts[float]) -> float:
    if isinstance(scale, Experts):
        raise ValueError(f"one guidance_scale is needed here, got {scale}")
    return scale
