"""Self-forcing: the student makes a video as it will in sampling, and one step of each block has a gradient.

Huang et al., "Self Forcing: Bridging the Train-Test Gap in Autoregressive Video Diffusion" (arXiv 2506.08009), section
3: what a block sees of the blocks before it is constant, and only the step at which a block ends is differentiated.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from selfforcing_unianimate.causal_dit import CausalInputs
from selfforcing_unianimate.distillation.past import Past
from wan_core import ConfigError, RequestError
from wan_core.sampling import FlowTable

Network = Callable[[Tensor, Tensor, CausalInputs], Tensor]
"""(latents [B, C, T, h, w], timesteps [B] or [B, T], conditions) -> velocity, as `CausalDiT` has it."""

LEARNED_FRAMES = 21
"""Latent frames at the end of a video that have gradients and are scored: what Wan2.1 was trained with."""


def draw_exits(
    num_blocks: int, num_steps: int, generator: torch.Generator, *, same: bool = True, last_only: bool = False
) -> list[int]:
    """The step at which each block ends, 0 to ``num_steps`` - 1; one number for all with ``same``.

    Processes that share one seed for ``generator`` share the steps, so that all of them run as many forwards.
    """
    drawn: list[int] = torch.randint(num_steps, (num_blocks,), generator=generator).tolist()
    if last_only:
        return [num_steps - 1] * num_blocks
    return drawn[:1] * num_blocks if same else drawn


def draw_frames(
    most: int, size: int, generator: torch.Generator, *, least: int = LEARNED_FRAMES, given: int = 0
) -> int:
    """How many latent frames are made: blocks of ``size``, ``least`` to ``most`` frames with ``given`` ones.

    Raises ConfigError for limits that are no whole numbers of blocks.
    """
    counts = [frames - given for frames in (least, most)]
    if any(count < size or count % size for count in counts) or counts[0] > counts[1]:
        raise ConfigError(
            f"a rollout of {least} to {most} latent frames, {given} of them given, is not made of blocks of {size}"
        )
    low, high = (count // size for count in counts)
    return size * int(torch.randint(low, high + 1, (1,), generator=generator))


@dataclass(frozen=True)
class Rolled:
    """What a rollout made: ``latents`` [B, C, T, h, w], given frames first.

    ``entered`` and ``left`` are the times before the shift (1000 to 0) of the step at which all blocks ended and of the
    one after it; None where they ended at different ones.
    """

    latents: Tensor
    entered: int | None
    left: int | None


@dataclass(frozen=True, kw_only=True)
class SelfForcing:
    """How a student makes videos in training.

    ``timesteps`` are those of the steps, decreasing, as the network sees them. After a block the network sees it once
    more at timestep ``context_noise``, with noise in it as at that level if ``noised_context``. Blocks among the last
    ``learned_frames`` have gradients. Raises ConfigError for steps that do not decrease within (0, 1000].
    """

    table: FlowTable
    timesteps: Sequence[float]
    context_noise: float = 0.0
    noised_context: bool = True
    learned_frames: int = LEARNED_FRAMES

    def __post_init__(self) -> None:
        steps = [1001.0, *self.timesteps, 0.0]
        if len(steps) < 3 or any(one <= following for one, following in pairwise(steps)):
            raise ConfigError(f"the steps must decrease from 1000 to above 0, got {list(self.timesteps)}")

    def roll(
        self,
        network: Network,
        noise: Tensor,
        inputs: CausalInputs,
        exits: Sequence[int],
        *,
        given: Tensor | None = None,
        draw: Callable[[Tensor], Tensor] = torch.randn_like,
    ) -> Rolled:
        """Make a video of ``noise`` [B, C, F, h, w] behind the clean frames ``given`` [B, C, G, h, w].

        ``inputs`` are the conditions of all G + F frames; each block gets its own slice of them. ``exits`` are the last
        step of each block that is made, ``draw`` gives noise like a tensor. Gradients reach the weights through the
        last step of each block alone. Raises RequestError for other numbers of exits, and given frames that end within
        a block.
        """
        latents = [] if given is None else [given]
        known = 0 if given is None else given.shape[2]
        total = known + noise.shape[2]
        past = Past(inputs.blocks)
        seen = replace(inputs, memory=past, context_cache=None)
        spans = inputs.blocks.spans(total)
        made = [span for span in spans if span[1] > known]
        if len(made) != len(exits) or made[0][0] != known:
            raise RequestError(
                f"{total} latent frames, of which {known} are given, are {len(spans)} blocks; {len(exits)} last steps "
                "do not fit them"
            )
        quick = seen.with_cache()
        if given is not None:
            for start, stop in (span for span in spans if span[1] <= known):
                self._look(network, given[:, :, start:stop], 0.0, quick.frames(start, stop))
        for (start, stop), last in zip(made, exits, strict=True):
            block = noise[:, :, start - known : stop - known]
            learns = start >= total - self.learned_frames
            clean = self._block(network, block, last, draw, quick.frames(start, stop), seen.frames(start, stop), learns)
            latents.append(clean)
            context = clean.detach()
            if self.noised_context:
                at = _at(self.context_noise, context)
                context = self.table.add_noise(context, draw(context), at)
            self._look(network, context, self.context_noise, quick.frames(start, stop))
        return Rolled(torch.cat(latents, dim=2), *self._between(exits))

    def _block(
        self,
        network: Network,
        latents: Tensor,
        last: int,
        draw: Callable[[Tensor], Tensor],
        quick: CausalInputs,
        inputs: CausalInputs,
        learns: bool,
    ) -> Tensor:
        """The clean prediction of a block at its last step; ``quick`` conditions serve the steps before that."""
        for step in range(last):
            with torch.no_grad():
                clean = self._clean(network, latents, self.timesteps[step], quick)
                following = _at(self.timesteps[step + 1], clean)
                latents = self.table.add_noise(clean, draw(clean), following)
        with torch.set_grad_enabled(learns and torch.is_grad_enabled()):
            return self._clean(network, latents, self.timesteps[last], inputs)

    def _clean(self, network: Network, latents: Tensor, timestep: float, inputs: CausalInputs) -> Tensor:
        timesteps = _at(timestep, latents)
        return self.table.clean(network(latents, timesteps, inputs).float(), latents, timesteps)

    @torch.no_grad()
    def _look(self, network: Network, latents: Tensor, timestep: float, inputs: CausalInputs) -> None:
        """Let the network remember finished frames."""
        network(latents, _at(timestep, latents), inputs)

    def _between(self, exits: Sequence[int]) -> tuple[int | None, int | None]:
        if len(set(exits)) > 1:
            return None, None
        times = [1000 - int(index) for index in self.table.index(torch.tensor([*self.timesteps]))]
        return times[exits[0]], [*times, 0][exits[0] + 1]


def _at(timestep: float, latents: Tensor) -> Tensor:
    return torch.full((latents.shape[0],), timestep, device=latents.device)
