"""Batches of a teacher's targets, and the conditions that each network takes of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from selfforcing_unianimate.causal_dit import CausalInputs
from selfforcing_unianimate.config import CausalDiTConfig
from selfforcing_unianimate.distillation.targets import CHANNELS, EMPTY, IMAGE, LATENTS
from selfforcing_unianimate.frame_blocks import FrameBlocks
from selfforcing_unianimate.pose_training import MOTION, with_poses
from wan_core import CheckpointError
from wan_core.models import DiTInputs
from wan_core.tasks import DROPPED
from wan_core.training import stack, text_of

if TYPE_CHECKING:
    from torch import nn


class Examples(Protocol):
    """What is drawn from: a folder of `Targets`, or anything with the same rows."""

    def row(self, number: int) -> Mapping[str, Tensor]:
        """The tensors of an example by name, as `Targets.row` gives them."""

    def negative(self) -> Tensor | None:
        """Text states [L, dim] that guidance leads away from; None: those of no text."""


class Order(Protocol):
    """Which examples a rank sees when."""

    def numbers(self, position: int, rank: int = 0) -> list[int]:
        """The examples of ``rank`` at a position."""


class Noise:
    """Gaussian noise that each sample draws from a seed of its own, so that a batch may be divided among processes."""

    def __init__(self, seeds: Sequence[int]) -> None:
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __call__(self, like: Tensor) -> Tensor:
        """The next noise of the shape [B, ...] and on the device of a tensor, float32."""
        rows = [torch.randn(tuple(like.shape[1:]), generator=each) for each in self._generators]
        return torch.stack(rows).to(like.device)


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Examples of this rank at a position, and all that is drawn for them.

    ``tensors`` have a leading dimension B, ``posed`` are the conditions with everything that the examples have,
    ``negative`` [B, L, dim] other text states. ``shared`` draws what all ranks share: numbers for all samples of all of
    them, of which ``mine`` are this rank's; ``noise`` is each sample's own.
    """

    tensors: Mapping[str, Tensor]
    posed: DiTInputs
    negative: Tensor
    shared: torch.Generator
    total: int
    mine: slice
    noise: Noise

    @property
    def latents(self) -> Tensor:
        """Clean latents [B, C, T, h, w]."""
        return self.tensors[LATENTS]

    def integers(self, low: int, high: int, *shape: int) -> Tensor:
        """Whole numbers from ``low`` to below ``high`` for each sample: [B, *shape], on the CPU."""
        return torch.randint(low, max(high, low + 1), (self.total, *shape), generator=self.shared)[self.mine]

    def conditions(
        self, config: CausalDiTConfig, blocks: FrameBlocks, *, negative: bool = False, with_pose: bool = True
    ) -> CausalInputs:
        """The conditions of a network of these dims: channels and CLIP states only where it takes them.

        Raises CheckpointError for a network that takes what the examples do not have.
        """
        posed = self.posed
        channels = posed.channel_concat if config.in_dim > config.out_dim else None
        image = posed.image_context if config.image_dim is not None else None
        if (config.in_dim > config.out_dim and channels is None) or (config.image_dim is not None and image is None):
            raise CheckpointError("a network takes a picture, and the targets have none; make them with pictures")
        return CausalInputs(
            context=self.negative if negative else posed.context,
            image_context=image,
            channel_concat=channels,
            add_condition=posed.add_condition if with_pose else None,
            blocks=blocks,
        )

    def frames(self, start: int, stop: int) -> Batch:
        """The same with the conditions of latent frames ``start`` to ``stop`` only."""
        return replace(self, posed=self.posed.frames(start, stop))


@dataclass(frozen=True, kw_only=True)
class Batches:
    """Draws batches of targets; call it with a position, which determines everything.

    ``encoder`` is the frozen pose encoder, None where no example has poses. Samples go without poses in a share
    ``pose_dropout`` of the cases.
    """

    targets: Examples
    order: Order
    batch: int
    seed: int
    device: torch.device
    encoder: nn.Module | None
    pose_dropout: float
    rank: int = 0
    world: int = 1

    def __call__(self, position: int) -> Batch:
        """The batch of this rank at a position."""
        total, mine = self.batch * self.world, slice(self.rank * self.batch, (self.rank + 1) * self.batch)
        shared = torch.Generator().manual_seed((self.seed * 1_000_003 + position) * 4099)
        seeds = torch.randint(2**62, (total,), generator=shared)[mine].tolist()
        dropped = (torch.rand(total, generator=shared) < self.pose_dropout)[mine]
        rows = [self.targets.row(number) for number in self.order.numbers(position, self.rank)]
        tensors = {**stack(rows, self.device), DROPPED: dropped.to(self.device)}
        negative = self.targets.negative()
        others = [row if negative is None else {**row, EMPTY: negative} for row in rows]
        texts = [
            text_of(each, [is_empty] * len(rows), self.device) for each, is_empty in ((rows, False), (others, True))
        ]
        posed = DiTInputs(context=texts[0], channel_concat=tensors.get(CHANNELS), image_context=tensors.get(IMAGE))
        if self.encoder is not None and MOTION in tensors:
            with torch.no_grad():
                posed = with_poses(posed, tensors, self.encoder)
        return Batch(
            tensors=tensors, posed=posed, negative=texts[1], shared=shared, total=total, mine=mine, noise=Noise(seeds)
        )
