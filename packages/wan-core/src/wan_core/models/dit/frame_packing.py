"""The frames before a clip as few tokens: the newest as they are, the next two and the oldest 16 ever coarser.

Source: the released Wan2.2-S2V-14B (``frame_packer``), after Zhang and Agrawala, "Packing Input Frame Context in
Next-Frame Prediction Models" (arXiv 2504.12626); the code is our own.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from wan_core.models.dit.config import WanDiTConfig
from wan_core.models.dit.rope import Grid, rotary_positions

PACKED_FRAMES = 19
"""Latent frames of history: 1, 2 and 16, the newest first."""

ALL = 2
"""The ``last_motion`` that leaves nothing out."""

_PARTS = (1, 2, 16)
_SCALES = (1, 2, 4)


class FramePacker(nn.Module):
    """History [B, C, T, h, w] to tokens: of the newest frame, of the two before it, of the 16 before those."""

    def __init__(self, in_dim: int, dim: int, patch_size: Grid = (1, 2, 2)) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj, self.proj_2x, self.proj_4x = (self._projection(in_dim, dim, scale) for scale in _SCALES)

    def forward(
        self, motion: Tensor, head_dim: int, last_motion: int = ALL, *, drop: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Tokens [B, L, dim] and their rotary table [L, head_dim / 2, 2].

        A history of other than 19 frames is cut to the newest, or follows zeros. ``last_motion`` 1 leaves the newest
        frame out, 0 the newest three: they are zeros, or with ``drop`` have no tokens. Rows and columns beyond the last
        whole patch of the coarse parts are not seen there, as in the original.
        """
        recent = motion[:, :, -PACKED_FRAMES:]
        missing = PACKED_FRAMES - recent.shape[2]
        history = torch.cat([recent.new_zeros(*recent.shape[:2], missing, *recent.shape[3:]), recent], dim=2)
        oldest, middle, newest = torch.split(history.to(self.proj.weight), list(_PARTS[::-1]), dim=2)
        grid = (motion.shape[3] // self.patch_size[1], motion.shape[4] // self.patch_size[2])
        tokens, tables = [], []
        parts = ((newest, self.proj), (middle, self.proj_2x), (oldest, self.proj_4x))
        end = 0
        for index, (frames, project) in enumerate(parts):
            end -= _PARTS[index]
            is_left_out = last_motion < ALL - index
            if is_left_out and drop:
                continue
            patches = project(torch.zeros_like(frames) if is_left_out else frames)
            tokens.append(patches.flatten(2).transpose(1, 2))
            count, rows, columns = patches.shape[2:]
            axes = spread(end, _PARTS[index], count), spread(0, grid[0], rows), spread(0, grid[1], columns)
            tables.append(rotary_positions(head_dim, *axes, motion.device))
        return torch.cat(tokens, dim=1), torch.cat(tables)

    def _projection(self, in_dim: int, dim: int, scale: int) -> nn.Conv3d:
        frames, rows, columns = self.patch_size
        kernel = frames * scale, rows * scale, columns * scale
        return nn.Conv3d(in_dim, dim, kernel, kernel)


def spread(start: int, length: int, count: int) -> Sequence[int]:
    """``count`` positions from ``start`` to ``start + length - 1``, evenly, cut to whole numbers towards zero.

    The step is rounded as numpy's ``linspace`` does, which decides where a position falls on a whole number.
    """
    if count == 1:
        return (start,)
    sign = -1 if start < 0 else 1
    first, last = abs(start), abs(start + length - 1)
    step = (last - first) / (count - 1)
    return (*(sign * int(index * step + first) for index in range(count - 1)), sign * last)


def motion_tokens(config: WanDiTConfig, patches: Tensor) -> tuple[Tensor, Tensor]:
    """A history that is not packed: patches [B, dim, T, h, w] of every frame, which stand at frames -T to -1."""
    frames, rows, columns = patches.shape[2:]
    table = rotary_positions(config.head_dim, range(-frames, 0), range(rows), range(columns), patches.device)
    return patches.flatten(2).transpose(1, 2), table
