"""The processes of a run: one by default; `wan_core.runtime` knows how to make several work together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from wan_core.training.loop import Reduce, this_rank_only


def leave_whole(model: nn.Module) -> None:
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
    optimizers are built, ``whole`` gathers a weight (called on every rank), ``wait`` returns when all have called it.
    """

    rank: int = 0
    world: int = 1
    reduce: Reduce = this_rank_only
    shard: Callable[[nn.Module], None] = leave_whole
    whole: Callable[[Tensor], Tensor] = present_tensor
    wait: Callable[[], None] = do_not_wait

    @property
    def is_first(self) -> bool:
        """Whether this process writes what is written once."""
        return self.rank == 0
