"""A Wan transformer that makes a video block by block: within a block attention is full, across blocks it looks back.

Paper: Huang et al., "Self Forcing" (arXiv 2506.08009); pose tokens as in UniAnimate-DiT (arXiv 2504.11289). State-dict
names are those of the released checkpoints, plus ``pose_proj``; the code is our own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from selfforcing_unianimate.config import CausalDiTConfig
from selfforcing_unianimate.frame_blocks import FrameBlocks
from selfforcing_unianimate.memory import FrameMemory
from wan_core import ConfigError, RequestError
from wan_core.models import DiTInputs, TimeRows, TokenSequence, WanDiT


@dataclass(frozen=True, kw_only=True)
class CausalInputs(DiTInputs):
    """The conditions of a causal forward, whose first latent frame is frame ``start`` of the video.

    ``add_condition`` [B, T, h*w, pose_dim] are pose tokens. With a ``memory`` the frames are one block, which sees what
    the memory holds and is kept there; without, they are all blocks of ``blocks`` in one masked forward. That may have
    ``clean_latents`` [B, C, T, H, W] before it (teacher forcing): a block then sees the clean frames before it, which
    are at ``clean_timesteps`` [B, T], 0 if they are left out. ``watch`` is called with the number of each block of the
    network and the tokens [B, L, dim] float32 behind it, which are read at once.
    """

    frame_axes: ClassVar[dict[str, int]] = {**DiTInputs.frame_axes, "clean_latents": 2, "clean_timesteps": 1}

    blocks: FrameBlocks = field(default_factory=FrameBlocks)
    start: int = 0
    memory: FrameMemory | None = field(default=None, compare=False, repr=False)
    clean_latents: Tensor | None = None
    clean_timesteps: Tensor | None = None
    watch: Callable[[int, Tensor], None] | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        if self.memory is not None and self.clean_latents is not None:
            raise RequestError("a forward has a memory or clean_latents, not both")
        if self.clean_timesteps is not None and self.clean_latents is None:
            raise RequestError("clean_timesteps are those of clean_latents, and there are none")

    def frames(self, start: int, stop: int) -> CausalInputs:
        """The conditions of latent frames ``start`` to ``stop`` of these."""
        return replace(super().frames(start, stop), start=self.start + start)

    @classmethod
    def batch(cls, parts: Any) -> CausalInputs:
        """Not for these: each has a memory of its own. Raises ConfigError."""
        raise ConfigError("a causal network runs the branches of guidance one after the other; leave out --cfg batched")


class CausalDiT(WanDiT):
    """Velocity of the latent frames of one block, or of all blocks under a mask."""

    inputs_type: ClassVar[type[DiTInputs]] = CausalInputs

    def __init__(self, config: CausalDiTConfig) -> None:
        super().__init__(config)
        self.pose_proj: nn.Module = nn.Identity()
        if config.pose_dim != config.dim:
            self.pose_proj = nn.Linear(config.pose_dim, config.dim)
            # A network that never saw poses is itself until it has learned them.
            nn.init.zeros_(self.pose_proj.weight)
            nn.init.zeros_(self.pose_proj.bias)

    def embed_latents(
        self, latents: Tensor, inputs: DiTInputs, start: tuple[int, int, int] = (0, 0, 0)
    ) -> TokenSequence:
        """Tokens at their places in the video; with clean latents those come first, at the same places."""
        inputs = cast(CausalInputs, inputs)
        place = (start[0] + inputs.start, *start[1:])
        posed = replace(inputs, add_condition=self._projected(inputs.add_condition))
        sequence = super().embed_latents(latents, posed, place)
        frames, tokens = sequence.grid[0], sequence.grid[1] * sequence.grid[2]
        if inputs.memory is not None:
            return replace(sequence, memories=inputs.memory.place(place[0], frames, tokens, len(self.blocks)))
        if inputs.clean_latents is None:
            is_one = inputs.blocks.count(frames) == 1  # which sees itself whole
            return replace(sequence, mask=None if is_one else inputs.blocks.causal_mask(frames, tokens))
        if inputs.clean_latents.shape != latents.shape:
            raise RequestError(
                f"clean_latents must be {list(latents.shape)} as the latents, got {list(inputs.clean_latents.shape)}"
            )
        clean = super().embed_latents(inputs.clean_latents, posed, place)
        return replace(
            sequence,
            tokens=torch.cat([clean.tokens, sequence.tokens], dim=1),
            rope=torch.cat([clean.rope, sequence.rope]),
            start=clean.length,
            mask=inputs.blocks.teacher_forcing_mask(frames, tokens),
        )

    def embed_timesteps(self, timesteps: Tensor, sequence: TokenSequence, inputs: DiTInputs) -> TimeRows:
        """One row for each latent frame, the clean ones first; one for all from [B] without those."""
        inputs = cast(CausalInputs, inputs)
        if inputs.clean_latents is None:
            return super().embed_timesteps(timesteps, sequence, inputs)
        shape = sequence.tokens.shape[0], sequence.grid[0]
        noisy = timesteps[:, None].expand(shape) if timesteps.ndim == 1 else timesteps
        clean = torch.zeros_like(noisy) if inputs.clean_timesteps is None else inputs.clean_timesteps.to(noisy)
        if noisy.shape != shape or clean.shape != shape:
            raise RequestError(
                f"timesteps and clean_timesteps must be {list(shape)}, got {list(noisy.shape)} and {list(clean.shape)}"
            )
        lengths = (sequence.length // (2 * shape[1]),) * (2 * shape[1])
        return self.time_rows(torch.cat([clean, noisy], dim=1), lengths)

    def after_block(self, index: int, tokens: Tensor, sequence: TokenSequence, inputs: DiTInputs) -> Tensor:
        """The tokens as they are, shown to who watches."""
        watch = cast(CausalInputs, inputs).watch
        if watch is not None:
            watch(index, tokens)
        return tokens

    def _projected(self, pose: Tensor | None) -> Tensor | None:
        """Pose tokens in the width of the network; the embedding of latents checks their shape."""
        if pose is None or isinstance(self.pose_proj, nn.Identity):
            return pose
        weight = cast(Tensor, self.pose_proj.weight)
        if pose.shape[-1] != weight.shape[1]:
            raise RequestError(f"pose tokens are of width {weight.shape[1]} here, got {pose.shape[-1]}")
        projected: Tensor = self.pose_proj(pose.to(weight.device, weight.dtype))
        return projected
