"""Threads in place of processes: collectives of `sequence_parallel` and `together`, in milliseconds and counted."""

from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from queue import SimpleQueue
from threading import Barrier
from typing import Any

import pytest
import torch
from torch import Tensor, distributed

from wan_core.runtime import Launch, Processes, Together
from wan_core.runtime.sequence_parallel import Line, SequenceLayout


@dataclass
class Group:
    """A group as thread ``index`` of it sees it; ``sent`` counts the calls and bytes of that thread."""

    index: int
    places: list[Any]
    barrier: Barrier
    sent: Counter[str]
    post_boxes: dict[tuple[int, int], SimpleQueue[Any]] = field(default_factory=dict)

    def post(self, to: int, what: Any) -> None:
        """Leave something for another thread."""
        self.post_boxes[self.index, to].put(what)

    def taken(self, sender: int) -> Any:
        """What another thread has left for this one, when it is there."""
        return self.post_boxes[sender, self.index].get(timeout=20)

    def exchange(self, name: str, mine: Any, nbytes: int) -> list[Any]:
        """What every thread of the group has brought."""
        self.sent[name] += 1
        self.sent[f"{name} bytes"] += nbytes
        self.places[self.index] = mine
        self.barrier.wait(20)
        brought = list(self.places)
        self.barrier.wait(20)
        return brought


@dataclass
class Move:
    """A tensor on its way, there when it is waited for."""

    to: Tensor
    given: Tensor

    def wait(self) -> None:
        self.to.copy_(self.given)


class Collectives:
    """What the layout uses of `torch.distributed`."""

    isend, irecv = "isend", "irecv"
    ReduceOp = distributed.ReduceOp

    def all_reduce(self, numbers: Tensor, op: Any, group: Group) -> None:
        assert op == self.ReduceOp.MIN
        numbers.copy_(torch.stack(group.exchange("all-reduce", numbers.clone(), numbers.nbytes)).amin(dim=0))

    def broadcast_object_list(self, objects: list[Any], group: Group, group_src: int) -> None:
        objects[:] = group.exchange("broadcast", list(objects), 0)[group_src]

    def all_to_all_single(
        self, out: Tensor, given: Tensor, out_sizes: Sequence[int], in_sizes: Sequence[int], group: Group
    ) -> None:
        assert out.is_contiguous()
        assert given.is_contiguous()
        parts = [part.clone() for part in torch.split(given, list(in_sizes))]
        away = sum(part.nbytes for index, part in enumerate(parts) if index != group.index)
        received = [each[group.index] for each in group.exchange("all-to-all", parts, away)]
        assert [len(each) for each in received] == list(out_sizes)
        out.copy_(torch.cat(received))

    def all_gather_into_tensor(self, out: Tensor, given: Tensor, group: Group) -> None:
        assert out.is_contiguous()
        assert given.is_contiguous()
        away = given.nbytes * (len(group.places) - 1)
        out.copy_(torch.cat(group.exchange("all-gather", given.clone(), away)))

    def send_object_list(self, objects: list[Any], group: Group, group_dst: int) -> None:
        group.post(group_dst, list(objects))

    def recv_object_list(self, objects: list[Any], group: Group, group_src: int) -> None:
        objects[:] = group.taken(group_src)

    def send(self, tensor: Tensor, group: Group, group_dst: int) -> None:
        group.sent["send"] += 1
        group.post(group_dst, tensor.clone())

    def recv(self, tensor: Tensor, group: Group, group_src: int) -> None:
        assert tensor.is_contiguous()
        tensor.copy_(group.taken(group_src))

    def P2POp(self, kind: str, tensor: Tensor, *, group: Group, group_peer: int) -> tuple[Any, ...]:  # noqa: N802
        return kind, tensor, group, group_peer

    def batch_isend_irecv(self, moves: list[tuple[Any, ...]]) -> list[Move]:
        (_, here, group, after), (_, coming, _, before) = moves
        assert here.is_contiguous()
        assert coming.is_contiguous()
        to, given = group.exchange("send", (after, here.clone()), here.nbytes)[before]
        assert to == group.index
        return [Move(coming, given)]


def run_in_threads(
    ring: int,
    ulysses: int,
    run: Callable[[SequenceLayout], Tensor],
    monkeypatch: pytest.MonkeyPatch,
    *,
    passes_on: bool = True,
) -> list[tuple[Tensor, Counter[str]]]:
    """What each of ``ring`` x ``ulysses`` threads found with its layout, and what it sent."""
    monkeypatch.setattr("wan_core.runtime.sequence_parallel.distributed", Collectives())
    world = ring * ulysses
    everyone, rows = _places(world), [_places(ulysses) for _ in range(ring)]
    columns = [_places(ring) for _ in range(ulysses)]

    def one(rank: int) -> tuple[Tensor, Counter[str]]:
        sent: Counter[str] = Counter()

        def line(index: int, places: tuple[list[Any], Barrier]) -> Line:
            return Line(Group(index, *places, sent), len(places[0]), index)  # type: ignore[arg-type]

        at, of = divmod(rank, ulysses)
        layout = SequenceLayout(
            everyone=line(rank, everyone),
            ring=line(at, columns[of]),
            ulysses=line(of, rows[at]),
            passes_on=passes_on,
        )
        with torch.no_grad():
            return run(layout), sent

    with ThreadPoolExecutor(world) as pool:
        return list(pool.map(one, range(world)))


def run_video_in_threads(
    world: int, run: Callable[[Together], Any], monkeypatch: pytest.MonkeyPatch
) -> list[tuple[Any, Counter[str]]]:
    """What each of ``world`` threads that make one video found, and what it sent."""
    monkeypatch.setattr("wan_core.runtime.together.distributed", Collectives())
    boxes: dict[tuple[int, int], SimpleQueue[Any]] = {
        (sender, to): SimpleQueue() for sender in range(world) for to in range(world)
    }
    places, barrier = _places(world)

    def one(rank: int) -> tuple[Any, Counter[str]]:
        processes = Processes(launch=Launch(rank, world, rank), sequence=world)
        together, sent = Together(processes, device=torch.device("cpu")), Counter[str]()
        vars(together)["video"] = _Video(Group(rank, places, barrier, sent, boxes))
        with torch.no_grad():
            return run(together), sent

    with ThreadPoolExecutor(world) as pool:
        return list(pool.map(one, range(world)))


@dataclass
class _Video:
    """A mesh of one dimension."""

    group: Group

    def get_group(self) -> Group:
        return self.group

    def get_local_rank(self) -> int:
        return self.group.index


def _places(count: int) -> tuple[list[Any], Barrier]:
    return [None] * count, Barrier(count)
