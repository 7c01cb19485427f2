"""What the processes that make one video do together; sampling and tasks do not know that they are many."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, distributed

from wan_core.errors import BackendError, ConfigError
from wan_core.runtime.launch import process_group
from wan_core.runtime.mesh import plan_parallel, video_mesh
from wan_core.runtime.processes import Processes

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

Value = TypeVar("Value")
_UNKNOWN = 2**62  # more bytes than there are anywhere


@dataclass(frozen=True)
class GuidanceShare:
    """Two processes that evaluate one branch of guidance each: `wan_core.sampling.SharedBranches`."""

    index: int
    group: Any

    def exchange(self, velocity: Tensor) -> tuple[Tensor, Tensor]:
        """The velocities of both branches, the positive one first: one collective of the velocity's size."""
        positive, negative = torch.empty_like(velocity), torch.empty_like(velocity)
        distributed.all_gather([positive, negative], velocity.contiguous(), group=self.group)
        return positive, negative


class Together:
    """The processes that make one video; a single one, unless ``processes`` says otherwise, does nothing here.

    ``num_heads`` of the network say how tokens are divided. The mesh is opened at first use, when there must be a
    process group (`wan_core.runtime.process_group`); all processes come there in the same order.
    """

    def __init__(self, processes: Processes | None = None, *, device: torch.device, num_heads: int = 1) -> None:
        self.processes = processes or Processes()
        self.device = device
        self.plan = plan_parallel(
            self.processes.world,
            num_heads=num_heads,
            sequence=self.processes.sequence,
            guidance=self.processes.guidance,
        )

    @property
    def is_alone(self) -> bool:
        """Whether this process makes its videos by itself."""
        return self.processes.per_video == 1

    @property
    def is_first(self) -> bool:
        """Whether this process decodes and writes."""
        return self.processes.is_first

    @cached_property
    def mesh(self) -> DeviceMesh:
        """All processes. Raises ConfigError where there is no process group."""
        if not distributed.is_initialized():
            raise ConfigError("several processes make this video, and there is no process group; open one around it")
        return self.plan.open(self.device)

    @cached_property
    def video(self) -> DeviceMesh:
        """Those that make a video together, in one dimension: its weights lie over them."""
        return video_mesh(self.mesh)

    @cached_property
    def guidance(self) -> GuidanceShare | None:
        """How the branches of guidance are divided, if they are."""
        if self.processes.guidance == 1:
            return None
        mesh = self.mesh["guidance"]
        return GuidanceShare(mesh.get_local_rank(), mesh.get_group())

    def from_first(self, tensor: Tensor | None) -> Tensor | None:
        """What the first process has, on the device of each; others hand in anything. Alone, what is handed in."""
        if self.is_alone:
            return tensor
        group = self.video.get_group()
        facts: list[Any] = [None if tensor is None or not self.is_first else (tensor.shape, tensor.dtype)]
        distributed.broadcast_object_list(facts, group=group, group_src=0)
        if facts[0] is None:
            return None
        shape, dtype = facts[0]
        if self.is_first and tensor is not None:
            sent = tensor.to(self.device).contiguous()
        else:
            sent = torch.empty(shape, dtype=dtype, device=self.device)
        distributed.broadcast(sent, group=group, group_src=0)
        return sent

    def as_first(self, value: Value) -> Value:
        """What the first process says of something that each finds out by itself, in all of them."""
        if self.is_alone:
            return value
        said = [value]
        distributed.broadcast_object_list(said, group=self.video.get_group(), group_src=0)
        return said[0]

    def least(self, *amounts: int | None) -> tuple[int | None, ...]:
        """The least that any of the processes has of each amount, in all of them; None is what it does not know."""
        if self.is_alone:
            return amounts
        numbers = torch.tensor([_UNKNOWN if each is None else each for each in amounts], device=self.device)
        distributed.all_reduce(numbers, op=distributed.ReduceOp.MIN, group=self.video.get_group())
        return tuple(None if number == _UNKNOWN else number for number in numbers.tolist())

    def share_work(self, work: Sequence[Callable[[], Tensor]]) -> Iterator[Tensor]:
        """The results of ``work`` in order, on the first process; the others do their parts of it, and get nothing.

        Of N processes each does every N-th piece, so N are done at a time. All must come here with the same work, and
        take what comes to the end. One result waits at a time, with whom it was made.
        """
        count, own = self.processes.per_video, self.video.get_local_rank()
        for start in range(0, len(work), count):
            turn = work[start : start + count]
            if self.is_first:
                yield turn[0]()
                for other in range(1, len(turn)):
                    yield self._received(other)
            elif own < len(turn):
                self._send(turn[own]())

    def _send(self, tensor: Tensor) -> None:
        """To the first process; what it does not know of a tensor goes ahead."""
        facts, group = [(tensor.shape, tensor.dtype)], self.video.get_group()
        distributed.send_object_list(facts, group=group, group_dst=0)
        distributed.send(tensor.contiguous(), group=group, group_dst=0)

    def _received(self, other: int) -> Tensor:
        facts: list[Any] = [None]
        group = self.video.get_group()
        distributed.recv_object_list(facts, group=group, group_src=other)
        shape, dtype = facts[0]
        tensor = torch.empty(shape, dtype=dtype, device=self.device)
        distributed.recv(tensor, group=group, group_src=other)
        return tensor


@contextmanager
def working_together(processes: Processes, device: torch.device) -> Iterator[None]:
    """The process group of several processes for as long as they work; nothing for one.

    Raises BackendError where they cannot meet, or where this one has no GPU of its own.
    """
    if processes.launch is None:
        yield
        return
    count = torch.cuda.device_count()
    if device.type == "cuda" and processes.launch.local_rank >= count:
        raise BackendError(
            f"process {processes.rank} of {processes.world} has no GPU of its own: this machine has {count}; start as "
            "many processes"
        )
    with process_group(processes.launch, device):
        yield


def results_of_all(processes: Processes, results: Sequence[Any]) -> list[Any]:
    """What all groups have made, as JSON can say it, in the order of the videos; the process that tells gets it.

    All processes call it.
    """
    if processes.num_groups == 1:
        return list(results) if processes.tells else []
    gathered: list[Any] | None = [None] * processes.world if processes.tells else None
    distributed.gather_object(json.dumps(list(results) if processes.is_first else []), gathered)
    firsts = [json.loads(each) for each in (gathered or [])[:: processes.per_video]]
    longest = max(map(len, firsts), default=0)
    return [each[index] for index in range(longest) for each in firsts if index < len(each)]
