"""How far predicted depth, cameras and points are from true ones: the metrics of the published evaluations.

All are computed in float64. Predictions of Pi3 are defined up to a similarity, so each metric aligns first.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from pi3.camera import apply_transform, invert_rigid
from wan_core.errors import RequestError

_POINTS_AT_ONCE = 2048


@dataclass(frozen=True)
class DepthErrors:
    """``abs_rel``: mean of |d - g| / g. ``delta``: share of pixels where max(d / g, g / d) < 1.25."""

    abs_rel: float
    delta: float


@dataclass(frozen=True)
class PoseErrors:
    """``ate``: RMS distance of camera centres. ``rpe_translation`` and ``rpe_rotation``: RMS length and RMS angle in
    degrees of ``(G_i^-1 G_{i+1})^-1 (P_i^-1 P_{i+1})`` over neighbouring views; 0 for a single view."""

    ate: float
    rpe_translation: float
    rpe_rotation: float


@dataclass(frozen=True)
class CloudErrors:
    """Mean distance to the nearest point of the other cloud: ``accuracy`` from the prediction to the truth,
    ``completeness`` from the truth to the prediction."""

    accuracy: float
    completeness: float


@dataclass(frozen=True)
class Similarity:
    """The map ``scale * rotation @ p + translation``."""

    scale: Tensor
    rotation: Tensor
    translation: Tensor

    def apply(self, points: Tensor) -> Tensor:
        """Points [..., 3] mapped."""
        return self.scale * points.double() @ self.rotation.mT + self.translation

    def apply_to_poses(self, poses: Tensor) -> Tensor:
        """Camera-to-world matrices [N, 4, 4] mapped: centres as points, axes turned."""
        mapped = poses.double().clone()
        mapped[..., :3, :3] = self.rotation @ mapped[..., :3, :3]
        mapped[..., :3, 3] = self.apply(poses[..., :3, 3])
        return mapped


def align_depth(depth: Tensor, truth: Tensor, mask: Tensor | None = None, *, shift: bool = False) -> Tensor:
    """``a d`` or, with ``shift``, ``a d + b`` that is nearest to the truth in least squares.

    ``a = sum(d g) / sum(d^2)``; with a shift, ``a = cov(d, g) / var(d)`` and ``b = mean(g) - a mean(d)``. Only pixels
    where ``mask`` is True count. Raises RequestError for shapes that differ or an empty mask.
    """
    if depth.shape != truth.shape:
        raise RequestError(f"depth {list(depth.shape)} and truth {list(truth.shape)} must have one shape")
    valid = torch.ones_like(depth, dtype=torch.bool) if mask is None else mask
    d, g = depth[valid].double(), truth[valid].double()
    if not len(d):
        raise RequestError("no pixel is valid, so depth cannot be compared")
    if not shift:
        return depth.double() * ((d * g).sum() / d.square().sum())
    deviation = d - d.mean()
    variance = deviation.square().sum()
    slope = (deviation * g).sum() / variance if variance > 0 else torch.zeros_like(variance)
    return slope * (depth.double() - d.mean()) + g.mean()


def depth_errors(depth: Tensor, truth: Tensor, mask: Tensor | None = None, *, shift: bool = False) -> DepthErrors:
    """Errors of depth maps of one shape after one alignment of all of them; arguments as in :func:`align_depth`."""
    valid = truth > 0 if mask is None else mask & (truth > 0)
    aligned = align_depth(depth, truth, valid, shift=shift)[valid]
    g = truth[valid].double()
    ratio = torch.maximum(aligned / g, g / aligned)
    inside = (ratio < 1.25) & (aligned > 0)
    return DepthErrors(((aligned - g).abs() / g).mean().item(), inside.double().mean().item())


def align_points(points: Tensor, truth: Tensor) -> Similarity:
    """The similarity that brings points [M, 3] nearest to the truth [M, 3] in least squares (Umeyama 1991).

    With covariance ``U D V^T`` of truth and points, the rotation is ``U S V^T`` with ``S = diag(1, 1, +-1)``, the scale
    ``trace(D S) / variance(points)``. Points that all coincide keep scale and rotation 1. Raises RequestError for
    shapes that differ.
    """
    if points.shape != truth.shape or points.ndim != 2 or points.shape[-1] != 3 or not len(points):
        raise RequestError(f"points must be two [M, 3] sets, got {list(points.shape)} and {list(truth.shape)}")
    p, g = points.double(), truth.double()
    mean_p, mean_g = p.mean(0), g.mean(0)
    variance = (p - mean_p).square().sum(-1).mean()
    left, spread, right = torch.linalg.svd((g - mean_g).mT @ (p - mean_p) / len(p))
    signs = torch.ones_like(spread)
    signs[-1] = torch.linalg.det(left @ right).sign()
    rotation = left @ (signs[:, None] * right)
    if variance <= 1e-18:
        rotation, scale = torch.eye(3, dtype=torch.float64), variance.new_ones(())
    else:
        scale = (spread * signs).sum() / variance
    return Similarity(scale, rotation, mean_g - scale * rotation @ mean_p)


def pose_errors(poses: Tensor, truth: Tensor) -> PoseErrors:
    """Errors of camera-to-world matrices [N, 4, 4] after aligning the camera centres by a similarity."""
    aligned = align_points(poses[:, :3, 3], truth[:, :3, 3]).apply_to_poses(poses)
    true = truth.double()
    ate = (aligned[:, :3, 3] - true[:, :3, 3]).norm(dim=-1).square().mean().sqrt().item()
    if len(poses) < 2:
        return PoseErrors(ate, 0.0, 0.0)
    step = invert_rigid(aligned[:-1]) @ aligned[1:]
    difference = invert_rigid(invert_rigid(true[:-1]) @ true[1:]) @ step
    length = difference[:, :3, 3].norm(dim=-1)
    angle = rotation_degrees(difference[:, :3, :3])
    return PoseErrors(ate, length.square().mean().sqrt().item(), angle.square().mean().sqrt().item())


def rotation_degrees(rotation: Tensor) -> Tensor:
    """Angles [...] in degrees of rotations [..., 3, 3], accurate near 0.

    From ``|R - I|^2 = 8 sin^2(a / 2)`` (Frobenius) for a rotation by ``a``.
    """
    distance = (rotation - torch.eye(3, dtype=rotation.dtype, device=rotation.device)).flatten(-2).norm(dim=-1)
    return torch.rad2deg(2 * torch.asin((distance / 8**0.5).clamp(max=1.0)))


def cloud_errors(points: Tensor, truth: Tensor) -> CloudErrors:
    """Errors of a cloud [M, 3] against another [K, 3], both in one frame; align first with :func:`align_points`.

    The distance of every pair is computed, in parts of bounded memory; thin out clouds beyond 100,000 points. Raises
    RequestError for an empty cloud.
    """
    if not len(points) or not len(truth):
        raise RequestError("a cloud has no points, so there is no distance to it")
    p, g = points.float(), truth.float()
    return CloudErrors(_mean_nearest(p, g), _mean_nearest(g, p))


def _mean_nearest(points: Tensor, others: Tensor) -> float:
    nearest = [
        torch.cdist(points[start : start + _POINTS_AT_ONCE], others).amin(dim=1)
        for start in range(0, len(points), _POINTS_AT_ONCE)
    ]
    return torch.cat(nearest).double().mean().item()


def world_points(local_points: Tensor, poses: Tensor) -> Tensor:
    """Points [N, H, W, 3] of cameras [N, 4, 4] in the common frame."""
    return apply_transform(poses[:, None, None], local_points)
