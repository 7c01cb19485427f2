"""How the processes of a run are arranged: one DeviceMesh, whose dimensions say what is divided along each.

To make videos it is ``data`` x ``guidance`` x ``ring`` x ``ulysses``, the last one running fastest, so that those who
talk most are neighbours: ``mesh["data"].get_local_rank()`` is which of the jobs are this process's own,
``mesh["guidance"]`` divides the two branches of guidance, `sequence_processes` the tokens of a forward, and the weights
lie over `video_mesh`, all who make one video together. In training it is ``replicate`` x ``shard``, see `make_mesh`.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd
from typing import TYPE_CHECKING

from wan_core.errors import ConfigError

if TYPE_CHECKING:
    import torch
    from torch.distributed.device_mesh import DeviceMesh


@dataclass(frozen=True, kw_only=True)
class ParallelPlan:
    """How many processes each kind of work is divided among; the product is their number, ``world``.

    ``data``: groups that make videos of their own. ``guidance``: 2 where the branches of guidance run at once.
    ``ring`` x ``ulysses``: who shares the tokens of one forward, by keys in a ring and by heads.
    """

    data: int = 1
    guidance: int = 1
    ring: int = 1
    ulysses: int = 1

    @property
    def sequence(self) -> int:
        """Processes that share the tokens of one forward."""
        return self.ring * self.ulysses

    @property
    def world(self) -> int:
        """All processes."""
        return self.data * self.guidance * self.sequence

    def open(self, device: torch.device) -> DeviceMesh:
        """The mesh of the default process group; all processes call it, in the same order as other collectives."""
        from torch.distributed.device_mesh import init_device_mesh

        sizes = self.data, self.guidance, self.ring, self.ulysses
        return init_device_mesh(device.type, sizes, mesh_dim_names=("data", "guidance", "ring", "ulysses"))


def plan_parallel(world: int, *, num_heads: int, sequence: int = 1, guidance: int = 1) -> ParallelPlan:
    """The plan of ``world`` processes where ``sequence`` share the tokens of a forward and ``guidance`` its branches.

    As many as ``num_heads`` allows divide the heads, which costs least; the rest are a ring: 8 processes are 8 by heads
    for 40 heads, and a ring of 2 with 4 by heads for 12. Processes that are left make videos of their own. Nothing is
    imported. Raises ConfigError for numbers that cannot be, and for groups that do not divide ``world``.
    """
    if sequence < 1:
        raise ConfigError(f"the number of processes that share a video's tokens must be at least 1, got {sequence}")
    if guidance not in (1, 2):
        raise ConfigError(f"guidance has two branches, which 1 or 2 processes run, got {guidance}")
    if world < 1 or world % (sequence * guidance):
        groups = f"{guidance} branches of guidance x {sequence}" if guidance > 1 else f"{sequence}"
        raise ConfigError(
            f"{world} processes are no whole number of groups of {groups}; take a multiple of {sequence * guidance}"
        )
    ulysses = gcd(sequence, num_heads)
    return ParallelPlan(
        data=world // (sequence * guidance), guidance=guidance, ring=sequence // ulysses, ulysses=ulysses
    )


def video_mesh(mesh: DeviceMesh) -> DeviceMesh:
    """The processes that make one video together, in one dimension: whom its weights are divided among."""
    return mesh["guidance", "ring", "ulysses"]._flatten("video")


def shares_of(world: int, replicas: int) -> int:
    """Among how many of ``world`` processes weights are divided in training, where ``replicas`` groups hold the same.

    Raises ConfigError when the groups would not be equal.
    """
    if replicas < 1 or world % replicas:
        raise ConfigError(f"{world} processes cannot make {replicas} equal groups; take a divisor of {world}")
    return world // replicas


def make_mesh(world: int, device: torch.device, *, replicas: int = 1) -> DeviceMesh:
    """How processes share weights in training: all together, or in ``replicas`` groups that hold the same (HSDP).

    Raises ConfigError when the groups would not be equal.
    """
    from torch.distributed.device_mesh import init_device_mesh

    shares = shares_of(world, replicas)
    if replicas == 1:
        return init_device_mesh(device.type, (world,), mesh_dim_names=("shard",))
    return init_device_mesh(device.type, (replicas, shares), mesh_dim_names=("replicate", "shard"))
