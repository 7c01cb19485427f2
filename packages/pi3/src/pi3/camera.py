"""The camera head, rotations from nine numbers, and rigid transforms.

Matrices are camera-to-world with OpenCV axes: x right, y down, z forward. The code is our own, after the Pi3 paper
(arXiv:2507.13347) and Levinson et al. 2020 (arXiv:2006.14616) for the projection to rotations.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional


class ResidualMlp(nn.Module):
    """Three linear layers, each followed by a ReLU, beside an identity skip. The published names say ``conv``."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.res_conv1 = nn.Linear(dim, dim)
        self.res_conv2 = nn.Linear(dim, dim)
        self.res_conv3 = nn.Linear(dim, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """[..., C] in and out."""
        hidden = tokens
        for layer in (self.res_conv1, self.res_conv2, self.res_conv3):
            hidden = functional.relu(layer(hidden))
        return tokens + hidden


class CameraHead(nn.Module):
    """Tokens of a view to its camera-to-world matrix."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.res_conv = nn.ModuleList([ResidualMlp(dim), ResidualMlp(dim)])
        self.more_mlps = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, dim), nn.ReLU())
        self.fc_t = nn.Linear(dim, 3)
        self.fc_rot = nn.Linear(dim, 9)

    def raw(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Translation [B, 3] and the nine numbers [B, 9] that the rotation is projected from."""
        for layer in self.res_conv:
            tokens = layer(tokens)
        pooled = self.more_mlps(tokens.mean(dim=1))
        return self.fc_t(pooled), self.fc_rot(pooled)

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, 4, 4] from patch tokens [B, h * w, C]."""
        translation, numbers = self.raw(tokens)
        return rigid_transform(nearest_rotation(numbers), translation)


def nearest_rotation(numbers: Tensor) -> Tensor:
    """The rotation [..., 3, 3] nearest to nine numbers [..., 9], in float32.

    The numbers are a row-major matrix M whose rows are first brought to unit length. With ``M^T = U S V^T`` the result
    is ``V diag(1, 1, det(V U^T)) U^T``, the special orthogonal Procrustes solution.
    """
    matrix = functional.normalize(torch.unflatten(numbers.float(), -1, (3, 3)), dim=-1)
    left, _, right = torch.linalg.svd(matrix.mT)
    sign = torch.linalg.det(right.mT @ left.mT)
    last = torch.stack([torch.ones_like(sign), torch.ones_like(sign), sign], dim=-1)
    rotation: Tensor = right.mT @ (last[..., None] * left.mT)
    return rotation


def rigid_transform(rotation: Tensor, translation: Tensor) -> Tensor:
    """[..., 4, 4] from a rotation [..., 3, 3] and a translation [..., 3]."""
    upper = torch.cat([rotation, translation[..., None]], dim=-1)
    bottom = upper.new_tensor([0.0, 0.0, 0.0, 1.0]).expand(*upper.shape[:-2], 1, 4)
    return torch.cat([upper, bottom], dim=-2)


def invert_rigid(transform: Tensor) -> Tensor:
    """The inverse of rigid transforms [..., 4, 4], by transposing the rotation."""
    rotation = transform[..., :3, :3].mT
    return rigid_transform(rotation, -(rotation @ transform[..., :3, 3:])[..., 0])


def apply_transform(transform: Tensor, points: Tensor) -> Tensor:
    """Points [..., 3] moved by transforms that broadcast against them, [..., 4, 4]."""
    return torch.einsum("...ij,...j->...i", transform[..., :3, :3], points) + transform[..., :3, 3]
