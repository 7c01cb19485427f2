"""What may be known about the views beforehand: depth, rays or intrinsics, poses, each for some views or all.

The scales follow the Pi3X reference (github.com/yyfz/Pi3); the code is our own.
"""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from pi3.camera import invert_rigid
from pi3.geometry import slopes_of_intrinsics
from wan_core.errors import RequestError

STATIC_TRANSLATION = 2e-2
"""Below this every camera counts as standing still, and translations are not rescaled."""

_EPS = 1e-8
_RAY_EPS = 1e-6


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """Known geometry of B sets of N views of H x W pixels; any subset may be given.

    ``depths`` [B, N, H, W] with 0 where unknown, ``intrinsics`` [B, N, 3, 3] in pixels or ``rays`` [B, N, H, W, 3]
    (rays win when both are there), ``poses`` [B, N, 4, 4] camera-to-world. Each mask [B, N] names the views that a
    condition holds for; by default all, where the condition is given.
    """

    depths: Tensor | None = None
    intrinsics: Tensor | None = None
    rays: Tensor | None = None
    poses: Tensor | None = None
    depth_mask: Tensor | None = None
    ray_mask: Tensor | None = None
    pose_mask: Tensor | None = None

    def check(self, batch: int, views: int, height: int, width: int) -> None:
        """Raise RequestError for a tensor whose shape does not fit the images."""
        shapes = {
            "depths": (batch, views, height, width),
            "intrinsics": (batch, views, 3, 3),
            "rays": (batch, views, height, width, 3),
            "poses": (batch, views, 4, 4),
            "depth_mask": (batch, views),
            "ray_mask": (batch, views),
            "pose_mask": (batch, views),
        }
        for name, shape in shapes.items():
            tensor = getattr(self, name)
            if tensor is not None and tuple(tensor.shape) != shape:
                raise RequestError(f"{name} must be {list(shape)} for these images, got {list(tensor.shape)}")


@dataclass(frozen=True)
class PreparedConditions:
    """Conditions in the network's own scale: ``depths`` [B, N, H, W], ray ``slopes`` [B, N, H, W, 2], ``poses``
    [B, N, 4, 4] relative to the first view, and a bool mask [B, N] for each."""

    depths: Tensor
    slopes: Tensor
    poses: Tensor
    depth_mask: Tensor
    ray_mask: Tensor
    pose_mask: Tensor

    @classmethod
    def of(cls, conditions: Conditions, images: Tensor) -> Self:
        """Fill in, normalise and mask the conditions of images [B, N, 3, H, W], in float32 on the images' device.

        Depth is divided by its mean over the set. Translations are divided by the same, and in sets whose depth is not
        used by their own mean distance to the first view. Raises RequestError for shapes that do not fit.
        """
        batch, views, _, height, width = images.shape
        conditions.check(batch, views, height, width)
        depths, slopes, poses = _filled(conditions, images)
        depth_mask = _mask(conditions.depth_mask, conditions.depths is not None, images)
        has_rays = conditions.rays is not None or conditions.intrinsics is not None
        ray_mask = _mask(conditions.ray_mask, has_rays, images)
        pose_mask = _mask(conditions.pose_mask, conditions.poses is not None, images)
        # Poses are relative, so one alone says nothing.
        pose_mask = pose_mask & (pose_mask.sum(dim=1, keepdim=True) != 1)
        scale = _mean_depth(depths)
        depths = depths / (scale[:, None, None, None] + _EPS)
        relative = invert_rigid(poses[:, :1]) @ poses
        relative = _scaled(relative, scale)
        if views > 1:
            distance = relative[:, 1:, :3, 3].norm(dim=-1)
            is_moving = distance.amax(dim=1) >= STATIC_TRANSLATION
            rescale = is_moving & ~depth_mask.any(dim=1)
            factor = torch.where(rescale, distance.mean(dim=1) + _EPS, 1.0)
            relative, depths = _scaled(relative, factor), depths / factor[:, None, None, None]
        return cls(depths, slopes, relative, depth_mask, ray_mask, pose_mask)


def _filled(conditions: Conditions, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    batch, views, _, height, width = images.shape
    place = images.new_zeros(0, dtype=torch.float32)
    depths = place.new_zeros(batch, views, height, width)
    slopes = place.new_zeros(batch, views, height, width, 2)
    poses = torch.eye(4, device=images.device).expand(batch, views, 4, 4)
    if conditions.depths is not None:
        depths = conditions.depths.to(place)
    if conditions.rays is not None:
        rays = conditions.rays.to(place)
        slopes = rays[..., :2] / (rays[..., 2:] + _RAY_EPS)
    elif conditions.intrinsics is not None:
        slopes = slopes_of_intrinsics(conditions.intrinsics.to(place), height, width)
    if conditions.poses is not None:
        poses = conditions.poses.to(place)
    return depths, slopes, poses


def _mask(given: Tensor | None, default: bool, images: Tensor) -> Tensor:
    if given is None:
        return torch.full(images.shape[:2], default, device=images.device)
    return given.to(device=images.device, dtype=torch.bool)


def _mean_depth(depths: Tensor) -> Tensor:
    """Mean of the positive depths of each set [B]; 1 where there is none."""
    valid = depths > 0
    count = valid.sum(dim=(1, 2, 3))
    total = torch.where(valid, depths, 0.0).sum(dim=(1, 2, 3))
    return torch.where(count > 0, total / count.clamp(min=1), 1.0)


def _scaled(poses: Tensor, factor: Tensor) -> Tensor:
    """Poses [B, N, 4, 4] with translations divided by a factor [B]."""
    translation = poses[..., :3, 3:] / factor[:, None, None, None]
    upper = torch.cat([poses[..., :3, :3], translation], dim=-1)
    return torch.cat([upper, poses[..., 3:, :]], dim=-2)
