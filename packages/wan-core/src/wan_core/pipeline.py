"""A request through a model: condition, denoise, decode - clip by clip, frames streamed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from wan_core import media
from wan_core.errors import ConfigError
from wan_core.files import quoted
from wan_core.media import LatentSpec
from wan_core.models import ContextCache
from wan_core.presets import Preset
from wan_core.runtime import step_cached
from wan_core.sampling import (
    Denoiser,
    ExpertDenoiser,
    FlowTable,
    StepCacheRule,
    StepCaches,
    WindowDenoiser,
    draw_noise,
    make_solver,
    sample,
    seeded_generator,
)
from wan_core.tasks import (
    Clip,
    Components,
    Conditioning,
    Experts,
    GeneratedClip,
    GenerationRequest,
    Log,
    SamplingSettings,
    TaskInputs,
    Window,
)

if TYPE_CHECKING:
    from wan_core.kept_clips import KeptClips
    from wan_core.media import AudioTrack, Provenance
    from wan_core.models import DiTInputs, WanDiT
    from wan_core.runtime import Placed

Progress = Callable[[Iterable[Any], str], Iterable[Any]]
"""Wraps an iterable of steps and shows them; the string names the phase."""


def silent(steps: Iterable[Any], phase: str) -> Iterable[Any]:
    """Progress that shows nothing."""
    return steps


def unheard(text: str) -> None:
    """A log that nobody reads."""


Watch = Callable[[Tensor, Tensor], None]
"""Sees latents [B, C, T, h, w] on their way, and the timestep that the network sees with them."""


def unwatched(latents: Tensor, timestep: Tensor) -> None:
    """A watch that nobody keeps."""


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """How a run computes, apart from what it makes.

    ``batched_guidance`` runs both guidance branches as one batch of two; ``noise_device`` is where the initial noise
    is drawn (``cpu``: a seed means the same on every machine). ``tea_cache`` is the threshold below which steps leave
    the network's blocks out, for presets that have its coefficients.
    """

    batched_guidance: bool = False
    noise_device: str = "cpu"
    tea_cache: float | None = None


@dataclass(frozen=True)
class GeneratedVideo:
    """A finished video: ``frames`` [T, 3, H, W] float32 in [-1, 1], how it was made, and its ``sound`` if any."""

    frames: Tensor
    fps: float
    provenance: Provenance
    sound: AudioTrack | None = None

    def save(self, path: str | Path, *, metadata: bool = True) -> Path:
        """Write ``.mp4``, ``.gif``, ``.webp`` or a ``%04d.png`` pattern. Raises ``MediaError``, ``RequestError``."""
        provenance = self.provenance if metadata else None
        frames = iter([self.frames.transpose(0, 1)])
        return media.write_video(
            frames, path, fps=self.fps, provenance=provenance, audio=self.sound, shortest=self.sound is not None
        )


class Pipeline:
    """A model ready to make videos. Built by :func:`wan_core.loading.load_pipeline`.

    ``notes`` are sentences that a user should see, ``record`` facts that go into every output's provenance.
    """

    def __init__(
        self,
        preset: Preset,
        components: Components,
        *,
        latent_spec: LatentSpec,
        options: SamplingOptions | None = None,
        record: Mapping[str, Any] | None = None,
        notes: Sequence[str] = (),
    ) -> None:
        self.preset = preset
        self.components = components
        self.latent_spec = latent_spec
        self.options = options or SamplingOptions()
        self.notes = tuple(notes)
        self._record = dict(record or {})

    def plan(self, request: GenerationRequest) -> TaskInputs[Any]:
        """Fill in the defaults, read and check the user's files; no weight is touched.

        Raises ``RequestError`` or ``MediaError``.
        """
        return self.preset.plan(request, self.latent_spec)

    def check(self, inputs: TaskInputs[Any]) -> TaskInputs[Any]:
        """A planned request as this model's parts take it; no weight is read. Raises what :meth:`Task.check` does."""
        checked: TaskInputs[Any] = self.preset.task.check(inputs, self.components)
        return checked

    def prompt_notes(self, inputs: TaskInputs[Any]) -> list[str]:
        """Sentences on what the model does not read of a prompt, or a negative one: its end, words without a token.

        A prompt that the task has by itself is nobody's to mend.
        """
        default = next(each.default for each in fields(inputs.request) if each.name == "prompt")
        prompt = "" if inputs.request.prompt == default else inputs.request.prompt
        texts = {"prompt": prompt, "negative prompt": inputs.settings.negative_prompt}
        lost = {name: self.components.lost_words(text) for name, text in texts.items()}
        cut = {name: quoted(end) for name, end in lost.items() if end}
        notes = [f"the {name} is too long, the model does not read its end: {end}" for name, end in cut.items()]
        # What its world is described by, it draws, whether the word has a token or not.
        drawn = self.preset.world.lower().split()
        missing = [word for word in self.components.unknown_words(prompt) if word.lower() not in drawn]
        unknown = ", ".join(map(repr, missing))
        world = f"; {self.preset.world}" if self.preset.world else ""
        return [*notes, f"{self.preset.name} has no word for {unknown}{world}"] if unknown else notes

    def generate(self, request: GenerationRequest, *, progress: Progress = silent) -> GeneratedVideo:
        """The whole video in memory. Raises ``RequestError``, ``CheckpointError``, ``MediaError``."""
        inputs = self.plan(request)
        frames = torch.cat([chunk.cpu() for chunk in self.stream(inputs, progress=progress)], dim=1)
        return GeneratedVideo(frames.transpose(0, 1), inputs.settings.fps, self.provenance(inputs), inputs.sound)

    @torch.no_grad()
    def stream(
        self,
        inputs: TaskInputs[Any],
        *,
        progress: Progress = silent,
        on_latents: Callable[[Tensor], None] | None = None,
        log: Log = unheard,
        kept: KeptClips | None = None,
    ) -> Iterator[Tensor]:
        """Frame chunks [3, t, H, W] in [-1, 1] of a planned request, as they are decoded.

        ``on_latents`` sees each clip's denoised latents [1, C, T, h, w]; ``log`` gets what the task reports. Clips that
        are ``kept`` are not denoised again, and those that are done are kept there.
        """
        inputs = self.check(inputs)
        task, components = self.preset.task, self.components
        with ExitStack() as held:
            if task.streams:
                further = [components.part(name) for name in task.held_parts if name in components.parts]
                parts: tuple[Placed[Any], ...] = (*components.networks, components.vae, *further)
                for part in parts:
                    held.enter_context(part.held())
            yield from self._clips(inputs, progress, on_latents, log, kept)

    def _clips(
        self,
        inputs: TaskInputs[Any],
        progress: Progress,
        on_latents: Callable[[Tensor], None] | None,
        log: Log,
        kept: KeptClips | None,
    ) -> Iterator[Tensor]:
        task = self.preset.task
        num_clips = task.num_clips(inputs)
        clip = Clip()
        for index in range(num_clips):
            clip = replace(clip, index=index)
            conditioning = task.condition(inputs, self.components, clip)
            seed = task.noise_seed(inputs.settings.seed, clip)
            latents = None if kept is None else kept.get(index, conditioning.latent_shape)
            if latents is None:
                conditioning = task.finish(conditioning, self.components)
                latents = self.denoise(conditioning, inputs.settings, seed, progress, log)
                if kept is not None:
                    kept.put(index, latents)
            if on_latents is not None:
                on_latents(latents)
            decoded = (chunk[0] for chunk in self.decode(latents, conditioning))
            made = GeneratedClip(conditioning=conditioning, latents=latents, frames=decoded)
            chunks = task.report(inputs, made, log)
            clip = replace(clip, previous=conditioning)
            if task.streams or index + 1 == num_clips:
                yield from chunks
            else:
                frames = torch.cat(list(chunks), dim=1)
                yield frames
                clip = replace(clip, previous_frames=frames[None])

    def denoise(
        self,
        conditioning: Conditioning,
        settings: SamplingSettings,
        seed: int,
        progress: Progress = silent,
        log: Log = unheard,
        watch: Watch = unwatched,
    ) -> Tensor:
        """Denoised latents [B, C, T, h, w] float32 of one clip; ``watch`` sees those before each step.

        Raises ``ConfigError`` for a step cache on two experts, on given frames or on clips that go on from each other.
        """
        anchors = conditioning.anchors
        given = anchors.latents.float() if anchors is not None and anchors.is_complete else None
        if given is not None and conditioning.revisit is None:
            return given  # every frame is given: there is nothing to denoise
        options = {"flow_shift": settings.flow_shift, **conditioning.solver_options}
        solver = make_solver(settings.solver, settings.num_inference_steps, **options)
        generator = seeded_generator(seed, self.options.noise_device)
        for _ in range(conditioning.earlier_draws):
            draw_noise(conditioning.latent_shape, generator)
        caches = self._step_caches(conditioning, settings)
        denoiser, release = self._denoiser(conditioning, settings.guidance_scale, caches)
        try:
            if given is not None:
                latents = given
            else:
                latents = sample(
                    _watched(denoiser, watch),
                    solver,
                    draw_noise(conditioning.latent_shape, generator, self.components.device),
                    anchors=anchors,
                    generator=generator,
                    progress=lambda steps: progress(steps, "denoise"),
                )
            if conditioning.revisit is not None:
                seen, timestep = latents, torch.tensor(conditioning.revisit)
                if conditioning.noised_revisit and given is None:
                    noise = draw_noise(latents.shape, generator, latents.device)
                    seen = FlowTable(settings.flow_shift).add_noise(latents, noise, timestep.view(1))
                denoiser(seen, timestep)
        finally:
            release()
        if caches is not None:
            total = caches.computed + caches.skipped
            log(f"tea-cache: {caches.skipped} of {total} network evaluations left out their blocks")
        return latents

    def decode(self, latents: Tensor, conditioning: Conditioning) -> Iterator[Tensor]:
        """Frame chunks [B, 3, t, H, W] in [-1, 1] of denoised latents."""
        plan = conditioning.decode
        skip, left = plan.drop_frames, plan.keep_frames
        with self.components.vae.active() as vae:
            for chunk in vae.stream_decode(plan.apply(latents), cache=plan.cache):
                kept = chunk[:, :, skip:][:, :, :left]
                skip = max(0, skip - chunk.shape[2])
                if kept.shape[2]:
                    yield kept
                left = None if left is None else left - kept.shape[2]
                if left == 0:
                    return

    def provenance(self, inputs: TaskInputs[Any]) -> Provenance:
        """How this output was made: model, settings, hashes of the files that were given, versions."""
        sound = {} if inputs.sound is None else {"sound_sha256": inputs.sound.sha256}
        record = {**self._record, **sound, "inputs": inputs.contents()}
        return media.Provenance.of(preset=self.preset.name, settings=inputs.record(), record=record)

    def _step_caches(self, conditioning: Conditioning, settings: SamplingSettings) -> StepCaches | None:
        threshold = self.options.tea_cache
        if threshold is None:
            return None
        if isinstance(self.components.dit, Experts) or conditioning.anchors is not None:
            what = "one network" if conditioning.anchors is None else "videos without given frames"
            raise ConfigError(f"tea_cache knows {what} only; leave it out")
        if conditioning.revisit is not None:
            raise ConfigError("tea_cache would leave out what a network must see to remember it; leave it out")
        return StepCaches(StepCacheRule(self.preset.tea_cache, threshold), settings.num_inference_steps)

    def _denoiser(
        self, conditioning: Conditioning, scale: float | Experts[float], caches: StepCaches | None
    ) -> tuple[Callable[[Tensor, Tensor], Tensor], Callable[[], None]]:
        dit = self.components.dit
        if not isinstance(dit, Experts):
            network = _Resident(dit, caches)
            return self._branch(network, conditioning, _single(scale)), network.rest
        high, low = _Resident(dit.high), _Resident(dit.low)
        high.other, low.other = low, high

        def release() -> None:
            high.rest()
            low.rest()

        scales = scale if isinstance(scale, Experts) else Experts(high=_single(scale), low=_single(scale))
        denoiser = ExpertDenoiser(
            high=self._branch(high, conditioning, scales.high),
            low=self._branch(low, conditioning, scales.low),
            boundary=self.preset.boundary or 0.0,
        )
        return denoiser, release

    def _branch(
        self, network: _Resident, conditioning: Conditioning, guidance_scale: float
    ) -> Callable[[Tensor, Tensor], Tensor]:
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
                batched=self.options.batched_guidance,
            )

        if not conditioning.windows:
            return denoiser(conditioning)
        windows = conditioning.windows
        return WindowDenoiser([denoiser(window) for window in windows], [window.frames for window in windows])


class _Resident:
    """A network that comes to the device at its first step and sends the other expert away."""

    def __init__(self, placed: Placed[WanDiT], caches: StepCaches | None = None) -> None:
        self._placed = placed
        self._caches = caches
        self._module: WanDiT | None = None
        self.other: _Resident | None = None

    def __call__(self, latents: Tensor, timesteps: Tensor, inputs: DiTInputs) -> Tensor:
        if self._module is None:
            if self.other is not None:
                self.other.rest()
            self._module = self._placed.module()
        with nullcontext() if self._caches is None else step_cached(self._module, self._caches.of(inputs)):
            velocity: Tensor = self._module(latents, timesteps, inputs)
        return velocity

    def rest(self) -> None:
        if self._module is not None:
            self._module = None
            self._placed.rest()


def _watched(denoiser: Callable[[Tensor, Tensor], Tensor], watch: Watch) -> Callable[[Tensor, Tensor], Tensor]:
    def velocity(latents: Tensor, timestep: Tensor) -> Tensor:
        watch(latents, timestep)
        return denoiser(latents, timestep)

    return velocity


def _single(scale: float | Experts[float]) -> float:
    if isinstance(scale, Experts):
        raise ValueError(f"one guidance_scale is needed here, got {scale}")
    return scale
