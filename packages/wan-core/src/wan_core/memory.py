"""How much device memory a run takes phase by phase, and which parts stay on the device between phases: arithmetic.

Nothing here looks at a machine. Weights are counted from shapes; what a phase needs besides is estimated by
:class:`WorkingMemory`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any

from wan_core import models
from wan_core.checkpoints import Part, passing_bytes, weight_bytes
from wan_core.errors import ConfigError
from wan_core.files import gigabytes
from wan_core.memory_plan import MemoryPlan as MemoryPlan
from wan_core.memory_plan import PhaseMemory as PhaseMemory
from wan_core.memory_plan import early_parts, in_a_fresh_run, require_room_for_copies
from wan_core.presets import Preset
from wan_core.tasks import TaskInputs, is_guided

if TYPE_CHECKING:
    import torch

_MARGIN = 0.05  # of the free memory, for what lies between tensors; only where the choice is ours
_KEPT_COPIES = 5  # latents of a video between two steps: they, what a solver remembers, and joined channels
_HOST_SHARE = 0.5  # of the free host memory, for copies that wait there
BLOCK_PLACES = 2  # blocks of a network that are on the device where these pass through it
TILED_PHASES = frozenset({"encode", "decode"})
_ENCODERS = {"text_encoder": "text", "image_encoder": "image", "audio_encoder": "sound"}


@dataclass(frozen=True, kw_only=True)
class WorkingMemory:
    """Bytes that a phase needs besides weights, as multiples of what is known before.

    Of a transformer: numbers per token in units of its width and of its inner width. Of an autoencoder: maps of the
    widest level at full size, per direction. Counted by running the networks on a fake device that allocates nothing
    (torch's FakeTensorMode). Beside cached keys: A14B at 720p 7.05 GB, 5B at 704p 1.65 GB, 1.3B at 480p 1.12 GB. A
    decoding takes 15.2 GB at 720p, 6.8 GB at 480p, 13.9 GB with the residual decoder at 704p.
    """

    per_width: float = 7.4
    per_inner_width: float = 0.64
    encoder_maps: float = 9.5
    decoder_maps: float = 10.8
    residual_decoder_maps: float = 15.1
    half_share: float = 0.53  # of all three, with weights of 16 bits
    remembered_share: float = 0.58  # of a decoding: what the decoder remembers between two clips
    tiled_clips: float = 1.3  # the video, and of a row of tiles the edges
    other_share: float = 0.03  # of the weights of encoders of text, images and sound


@dataclass(frozen=True)
class Phase:
    """A time of a run: the parts that it needs on the device together, and the bytes that it needs besides."""

    name: str
    parts: tuple[str, ...]
    working: int


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """What the memory of a run follows from, apart from its videos.

    ``offload`` is the user's choice, None where there is none; ``in_blocks``: the blocks of denoisers pass through the
    device. ``configs`` are dims by part, where files tell them;
    ``reads`` the bytes that reading a part again would touch; ``on_host`` names parts that are never on the device,
    ``always`` those that never leave it. ``batched``: both branches of guidance are one batch. ``tea_cache``: a change
    of the tokens is kept for each branch. Of several processes ``shares_tokens`` divide those of a forward, ``divided``
    has among how many the weights of a part lie, and ``splits_guidance`` leaves each one branch. ``vae_dtype`` is that
    of the autoencoder, None that of its family; ``tiling``: the phases (``encode``, ``decode``) in which
    it works tile by tile, None where it must.
    """

    preset: Preset
    dtype: torch.dtype
    offload: bool | None = None
    in_blocks: bool = False
    configs: Mapping[str, Any] = field(default_factory=dict)
    reads: Mapping[str, int] = field(default_factory=dict)
    on_host: frozenset[str] = frozenset()
    always: frozenset[str] = frozenset()
    batched: bool = False
    tea_cache: bool = False
    shares_tokens: int = 1
    splits_guidance: bool = False
    divided: Mapping[str, int] = field(default_factory=dict)
    vae_dtype: torch.dtype | None = None
    tiling: frozenset[str] | None = None

    @property
    def processes(self) -> int:
        """How many make a video together."""
        return self.shares_tokens * (2 if self.splits_guidance else 1)

    def dtype_of(self, part: Part) -> torch.dtype:
        """The dtype that a part is loaded in."""
        if part.name == "vae" and self.vae_dtype is not None:
            return self.vae_dtype
        return part.family.dtype_in(self.dtype)

    @cached_property
    def weights(self) -> Mapping[str, int]:
        """Bytes of each part on the device, by :func:`part_name`; parts that other libraries read are left out."""
        found: dict[str, int] = {}
        for part in self.preset.parts:
            config = self.configs.get(part.name) or part.config
            is_there = part.name in self.configs or not part.is_optional
            if is_there and part.family.network is not None and config is not None:
                found[part_name(part)] = -(-self._size(part, config) // self.divided.get(part.name, 1))
        return found

    @cached_property
    def whole(self) -> Mapping[str, int]:
        """Bytes of each part with all of its blocks, as its copy in host memory has them."""
        return replace(self, in_blocks=False).weights if self.in_blocks else self.weights

    def _size(self, part: Part, config: Any) -> int:
        if self.in_blocks and part.family.is_denoiser:
            return passing_bytes(config, part.family, self.dtype_of(part), BLOCK_PLACES)
        return weight_bytes(config, part.family, self.dtype_of(part))


def part_name(part: Part) -> str:
    """The name of a part, with that of the expert where it is one of two: ``dit high``."""
    return f"{part.name} {part.expert or ''}".strip()


def phases_of(
    run: RunFacts,
    inputs: TaskInputs[Any],
    weights: Mapping[str, int],
    working: WorkingMemory | None = None,
    tiled: Collection[str] = (),
) -> list[Phase]:
    """The phases of one video, in their order, with the memory that each needs besides the weights."""
    needs, task = working or WorkingMemory(), run.preset.task
    dits = tuple(part_name(part) for part in run.preset.dits)
    encoders = sorted(set(weights) - {"vae", *dits}, key=lambda name: name != "text_encoder")
    phases = [Phase(_ENCODERS.get(name, name), (name,), int(needs.other_share * weights[name])) for name in encoders]
    encoding, decoding = _autoencoder_bytes(run, inputs, needs, tiled)
    if task.prompt_kind != "t2v":
        phases.append(Phase("encode", ("vae",), encoding))
    held = ("vae", *(name for name in task.held_parts if name in weights)) if task.streams else ()
    denoising = _denoising_bytes(run, inputs, needs)
    # What streams keeps its network and all that it remembers while frames are decoded, and what the decoder does else.
    denoising += int(decoding * needs.remembered_share) if task.streams else 0
    phases += [Phase(name.replace("dit", "denoise"), (name, *held), denoising) for name in dits]
    kept = (*dits, *held) if task.streams else ("vae",)
    phases.append(Phase("decode", kept, decoding + (_remembered(run, inputs) if task.streams else 0)))
    return [phase for phase in phases if not run.on_host.issuperset(phase.parts)]


def _autoencoder_bytes(
    run: RunFacts, inputs: TaskInputs[Any], needs: WorkingMemory, tiled: Collection[str]
) -> tuple[int, int]:
    """Of encoding, with the clip of pixels, and of decoding, whose frames leave as they come, or with the last tile."""
    vae, geometry = run.configs.get("vae", run.preset.vae), inputs.geometry
    pixels = geometry.height * geometry.width
    frames = -(-geometry.num_frames // run.preset.task.num_clips(inputs))
    clip, share = pixels * frames * 3 * 4, 1.0
    if run.vae_dtype is not None and run.vae_dtype.itemsize == 2:
        share = needs.half_share
    map_bytes = vae.temporal_stride * 4 * vae.dim_mult[0] * share / vae.patch_size**2  # of a pixel, by the width
    maps = needs.residual_decoder_maps if vae.residual else needs.decoder_maps
    tile = models.Tiling()
    area = tile.tile_height * tile.tile_width
    encoded = min(pixels, area * vae.patch_size**2) if "encode" in tiled else pixels
    encoding = int(needs.encoder_maps * vae.dim * encoded * map_bytes) + clip
    # Clips that go on from each other leave the memory of every tile behind, and are taken as if there were none.
    in_tiles = "decode" in tiled and not run.preset.task.streams and pixels > area
    decoded = area if in_tiles else pixels
    decoding = int(maps * (vae.dec_dim or vae.dim) * decoded * map_bytes)
    return encoding, decoding + (int(clip * needs.tiled_clips) if in_tiles else 0)


def _denoising_bytes(run: RunFacts, inputs: TaskInputs[Any], needs: WorkingMemory) -> int:
    config, itemsize = run.configs.get("dit", run.preset.dit), run.dtype.itemsize
    tokens = -(-run.preset.task.tokens_at_once(inputs) // run.shares_tokens)
    branches = 2 if is_guided(inputs.settings) and not run.splits_guidance else 1
    widths = needs.per_width * config.dim + needs.per_inner_width * config.ffn_dim
    forward = int(tokens * itemsize * widths) * (branches if run.batched else 1)
    seen = run.preset.task.context_tokens(inputs, config)
    keys: int = branches * config.num_layers * 2 * seen * config.dim * itemsize
    changes = (branches + 1) * tokens * config.dim * 4 if run.tea_cache else 0
    latents = latent_bytes(inputs) * _KEPT_COPIES // run.preset.task.num_clips(inputs)
    return forward + keys + changes + latents + _remembered(run, inputs)


def _remembered(run: RunFacts, inputs: TaskInputs[Any]) -> int:
    return run.preset.task.kept_bytes(inputs, run.configs.get("dit", run.preset.dit), run.dtype.itemsize)


def latent_bytes(inputs: TaskInputs[Any]) -> int:
    """Bytes of a video's latents, which are float32."""
    return math.prod(inputs.geometry.latent_shape) * 4


def memory_by_phase(
    phases: Iterable[Phase], weights: Mapping[str, int], stays: Collection[str]
) -> tuple[PhaseMemory, ...]:
    """The memory of each phase, where the parts in ``stays`` are on the device all the time."""
    found = []
    for phase in phases:
        resident = sum(weights.get(name, 0) for name in {*phase.parts, *stays})
        found.append(PhaseMemory(phase.name, resident, resident + phase.working, phase.parts))
    return tuple(found)


def plan_memory(
    run: RunFacts,
    jobs: Sequence[TaskInputs[Any]],
    *,
    free: int | None,
    host_free: int | None = None,
    working: WorkingMemory | None = None,
) -> MemoryPlan:
    """What stays on the device during the videos ``jobs``, decided before any weight is read.

    ``free`` bytes are there for the run, None if nobody knows. Offload False keeps every part on the device; True
    takes no more memory than the largest phase needs alone; None keeps what fits into ``free``, and lets the blocks of
    denoisers pass through the device where these would not fit. Where ``run.tiling`` leaves it open, phases of the
    autoencoder that would not fit even then are tiled. A part that leaves and is needed again waits in host memory
    where that costs less than to read it again, and ``host_free`` allows.
    Raises ``ConfigError`` for videos that do not fit, naming the setting that does.
    """

    @cache
    def in_blocks() -> MemoryPlan | None:
        if run.in_blocks or "dit" in run.divided:
            return None
        with suppress(ConfigError):
            passing = replace(run, in_blocks=True, offload=run.offload or None)
            return _plan(passing, jobs, free, host_free, working)
        return None

    try:
        return _plan(run, jobs, free, host_free, working, in_blocks)
    except ConfigError:
        passing = in_blocks() if run.offload is None else None
        if passing is None:
            raise
        return passing


def _plan(
    run: RunFacts,
    jobs: Sequence[TaskInputs[Any]],
    free: int | None,
    host_free: int | None,
    working: WorkingMemory | None,
    in_blocks: Callable[[], MemoryPlan | None] = lambda: None,
) -> MemoryPlan:
    weights = run.weights
    most = max(jobs, key=lambda job: max(phase.working for phase in phases_of(run, job, weights, working)))

    def least_with(tiled: frozenset[str]) -> MemoryPlan:
        rows = memory_by_phase(phases_of(run, most, weights, working, tiled), weights, run.always)
        return MemoryPlan(stays=run.always, phases=rows, free=free, tiled=tiled)

    least = least_with(run.tiling or frozenset())
    if run.tiling is None and free is not None:
        least = least_with(frozenset(phase.name for phase in least.phases if phase.peak > free) & TILED_PHASES)
    phases = phases_of(run, most, weights, working, least.tiled)
    movable = {name for name in weights if name not in run.on_host}
    resident = replace(least, stays=frozenset(movable), phases=memory_by_phase(phases, weights, movable))
    if run.offload is False:
        _refuse(resident, free, "with --offload_model False", least, in_blocks)
        return _as_it_goes(replace(resident, early=_early(resident, run, host_free)), run, most, len(jobs))
    limit = free * (1 - _MARGIN) if run.offload is None and free is not None else least.largest.peak
    passing = frozenset(map(part_name, run.preset.dits)) if run.in_blocks else frozenset()
    kept = _with_what_fits(phases, weights, run.always, movable - passing, max(limit, least.largest.peak))
    plan = replace(kept, free=free, tiled=least.tiled, in_blocks=passing)
    how = "even where blocks pass through the device" if passing else "even where parts leave the device after use"
    _refuse(plan, free, how, min(least, least_with(TILED_PHASES), key=_peak), in_blocks)
    require_room_for_copies(plan, run.whole, host_free)
    plan = replace(plan, waits=_waiting(run, most, plan, movable, len(jobs), host_free))
    return _as_it_goes(replace(plan, early=_early(plan, run, host_free)), run, most, len(jobs))


def _as_it_goes(plan: MemoryPlan, run: RunFacts, inputs: TaskInputs[Any], count: int) -> MemoryPlan:
    # Decided is for parts that may be there from the start, as those of an earlier run; told is what a fresh one takes.
    return in_a_fresh_run(plan, run.weights, run.always, goes_on=count * run.preset.task.num_clips(inputs) > 1)


def _early(plan: MemoryPlan, run: RunFacts, host_free: int | None) -> Mapping[str, tuple[str, ...]]:
    # What processes divide they read together, each when it is its turn.
    left_out = run.on_host | {name for name in run.weights if name.partition(" ")[0] in run.divided}
    copies = sum(run.whole[name] for name in plan.waits | plan.in_blocks)
    if copies > int((host_free or 0) * _HOST_SHARE):
        left_out |= plan.in_blocks
    return early_parts(plan, run.weights, left_out)


def _peak(plan: MemoryPlan) -> int:
    return plan.largest.peak


def _with_what_fits(
    phases: Sequence[Phase], weights: Mapping[str, int], always: frozenset[str], movable: set[str], limit: float
) -> MemoryPlan:
    """All that stays below ``limit``: what is used longest comes first, the text encoder, needed once, last."""
    stays = set(always)
    last_use = {name: index for index, phase in enumerate(phases) for name in phase.parts}
    for name in sorted(movable - always, key=lambda name: (-last_use.get(name, -1), weights[name])):
        if max(each.peak for each in memory_by_phase(phases, weights, {*stays, name})) <= limit:
            stays.add(name)
    return MemoryPlan(stays=frozenset(stays), phases=memory_by_phase(phases, weights, stays))


def _uses(name: str, run: RunFacts, inputs: TaskInputs[Any], count: int) -> int:
    """How often a part that leaves the device is there in ``count`` videos, which are made one after the other."""
    if name == "text_encoder":
        return 1  # all prompts are encoded first
    if run.preset.task.streams:
        return count
    turns = count * run.preset.task.num_clips(inputs)
    return 2 * turns if name == "vae" and run.preset.task.prompt_kind != "t2v" else turns


def _waiting(
    run: RunFacts, inputs: TaskInputs[Any], plan: MemoryPlan, movable: set[str], count: int, host_free: int | None
) -> frozenset[str]:
    """Parts to keep a copy of in host memory: it is written once, and spares every reading after the first."""
    room, weights = int((host_free or 0) * _HOST_SHARE), run.whole
    uses = {name: _uses(name, run, inputs, count) for name in movable - plan.stays}
    saved = {name: (uses[name] - 1) * run.reads.get(name, weights[name]) - weights[name] for name in uses}
    chosen = set()
    for name in sorted(saved, key=lambda name: (-saved[name], name)):
        if saved[name] > 0 and weights[name] <= room:
            chosen.add(name)
            room -= weights[name]
    return frozenset(chosen)


def _refuse(
    plan: MemoryPlan, free: int | None, how: str, least: MemoryPlan, in_blocks: Callable[[], MemoryPlan | None]
) -> None:
    largest, needed = plan.largest, least.largest.peak
    if free is None or largest.peak <= free:
        return
    if needed <= free and least.tiled != plan.tiled:
        remedy = f"--vae-tiling on needs {gigabytes(needed)}"
    elif needed <= free:
        remedy = f"--offload_model True needs {gigabytes(needed)}, and without the option what fits stays"
    elif (passing := in_blocks()) is not None:
        remedy = f"--offload_model blocks needs {gigabytes(passing.largest.peak)}"
    else:
        remedy = "take a smaller --size or --frame-num, or a device with more memory"
    raise ConfigError(
        f"this run needs {gigabytes(largest.peak)} on the device at {largest.name} {how}".rstrip()
        + f", and {gigabytes(free)} are free; {remedy}"
    )


def describe(plan: MemoryPlan, run: RunFacts) -> str:
    """The plan in one line, for people."""
    room = "" if plan.free is None else f" of {gigabytes(plan.free)} that are free"
    most = f"about {gigabytes(plan.largest.peak)} at most{room}, at {plan.largest.name}"
    left = [name.replace("_", " ") for name in run.weights if name not in plan.stays | run.on_host]
    how = f"{_listed(left)} off the device after use" if left else "every part stays on the device"
    how += ", the network's blocks after each" if plan.in_blocks else ""
    tiles = f"; {' and '.join(sorted(plan.tiled))} tile by tile" if plan.tiled else ""
    shares = f", decoded by {run.processes} processes" if run.processes > 1 and "decode" in plan.tiled else ""
    return f"{how}; {most}{tiles}{shares}"


def _listed(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names) + (
        " go" if len(names) > 1 else " goes"
    )
