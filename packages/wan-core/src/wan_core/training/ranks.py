"""The processes of a run: one by default; `wan_core.runtime` knows how to make several work together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, distributed, nn

from wan_core.checkpoints import Division
from wan_core.runtime import (
    Launch,
    RowReading,
    Shard,
    make_mesh,
    mean_over_processes,
    process_group,
    shard_model,
    whole_tensor,
)
from wan_core.training.loop import Reduce, this_rank_only


def leave_whole(model: nn.Module, *, dtype: torch.dtype | None = None) -> None:
    """The `Ranks.shard` of a single process: nothing."""


def do_not_wait() -> None:
    """The `Ranks.wait` of a single process: nothing."""


def present_tensor(tensor: Tensor) -> Tensor:
    """The `Ranks.whole` of a single process: the tensor itself."""
    return tensor.detach()


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """This process among ``world``, and what they do together.

    ``reduce`` averages numbers over all, ``shard`` divides a model in place after adapters are attached and before
    optimizers are built, ``division`` lets each process read its own part of what will be divided, ``whole`` gathers a
    weight (called on every rank), ``wait`` returns when all have called it.
    """

    rank: int = 0
    world: int = 1
    reduce: Reduce = this_rank_only
    shard: Shard = leave_whole
    division: Division | None = None
    whole: Callable[[Tensor], Tensor] = present_tensor
    wait: Callable[[], None] = do_not_wait

    @property
    def is_first(self) -> bool:
        """Whether this process writes what is written once."""
        return self.rank == 0


@contextmanager
def distributed_ranks(launch: Launch | None, device: torch.device, *, replicas: int = 1) -> Iterator[Ranks]:
    """The processes that torchrun started, their weights divided; one alone without ``launch``.

    ``replicas`` groups hold the same weights each (HSDP). Raises BackendError when they cannot meet, ConfigError for
    groups that cannot be equal.
    """
    if launch is None:
        yield Ranks()
        return
    with process_group(launch, device):
        mesh = make_mesh(launch.world, device, replicas=replicas)

        def reduce(values: Sequence[float]) -> list[float]:
            return mean_over_processes(values, device)

        def wait() -> None:
            distributed.barrier()

        yield Ranks(
            rank=launch.rank,
            world=launch.world,
            reduce=reduce,
            shard=partial(shard_model, mesh=mesh),
            division=RowReading(mesh),
            whole=whole_tensor,
            wait=wait,
        )
