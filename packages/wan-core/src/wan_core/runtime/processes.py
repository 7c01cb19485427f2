"""What the processes of a run are asked to divide among them: videos, branches of guidance, tokens, weights."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from wan_core.errors import ConfigError, RequestError
from wan_core.runtime.launch import Launch
from wan_core.runtime.mesh import plan_parallel

Item = TypeVar("Item")


@dataclass(frozen=True, kw_only=True)
class Processes:
    """All processes of a run, and this one among them; by default it is alone.

    ``sequence`` of them share the tokens of a forward and ``guidance`` its branches; who is left over makes videos of
    its own. ``divides_dit`` and ``divides_text``: the weights of the networks, and of the text encoder, lie divided
    over the processes that make one video.
    """

    launch: Launch | None = None
    sequence: int = 1
    guidance: int = 1
    divides_dit: bool = False
    divides_text: bool = False

    def __str__(self) -> str:
        """For people: videos at a time x branches of guidance x processes that share the tokens of a forward."""
        return f"{self.num_groups} x {self.guidance} x {self.sequence} (videos x guidance branches x shares of tokens)"

    @property
    def world(self) -> int:
        """All processes."""
        return 1 if self.launch is None else self.launch.world

    @property
    def rank(self) -> int:
        """The number of this one."""
        return 0 if self.launch is None else self.launch.rank

    @property
    def per_video(self) -> int:
        """How many make a video together."""
        return self.sequence * self.guidance

    @property
    def num_groups(self) -> int:
        """How many videos are made at a time."""
        return self.world // self.per_video

    @property
    def group(self) -> int:
        """The group of this process: neighbours make a video together."""
        return self.rank // self.per_video

    @property
    def is_first(self) -> bool:
        """Whether this process writes the videos of its group."""
        return self.rank % self.per_video == 0

    @property
    def tells(self) -> bool:
        """Whether this process says what happens: one of all does."""
        return self.rank == 0

    def own(self, videos: Sequence[Item]) -> list[Item]:
        """The videos of this group. Raises RequestError where there are fewer than groups."""
        if len(videos) < self.num_groups:
            count = "one video" if len(videos) == 1 else f"{len(videos)} videos"
            groups = f"groups of {self.per_video} processes" if self.per_video > 1 else "processes"
            raise RequestError(
                f"there is {count} for {self.num_groups} {groups}; --ulysses-size {self.world // self.guidance} lets "
                "all share one, and --prompt-file or --num-videos asks for more"
            )
        return list(videos[self.group :: self.num_groups])


def plan_processes(
    launch: Launch | None,
    *,
    sequence: int | None = None,
    splits_guidance: bool = False,
    divides_dit: bool = False,
    divides_text: bool = False,
    device: str | None = None,
) -> Processes:
    """What the processes of ``launch`` divide among them. Nothing is imported.

    Weights lie over those who make one video together, so where they are divided and ``sequence`` is left open, all
    processes make one. ``device`` is the one that was asked for. Raises ConfigError, by the names of the options, for
    numbers that do not fit, and for one GPU of all.
    """
    world, guidance = 1 if launch is None else launch.world, 1 + splits_guidance
    fsdp = "--dit-fsdp" if divides_dit else "--t5-fsdp" if divides_text else ""
    if world == 1:
        _refuse_alone({f"--ulysses-size {sequence}": sequence or 1, "--cfg-parallel": guidance, fsdp: 1 + bool(fsdp)})
        return Processes(launch=launch)
    if (device or "").startswith("cuda:"):
        raise ConfigError(f"--device {device} is one GPU for {world} processes; --device cuda gives each its own")
    if sequence is None:
        sequence = max(1, world // guidance) if fsdp else 1
    plan_parallel(world, num_heads=1, sequence=sequence, guidance=guidance)
    if fsdp and sequence * guidance == 1:
        raise ConfigError(
            f"{fsdp} divides weights among the processes that make one video together, and with --ulysses-size 1 each "
            "makes its own; leave --ulysses-size out"
        )
    return Processes(
        launch=launch, sequence=sequence, guidance=guidance, divides_dit=divides_dit, divides_text=divides_text
    )


def _refuse_alone(wanted: Mapping[str, int]) -> None:
    """Raises ConfigError where an option wants several processes."""
    given = [option for option, count in wanted.items() if count > 1]
    if given:
        count = max(2, math.prod(count for option, count in wanted.items() if "fsdp" not in option))
        raise ConfigError(
            f"{given[0]} divides work among processes, and there is one; start them with --nproc {count}, or with "
            f"torchrun --nproc_per_node={count}"
        )
