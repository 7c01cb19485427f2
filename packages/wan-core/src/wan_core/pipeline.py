"""A request through a model: condition, denoise, decode - clip by clip, frames streamed."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from wan_core import media, models, runtime
from wan_core.denoising import Progress as Progress
from wan_core.denoising import SamplingOptions as SamplingOptions
from wan_core.denoising import Watch, denoise, unheard, unwatched
from wan_core.denoising import silent as silent
from wan_core.files import quoted
from wan_core.media import LatentSpec
from wan_core.memory import MemoryPlan, RunFacts, part_name, plan_memory
from wan_core.presets import Preset
from wan_core.runtime import Between, Route, Stop, Together
from wan_core.tasks import (
    Clip,
    Components,
    Conditioning,
    Experts,
    GeneratedClip,
    GenerationRequest,
    Log,
    Outline,
    SamplingSettings,
    TaskInputs,
    prompts_of,
    text_states,
)

if TYPE_CHECKING:
    from wan_core.kept_clips import KeptClips
    from wan_core.media import AudioTrack, Provenance
    from wan_core.models import VideoVAE
    from wan_core.runtime import Placed


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

    ``notes`` are sentences that a user should see, ``record`` facts that go into every output's provenance;
    ``together`` are the processes that make a video, by default this one: only the first of them gives frames. Of a
    ``run`` that is described the memory is planned; else parts stay or leave as they were placed.
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
        together: Together | None = None,
        run: RunFacts | None = None,
    ) -> None:
        self.preset = preset
        self.components = components
        self.latent_spec = latent_spec
        self.options = options or SamplingOptions()
        self.notes = tuple(notes)
        self.together = together or Together(device=components.device)
        self._record = dict(record or {})
        self.run = run
        self._placed_for: dict[tuple[int, ...], MemoryPlan] = {}
        self._tiled: frozenset[str] = frozenset()
        self._route = Route()
        if run is not None and run.tiling:
            self._tile(run.tiling)

    def plan(self, request: GenerationRequest) -> TaskInputs[Any]:
        """Fill in the defaults, read and check the user's files; no weight is touched.

        Raises ``RequestError`` or ``MediaError``.
        """
        return self.preset.plan(request, self.latent_spec)

    def check(self, inputs: TaskInputs[Any]) -> TaskInputs[Any]:
        """A planned request as this model's parts take it; no weight is read. Raises what :meth:`Task.check` does."""
        checked: TaskInputs[Any] = self.preset.task.check(inputs, self.components)
        return checked

    def place(
        self, jobs: Sequence[TaskInputs[Any]], *, free: int | None = None, host_free: int | None = None
    ) -> MemoryPlan | None:
        """Decide which parts stay on the device while ``jobs`` are made, by the ``free`` bytes there; nothing is read.

        None asks the device, and the host; on the CPU nothing is refused. Processes that make the videos together all
        call it, and decide alike, by the least that any of them has. No plan without a description of the run.
        Raises ``ConfigError`` for videos that do not fit, naming the setting that does.
        """
        plan = self._memory_plan(jobs, free, host_free, self.together.least)
        if plan is None or self.run is None:
            return None
        parts = self._parts(self.run)
        for name, part in parts.items():
            part.between = Between.KEEP if name in plan.stays else Between.HOST if name in plan.waits else Between.DROP
            part.in_blocks = name in plan.in_blocks
        self._follow(plan, parts)
        self._placed_for = {self._measure(job): plan for job in jobs}
        self._tile(plan.tiled)
        return plan

    def _follow(self, plan: MemoryPlan, parts: Mapping[str, Placed[Any]]) -> None:
        """Let parts come while those before them compute, where the plan has room."""

        def named(names: Iterable[str]) -> tuple[Placed[Any], ...]:
            return tuple(parts[name] for name in names if name in parts)

        self._route = Route([Stop(named(each.parts), named(plan.early.get(each.name, ()))) for each in plan.phases])
        for part in parts.values():
            part.on_use = self._route.used

    def expected_memory(self, jobs: Sequence[TaskInputs[Any]]) -> MemoryPlan | None:
        """What :meth:`place` would decide by the memory of this process alone. Raises as it does."""
        return self._memory_plan(jobs, None, None, lambda *amounts: amounts)

    def _memory_plan(
        self,
        jobs: Sequence[TaskInputs[Any]],
        free: int | None,
        host_free: int | None,
        least: Callable[[int | None, int | None], tuple[int | None, ...]],
    ) -> MemoryPlan | None:
        on_cpu = self.components.device.type == "cpu"
        if self.run is None or not jobs or (on_cpu and free is None and len(jobs) < 2):
            return None
        if free is None and not on_cpu:
            free = self._free_memory(self.run)
        if host_free is None and not on_cpu:
            host_free = self._host_memory()
        free, host_free = least(free, host_free)
        return plan_memory(self.run, jobs, free=free, host_free=host_free)

    def _host_memory(self) -> int | None:
        """This process's share of what is free on its machine."""
        free, launch = runtime.host_memory(), self.together.processes.launch
        return free if free is None or launch is None else free // launch.on_machine

    def _tile(self, phases: frozenset[str]) -> None:
        """Let the autoencoder work tile by tile in these ``phases``, whenever it is used."""
        tiling, self._tiled = models.Tiling(), phases
        shared = tiling if self.together.is_alone else replace(tiling, share=self.together.share_work)

        def adjust(vae: VideoVAE) -> None:
            vae.encode_tiling = tiling if "encode" in phases else None
            vae.decode_tiling = shared if "decode" in phases else None

        self.components.vae.adjust = adjust

    def _free_memory(self, run: RunFacts) -> int | None:
        """What is free on the device without the parts that are there already."""
        free = runtime.free_memory(self.components.device)
        there = sum(run.weights[name] for name, part in self._parts(run).items() if part.is_loaded)
        return None if free is None else free + there

    @torch.no_grad()
    def encode_prompts(self, jobs: Sequence[TaskInputs[Any]]) -> None:
        """The text states of all ``jobs``, which wait in host memory: the text encoder is loaded once and leaves."""
        components = self.components
        components.prompt_cache.reserve(len({prompt for job in jobs for prompt in prompts_of(job)}))
        with components.text_encoder.held():
            for job in jobs:
                text_states(job, components)

    def _measure(self, inputs: TaskInputs[Any]) -> tuple[int, ...]:
        """What the memory of one video follows from."""
        geometry = inputs.geometry
        return self.preset.task.tokens_at_once(inputs), geometry.num_frames, geometry.height, geometry.width

    def _parts(self, run: RunFacts) -> dict[str, Placed[Any]]:
        """The parts whose place is planned, under the names of the plan."""
        there = self.components.parts
        parts = [part for part in run.preset.parts if part.name in there and part_name(part) in run.weights]
        named = {part_name(each): there[each.name] for each in parts if each.name not in run.on_host}
        return {
            name: part if not isinstance(part, Experts) else part.high if name.endswith("high") else part.low
            for name, part in named.items()
        }

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
        are ``kept`` are neither conditioned nor denoised again, and those that are done are kept there.
        """
        inputs = self.check(inputs)
        task, components = self.preset.task, self.components
        if self._measure(inputs) not in self._placed_for:
            self.place([inputs])
        with ExitStack() as held:
            if task.streams:
                further = [components.part(name) for name in task.held_parts if name in components.parts]
                parts: tuple[Placed[Any], ...] = (*components.networks, components.vae, *further)
                for part in parts:
                    held.enter_context(part.held())
            held.callback(models.forget_rotary_tables)
            held.callback(self._route.end)
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
            found = self._found(inputs, clip, kept) if num_clips > 1 else None
            if found is None:
                found = self._denoised(inputs, clip, progress, log)
                if kept is not None:
                    kept.put(index, found[1])
            outline, latents = found
            if on_latents is not None:
                on_latents(latents)
            decoded = (chunk[0] for chunk in self.decode(latents, outline))
            made = GeneratedClip(conditioning=outline, latents=latents, frames=decoded)
            chunks = self._reported(inputs, made, log)
            clip = replace(clip, previous=outline)
            if task.streams or index + 1 == num_clips:
                yield from chunks
                continue
            # Frames wait on the host, where they are written from and where the next clip takes what it goes on from.
            frames = torch.cat([chunk.cpu() for chunk in chunks], dim=1) if self.together.is_first else None
            if frames is not None:
                yield frames
            shown = self.together.from_first(frames)
            clip = replace(clip, previous_frames=None if shown is None else shown[None])

    def _found(self, inputs: TaskInputs[Any], clip: Clip, kept: KeptClips | None) -> tuple[Outline, Tensor] | None:
        """A clip whose latents are ``kept``; one of the processes has them."""
        latents = self.together.from_first(None if kept is None else kept.get(clip.index))
        outline = None if latents is None else self.preset.task.outline(inputs, self.components, clip)
        if latents is None or outline is None or tuple(latents.shape) != outline.latent_shape:
            return None
        return outline, latents

    def _denoised(
        self, inputs: TaskInputs[Any], clip: Clip, progress: Progress, log: Log
    ) -> tuple[Conditioning, Tensor]:
        """A clip that is made."""
        task = self.preset.task
        conditioning = task.finish(task.condition(inputs, self.components, clip), self.components)
        seed = task.noise_seed(inputs.settings.seed, clip)
        return conditioning, self.denoise(conditioning, inputs.settings, seed, progress, log)

    def _reported(self, inputs: TaskInputs[Any], made: GeneratedClip, log: Log) -> Iterator[Tensor]:
        """The frames of a clip on their way out, on the first process; the others decode their tiles for it."""
        if self.together.is_first:
            return self.preset.task.report(inputs, made, log)
        if self._decodes_together(made.latents):
            deque(made.frames, maxlen=0)
        return iter(())

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
        options = replace(self.options, shared_branches=self.together.guidance)
        return denoise(
            self.preset, self.components, options, conditioning, settings, seed,
            progress=progress, log=log, watch=watch,
        )  # fmt: skip

    def _decodes_together(self, latents: Tensor) -> bool:
        """Whether the processes of a video share the tiles of its decoding, of which there must be several."""
        if self.together.is_alone or "decode" not in self._tiled:
            return False
        return models.Tiling().cuts(*latents.shape[-2:], spatial_stride=self.latent_spec.spatial_stride)

    def decode(self, latents: Tensor, outline: Outline) -> Iterator[Tensor]:
        """Frame chunks [B, 3, t, H, W] in [-1, 1] of denoised latents.

        Where processes share the tiles all of them must call it, and only the first one's frames have pixels.
        """
        plan = outline.decode
        skip, left = plan.drop_frames, plan.keep_frames
        with self.components.vae.active() as vae:
            for chunk in vae.decode_clip(plan.apply(latents), plan.cache):
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
        tiled = {"vae_tiling": sorted(self._tiled)} if self._tiled else {}
        record = {**self._record, **tiled, **sound, "inputs": inputs.contents()}
        return media.Provenance.of(preset=self.preset.name, settings=inputs.record(), record=record)
