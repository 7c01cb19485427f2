"""The student on data and on a teacher's paths: diffusion forcing, teacher forcing, and regression.

Self-Forcing (arXiv 2506.08009) begins with regression on the teacher's paths (CausVid, arXiv 2412.07772); diffusion
forcing is Chen et al. (arXiv 2407.01392).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from selfforcing_unianimate.causal_dit import CausalInputs
from selfforcing_unianimate.distillation.rollout import Network
from selfforcing_unianimate.frame_blocks import FrameBlocks
from wan_core import RequestError
from wan_core.sampling import FlowTable

_LEVELS = 1000


@dataclass(frozen=True)
class Judged:
    """The ``loss`` of a step, a scalar, and the ``clean`` prediction [B, C, T, h, w] that it judges."""

    loss: Tensor
    clean: Tensor


def shared_by_block(values: Tensor, blocks: FrameBlocks) -> Tensor:
    """Values [B, T], those of the first frame of a block for all of it."""
    shared = values.clone()
    for start, stop in blocks.spans(values.shape[1]):
        shared[:, start:stop] = values[:, start : start + 1]
    return shared


@dataclass(frozen=True, kw_only=True)
class History:
    """The clean frames that noisy ones see in teacher forcing, with a little noise in them.

    ``entries`` [B, T] are whole numbers from 0 to below the most that is wanted, of which 0 is the least noise: the
    last entry of the table. Self-Forcing's own code takes them from the noisiest entry on, which ``from_noisiest``
    keeps. None: no noise, and timestep 0.
    """

    entries: Tensor | None = None
    noise: Tensor | None = None
    from_noisiest: bool = False

    def apply(self, clean: Tensor, table: FlowTable, blocks: FrameBlocks) -> tuple[Tensor, Tensor | None]:
        """The frames as they are shown, and their timesteps [B, T]."""
        if self.entries is None:
            return clean, None
        if self.noise is None:
            raise RequestError("a history of noise levels needs the noise")
        entries = shared_by_block(self.entries, blocks)
        timesteps = table.timesteps[entries if self.from_noisiest else _LEVELS - 1 - entries].to(clean.device)
        return table.add_noise(clean, self.noise, timesteps), timesteps


def forcing_loss(
    network: Network,
    clean: Tensor,
    noise: Tensor,
    entries: Tensor,
    inputs: CausalInputs,
    table: FlowTable,
    *,
    history: History | None = None,
) -> Judged:
    """Flow matching with a noise level for each block, weighted by the table.

    ``clean`` and ``noise`` [B, C, T, h, w]; ``entries`` [B, T] are entries of the table, of which the first of each
    block counts. With a ``history`` noisy blocks see the clean ones before them (teacher forcing), else the noisy ones
    (diffusion forcing). Poses of ``inputs`` go to both halves.
    """
    timesteps = table.timesteps[shared_by_block(entries, inputs.blocks)].to(clean.device)
    noisy = table.add_noise(clean, noise, timesteps)
    if history is not None:
        shown, times = history.apply(clean, table, inputs.blocks)
        inputs = replace(inputs, clean_latents=shown, clean_timesteps=times)
    velocity = network(noisy, timesteps, inputs)
    error = (velocity.float() - (noise - clean).float()).square().mean(dim=(1, 3, 4))
    weight = table.weight(timesteps).to(error)
    return Judged((error * weight).mean(), table.clean(velocity.float(), noisy, timesteps))


def path_latents(states: Tensor, entries: Tensor) -> Tensor:
    """The frames [B, C, T, h, w] of a path's ``states`` [B, S, C, T, h, w], each at its own of the S: [B, T]."""
    batch, _, channels, frames, *sides = states.shape
    index = entries.to(states.device).view(batch, 1, 1, frames, 1, 1).expand(batch, 1, channels, frames, *sides)
    return states.gather(1, index)[:, 0]


def regression_loss(
    network: Network,
    states: Tensor,
    clean: Tensor,
    entries: Tensor,
    timesteps: Sequence[float],
    inputs: CausalInputs,
    table: FlowTable,
) -> Judged:
    """Mean squared error of clean predictions at the states of a teacher's path, under the mask of blocks.

    ``states`` [B, S, C, T, h, w] are those before each of the S ``timesteps``, ``clean`` [B, C, T, h, w] is where the
    path ends. ``entries`` [B, T] choose one for each block, by its first frame. Frames at timestep 0 do not count.
    Raises RequestError when no frame does, and for other numbers of states and timesteps.
    """
    if states.shape[1] != len(timesteps):
        raise RequestError(f"the path has {states.shape[1]} states, the student {len(timesteps)} steps")
    entries = shared_by_block(entries, inputs.blocks)
    times = torch.tensor([*timesteps], dtype=torch.float32)[entries].to(clean.device)
    noisy = path_latents(states, entries)
    velocity = network(noisy, times, inputs)
    found = table.clean(velocity.float(), noisy, times)
    counts = (times != 0).float()
    if not bool(counts.any()):
        raise RequestError("every latent frame is at timestep 0, so there is nothing to learn")
    error = (found - clean).square().mean(dim=(1, 3, 4))
    return Judged((error * counts).sum() / counts.sum(), found)
