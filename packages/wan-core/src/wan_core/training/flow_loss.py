"""The loss of a run: which examples and what noise a step sees, and how wrong the network is there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from wan_core.sampling import FlowTable
from wan_core.tasks import DROPPED, Task
from wan_core.training.cache import Cache
from wan_core.training.examples import Sampler, alike, stack, text_of
from wan_core.training.objective import FlowBatch, NoiseLevels, draw_clean_frames, make_flow_batch
from wan_core.training.settings import TrainSettings

_VALIDATION_SEED = 20_260_101
_LEVELS_PER_EXAMPLE = 4


@dataclass(frozen=True, kw_only=True)
class FlowLoss:
    """Flow-matching loss of a network on cached examples; call it with (step, accumulation index).

    All ranks draw for the batch of all ranks and keep their part, so that two ranks of two examples see what one rank
    of four sees. ``task`` says how examples condition the network, ``networks`` are its companions. ``rank`` and
    ``world`` number the processes. ``table`` weighs the errors by their noise level.
    """

    model: nn.Module
    task: Task[Any, Any]
    cache: Cache
    sampler: Sampler
    settings: TrainSettings
    levels: NoiseLevels
    device: torch.device
    networks: Mapping[str, nn.Module] = field(default_factory=dict)
    table: FlowTable | None = None
    accumulation: int = 1
    rank: int = 0
    world: int = 1

    def __call__(self, step: int, index: int) -> Tensor:
        """The mean loss of this rank's part of a step, a scalar in float32."""
        position = step * self.accumulation + index
        torch.manual_seed((self.settings.seed * 1_000_003 + position) * 4099)
        numbers = self.sampler.numbers(position, self.rank)
        total, mine = self.settings.batch * self.world, self._mine()
        sigmas = self.levels.sample(total)[mine]
        is_empty = (torch.rand(total) < self.settings.caption_dropout)[mine].tolist()
        rows = [self._row(*each) for each in zip(numbers, is_empty, strict=True)]
        clean = self._clean(total, rows[0]["latents"].shape[1])
        alone = (torch.rand(total) < 0.5)[mine]
        seeds = torch.randint(2**62, (total,))[mine]
        share = self.task.condition_dropout
        dropped = (torch.rand(total) < share)[mine] if share > 0 else None
        losses = []
        for group in alike(rows, self.task.mixed_lengths):
            shown = [rows[i] for i in group]
            batch = stack(shown, self.device)
            if dropped is not None:
                batch[DROPPED] = dropped[group].to(self.device)
            noise, latents = seeded_rows(seeds[group].tolist(), batch["latents"].shape[1:]), batch["latents"]
            counts = None if clean is None else clean[mine][group]
            if counts is not None:
                latents = self.task.clean_latents(batch, counts.tolist(), alone[group].tolist())
                counts = counts.to(self.device)
            flow = make_flow_batch(latents, sigmas[group].to(self.device), noise.to(self.device), counts)
            text = text_of(shown, [is_empty[i] for i in group], self.device)
            losses.append(self._loss(batch, text, flow) * (len(group) / len(rows)))
        return torch.stack(losses).sum() if losses[1:] else losses[0]

    def _row(self, number: int, is_empty: bool) -> Mapping[str, Tensor]:
        row: Mapping[str, Tensor] = self.cache[number]
        return self.task.unpack_example(self.task.without_caption(row) if is_empty else row)

    def _mine(self) -> slice:
        return slice(self.rank * self.settings.batch, (self.rank + 1) * self.settings.batch)

    def _clean(self, count: int, frames: int) -> Tensor | None:
        most = min(self.settings.clean_frames, frames - 1)
        return draw_clean_frames(count, most + 1, self.settings.clean_share) if most > 0 else None

    def _loss(self, batch: Mapping[str, Tensor], context: Tensor, flow: FlowBatch) -> Tensor:
        inputs = self.task.training_inputs(batch, context, self.networks)
        velocity = self.model(flow.latents, flow.timesteps, inputs)
        weights = None if self.table is None else self.table.weight(flow.timesteps)
        return flow.loss(velocity, level_weights=weights)

    @torch.no_grad()
    def held_out(self) -> float | None:
        """The loss on the held-out examples with fixed noise at fixed levels; None without any.

        Each example is seen at four levels spread over the trained distribution, with its caption and no clean frames.
        Leaves torch's generator as it is.
        """
        if not self.sampler.held_out:
            return None
        with torch.random.fork_rng(devices=[]):
            losses = [self._fixed_loss(number) for number in self.sampler.held_out]
        return sum(losses) / len(losses)

    def _fixed_loss(self, number: int) -> float:
        torch.manual_seed(_VALIDATION_SEED + number)
        sigmas = self.levels.sample(_LEVELS_PER_EXAMPLE)
        seeds = torch.randint(2**62, (_LEVELS_PER_EXAMPLE,)).tolist()
        rows = [self.task.unpack_example(self.cache[number])] * _LEVELS_PER_EXAMPLE
        batch, context = stack(rows, self.device), text_of(rows, [False] * len(rows), self.device)
        noise = seeded_rows(seeds, batch["latents"].shape[1:]).to(self.device)
        flow = make_flow_batch(batch["latents"], sigmas.to(self.device), noise)
        return float(self._loss(batch, context, flow))


def seeded_rows(seeds: Sequence[int], shape: Sequence[int]) -> Tensor:
    """Noise [B, *shape] on the CPU, each row from its own seed."""
    rows = [torch.randn(tuple(shape), generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return torch.stack(rows)
