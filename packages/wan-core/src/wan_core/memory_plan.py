"""What is where on a device, phase by phase, and what comes there early."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise

from wan_core.errors import ConfigError
from wan_core.files import gigabytes


@dataclass(frozen=True)
class PhaseMemory:
    """Bytes of weights that are on the device in a phase, and the most bytes in all; ``parts`` it needs together."""

    name: str
    resident: int
    peak: int
    parts: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """Which parts stay on the device, which others wait in host memory, and what each phase takes.

    ``free`` is what the plan was made for; in the phases ``tiled`` the autoencoder works tile by tile. Of the parts
    ``in_blocks`` never more than two blocks are on the device. ``early`` has by phase the parts of the next one that
    come while it computes, and are in what it takes.
    """

    stays: frozenset[str]
    waits: frozenset[str] = frozenset()
    phases: tuple[PhaseMemory, ...] = ()
    free: int | None = None
    tiled: frozenset[str] = frozenset()
    in_blocks: frozenset[str] = frozenset()
    early: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def largest(self) -> PhaseMemory:
        """The phase with the most memory."""
        return max(self.phases, key=lambda phase: phase.peak)


def early_parts(
    plan: MemoryPlan, weights: Mapping[str, int], left_out: Collection[str]
) -> Mapping[str, tuple[str, ...]]:
    """By phase, the parts of the next one that may come while it computes, but for those ``left_out``.

    ``weights`` are bytes on the device. No phase then takes more than the largest one does.
    """
    found = {}
    for phase, following in pairwise(plan.phases):
        comes = {name for name in following.parts if name not in phase.parts and name not in left_out}
        added = sum(weights[name] for name in comes - plan.stays)
        if comes and phase.peak + added <= plan.largest.peak:
            found[phase.name] = tuple(sorted(comes))
    return found


def in_a_fresh_run(
    plan: MemoryPlan, weights: Mapping[str, int], always: Collection[str], *, goes_on: bool
) -> MemoryPlan:
    """The plan with what each phase takes in a run that begins with nothing loaded but the parts ``always``.

    What stays is there from its first use on, or from the phase in which it comes early. A run ``goes_on`` where
    phases come again, but for that of the text, which is encoded first: then all that stays is there.
    """
    seen, rows = set(always), []
    for phase in plan.phases:
        there = {*phase.parts, *plan.early.get(phase.name, ())}
        seen |= there
        again = goes_on and phase.parts != ("text_encoder",)
        resident = sum(weights.get(name, 0) for name in there | (plan.stays if again else plan.stays & seen))
        rows.append(replace(phase, resident=resident, peak=resident + phase.peak - phase.resident))
    return replace(plan, phases=tuple(rows))


def require_room_for_copies(plan: MemoryPlan, whole: Mapping[str, int], host_free: int | None) -> None:
    """Raises ConfigError where a copy from which blocks pass through the device does not fit into host memory.

    ``whole`` are the bytes of each part with all of its blocks.
    """
    largest = max((whole[name] for name in plan.in_blocks), default=0)
    if host_free is not None and largest > host_free:
        raise ConfigError(
            f"blocks pass through the device from a copy that takes {gigabytes(largest)} of host memory, and "
            f"{gigabytes(host_free)} are free; take a machine with more of it, or leave out --offload_model blocks"
        )
