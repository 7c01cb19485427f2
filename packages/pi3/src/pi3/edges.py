"""Which pixels of a point map to keep: confidence, jumps of depth, and creases of the surface.

Pixels on a depth edge mix foreground and background; they show as streaks in a point cloud. The rules and thresholds
are those of the Pi3 reference (arXiv:2507.13347) and of MoGe (arXiv:2410.19115); the code is our own.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional

CONFIDENCE = 0.1
DEPTH_RTOL = 0.03
NORMAL_DEGREES = 5.0


def _pool_max(maps: Tensor, size: int) -> Tensor:
    """Largest value in a ``size`` x ``size`` window around each pixel; the border counts as minus infinity."""
    flat = maps.reshape(-1, 1, *maps.shape[-2:])
    return functional.max_pool2d(flat, size, stride=1, padding=size // 2).reshape(maps.shape)


def depth_edges(
    depth: Tensor,
    *,
    atol: float | None = None,
    rtol: float | None = None,
    kernel_size: int = 3,
    mask: Tensor | None = None,
) -> Tensor:
    """Where depth [..., H, W] varies within the window by more than ``atol``, or ``rtol`` times the depth.

    The variation is the largest minus the smallest value of the window; pixels where ``mask`` is False do not take
    part in it. Returns bool [..., H, W].
    """
    infinity = torch.full_like(depth, -math.inf)
    highest = depth if mask is None else torch.where(mask, depth, infinity)
    lowest = -depth if mask is None else torch.where(mask, -depth, infinity)
    difference = _pool_max(highest, kernel_size) + _pool_max(lowest, kernel_size)
    edge = torch.zeros_like(depth, dtype=torch.bool)
    if atol is not None:
        edge |= difference > atol
    if rtol is not None:
        edge |= (difference / depth).nan_to_num(0.0) > rtol
    return edge


def normals_of_points(points: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Surface normals [..., H, W, 3] of a point map and where they exist, bool [..., H, W].

    Each pixel takes the mean of the four unit normals between neighbouring edges (up-left, left-down, down-right,
    right-up) whose three points are valid; ``mask`` says which points are (default: all).
    """
    valid = torch.ones_like(points[..., 0], dtype=torch.bool) if mask is None else mask
    padded = functional.pad(points, (0, 0, 1, 1, 1, 1))
    present = functional.pad(valid, (1, 1, 1, 1))
    offsets = {"up": (0, 1), "left": (1, 0), "down": (2, 1), "right": (1, 2)}
    height, width = valid.shape[-2:]

    edges, there = {}, {}
    for name, (row, column) in offsets.items():
        edges[name] = padded[..., row : row + height, column : column + width, :] - points
        there[name] = present[..., row : row + height, column : column + width] & valid
    total, any_valid = torch.zeros_like(points), torch.zeros_like(valid)
    for first, second in (("up", "left"), ("left", "down"), ("down", "right"), ("right", "up")):
        both = there[first] & there[second]
        normal = functional.normalize(torch.linalg.cross(edges[first], edges[second]), dim=-1, eps=1e-12)
        total = total + torch.where(both[..., None], normal, 0.0)
        any_valid = any_valid | both
    return functional.normalize(total, dim=-1, eps=1e-12), any_valid


def normal_edges(
    normals: Tensor, *, degrees: float = NORMAL_DEGREES, kernel_size: int = 3, mask: Tensor | None = None
) -> Tensor:
    """Where a normal within the window turns by more than ``degrees`` against its own neighbours.

    ``normals`` [..., H, W, 3] are unit vectors; pixels where ``mask`` is False neither count nor become edges.
    Returns bool [..., H, W].
    """
    shape = normals.shape[:-1]
    reach = kernel_size // 2
    flat = normals.reshape(-1, *normals.shape[-3:]).permute(0, 3, 1, 2)
    valid = torch.ones(shape, dtype=torch.bool, device=normals.device) if mask is None else mask
    windows = functional.pad(flat, (reach,) * 4, mode="replicate")
    there = functional.pad(valid.reshape(-1, 1, *shape[-2:]).to(flat.dtype), (reach,) * 4, mode="replicate") > 0
    height, width = shape[-2:]
    largest = torch.zeros_like(flat[:, 0])
    for row in range(kernel_size):
        for column in range(kernel_size):
            part = (..., slice(row, row + height), slice(column, column + width))
            angle = (flat * windows[part]).sum(1).clamp(-1.0, 1.0).acos()
            largest = torch.maximum(largest, torch.where(there[part][:, 0], angle, 0.0))
    pooled = _pool_max(largest.reshape(shape), kernel_size)
    return (pooled > math.radians(degrees)) & valid


def surface_edges(
    points: Tensor,
    *,
    rtol: float = DEPTH_RTOL,
    degrees: float = NORMAL_DEGREES,
    kernel_size: int = 3,
    mask: Tensor | None = None,
) -> Tensor:
    """Where camera-frame points [..., H, W, 3] have a depth edge and a crease at once; bool [..., H, W].

    Points that are not finite, behind the camera, or where ``mask`` is False do not take part.
    """
    valid = points.isfinite().all(-1) & (points[..., 2] > 0)
    if mask is not None:
        valid = valid & mask
    depth = depth_edges(points[..., 2], rtol=rtol, kernel_size=kernel_size, mask=valid)
    normals, has_normal = normals_of_points(points, valid)
    return depth & normal_edges(normals, degrees=degrees, kernel_size=kernel_size, mask=has_normal)


def keep_mask(
    local_points: Tensor, conf: Tensor, *, confidence: float = CONFIDENCE, rtol: float | None = DEPTH_RTOL
) -> Tensor:
    """Pixels worth keeping in a cloud, bool [..., H, W].

    Kept is what has a probability ``sigmoid(conf)`` above ``confidence`` and lies on no edge. ``local_points`` are
    [..., H, W, 3], ``conf`` [..., H, W] or [..., H, W, 1] logits; ``rtol`` None keeps edges.
    """
    logits = conf[..., 0] if conf.ndim == local_points.ndim else conf
    confident = logits.sigmoid() > confidence
    if rtol is None:
        return confident
    return confident & ~surface_edges(local_points, rtol=rtol, mask=confident)
