"""Attention whose positions are cameras: the pose injection of Pi3X.

After PRoPE (Li et al. 2025, "Cameras as Relative Positional Encoding", arXiv:2507.10496), without intrinsics, as the
Pi3 reference uses it; the code is our own.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from pi3.blocks import LAYER_NORM_EPS, LayerScale, Mlp, Pi3Attention
from pi3.camera import invert_rigid
from pi3.rope2d import RopeTable, rope_table, rotate

FREQUENCY_BASE = 100.0


@dataclass(frozen=True)
class CameraPositions:
    """Positions of the patch tokens of B sets of N views.

    ``world_to_camera`` and its inverse ``camera_to_world`` are [B, N, 4, 4]; ``rope`` [h * w, 2, d / 8] has the angles
    of column and row.
    """

    world_to_camera: Tensor
    camera_to_world: Tensor
    rope: RopeTable

    @classmethod
    def of(cls, camera_to_world: Tensor, height: int, width: int, head_dim: int) -> "CameraPositions":
        """The positions of ``height`` x ``width`` patches under poses [B, N, 4, 4]; patches count from 0."""
        device = camera_to_world.device
        grid = torch.cartesian_prod(torch.arange(height, device=device), torch.arange(width, device=device))
        poses = camera_to_world.float()
        return cls(invert_rigid(poses), poses, rope_table(grid.flip(-1), head_dim // 2, FREQUENCY_BASE))

    def apply(self, heads: Tensor, matrices: Tensor, *, inverse: bool = False) -> Tensor:
        """Transform queries, keys or values [B, n, N * h * w, d].

        The first half of the channels, as vectors of four, is multiplied by each view's matrix [B, N, 4, 4]; the two
        quarters after it turn against the column and the row, and with them when ``inverse``.
        """
        half = heads.shape[-1] // 2
        views = matrices.shape[1]
        vectors = torch.unflatten(torch.unflatten(heads[..., :half], 2, (views, -1)), -1, (-1, 4))
        turned = torch.einsum("bvij,bnvptj->bnvpti", matrices.to(heads.dtype), vectors)
        table = self.rope.cast(heads.dtype).repeat(views)
        rotated = rotate(heads[..., half:], table if inverse else RopeTable(table.cos, -table.sin))
        return torch.cat([turned.flatten(-2).flatten(2, 3), rotated], dim=-1)


class CameraAttention(Pi3Attention):
    """Self-attention over the patches of all views, relative to their cameras."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__(dim, num_heads, qk_norm=True)

    def among(self, tokens: Tensor, cameras: CameraPositions, key_mask: Tensor | None) -> Tensor:
        """[B, N * h * w, C] in and out; keys where ``key_mask`` [B, N * h * w] is False are not seen."""
        query, key, value = self.project(tokens)
        query = cameras.apply(query, cameras.world_to_camera.mT)
        key, value = (cameras.apply(heads, cameras.camera_to_world) for heads in (key, value))
        mask = None if key_mask is None else key_mask[:, None, None]
        mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        mixed = cameras.apply(mixed, cameras.world_to_camera, inverse=True)
        out: Tensor = self.proj(mixed.transpose(1, 2).flatten(2))
        return out


class PoseInjection(nn.Module):
    """What known poses add to the patch tokens: attention and MLP side by side, both on the same input."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float, layer_scale: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.attn = CameraAttention(dim, num_heads)
        self.ls1 = LayerScale(dim, layer_scale)
        self.norm2 = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.mlp = Mlp(dim, mlp_ratio)
        self.ls2 = LayerScale(dim, layer_scale)

    def forward(self, tokens: Tensor, cameras: CameraPositions, view_mask: Tensor) -> Tensor:
        """The addition [B, N, h * w, C] to tokens of that shape; zero for views where ``view_mask`` [B, N] is False."""
        joined = tokens.flatten(1, 2)
        # A set without any pose attends everywhere instead of nowhere, which would be NaN; its result is not used.
        seen = view_mask | ~view_mask.any(dim=1, keepdim=True)
        keys = None if bool(seen.all()) else seen.repeat_interleave(tokens.shape[2], dim=1)
        mixed = self.attn.among(self.norm1(joined), cameras, keys)
        added = self.ls1(mixed) + self.ls2(self.mlp(self.norm2(joined)))
        return torch.where(view_mask[:, :, None, None], added.reshape(tokens.shape), 0.0)
