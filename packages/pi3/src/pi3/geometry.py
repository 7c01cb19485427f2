"""Pixels, rays and intrinsics of pinhole cameras. OpenCV axes: x right, y down, z forward."""

import torch
from torch import Tensor

from wan_core import RequestError


def pixel_centres(height: int, width: int, device: torch.device | None = None) -> Tensor:
    """Homogeneous pixel centres (u + 0.5, v + 0.5, 1), float32 [H, W, 3]."""
    v = torch.arange(height, dtype=torch.float32, device=device) + 0.5
    u = torch.arange(width, dtype=torch.float32, device=device) + 0.5
    rows, columns = torch.meshgrid(v, u, indexing="ij")
    return torch.stack([columns, rows, torch.ones_like(rows)], dim=-1)


def slopes_of_intrinsics(intrinsics: Tensor, height: int, width: int) -> Tensor:
    """Ray slopes (x / z, y / z) of all pixels, [..., H, W, 2], from intrinsics [..., 3, 3] in pixels."""
    inverse = torch.linalg.inv(intrinsics.float())
    pixels = pixel_centres(height, width, intrinsics.device)
    return torch.einsum("...ij,hwj->...hwi", inverse, pixels)[..., :2]


def intrinsics_of_rays(rays: Tensor, *, centred: bool = False, ndc: bool = False) -> Tensor:
    """Pinhole intrinsics [..., 3, 3] that fit rays [..., H, W, 3] best.

    Per axis the line ``pixel = f * slope + c`` is fitted by least squares, with pixels numbered 0 .. W - 1 and
    0 .. H - 1, or spread over -1 .. 1 with ``ndc``. ``centred`` fixes the principal point at the middle of that range.
    Raises RequestError for maps of fewer than two pixels a side, or rays without slope.
    """
    height, width = rays.shape[-3:-1]
    if min(height, width) < 2:
        raise RequestError(f"intrinsics need rays of at least 2x2 pixels, got {height}x{width}")
    slopes = (rays[..., :2] / rays[..., 2:].abs()).double()
    axes = []
    for axis, count in ((0, width), (1, height)):
        slope = slopes[..., axis]
        numbers = torch.arange(count, dtype=torch.float64, device=rays.device)
        if ndc:
            numbers = numbers * 2 / (count - 1) - 1
        pixels = numbers.expand_as(slope) if axis == 0 else numbers[:, None].expand_as(slope)
        centre = pixels.new_tensor(0.0 if ndc else (count - 1) / 2) if centred else None
        axes.append(_fit_line(slope.flatten(-2), pixels.flatten(-2), centre))
    (fx, cx), (fy, cy) = axes
    zero, one = torch.zeros_like(fx), torch.ones_like(fx)
    rows = [torch.stack(row, dim=-1) for row in ((fx, zero, cx), (zero, fy, cy), (zero, zero, one))]
    return torch.stack(rows, dim=-2).to(rays.dtype)


def _fit_line(slope: Tensor, pixels: Tensor, centre: Tensor | None) -> tuple[Tensor, Tensor]:
    """Focal length and centre of ``pixels = f * slope + c``, with c given or free."""
    if centre is not None:
        focal = (slope * (pixels - centre)).sum(-1) / slope.square().sum(-1)
        return focal, centre.expand_as(focal)
    mean_slope, mean_pixel = slope.mean(-1, keepdim=True), pixels.mean(-1, keepdim=True)
    deviation = slope - mean_slope
    focal = (deviation * (pixels - mean_pixel)).sum(-1) / deviation.square().sum(-1)
    return focal, mean_pixel[..., 0] - focal * mean_slope[..., 0]


def project(points: Tensor, intrinsics: Tensor) -> tuple[Tensor, Tensor]:
    """Pixel coordinates [..., 2] and depth [...] of camera-frame points [..., 3]; ``intrinsics`` broadcast [3, 3].

    The centre of the first pixel is (0.5, 0.5).
    """
    image = points @ intrinsics.mT
    depth = image[..., 2]
    return image[..., :2] / depth[..., None], depth
