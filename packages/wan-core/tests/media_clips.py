"""Smooth test clips and comparisons that the media tests share."""

from pathlib import Path

import torch
from torch import Tensor


def smooth_clip(num_frames: int = 12, height: int = 48, width: int = 64) -> Tensor:
    """Slowly moving colour waves [3, T, H, W] in [-0.9, 0.9]."""
    y, x = torch.meshgrid(torch.arange(height) * 1.0, torch.arange(width) * 1.0, indexing="ij")
    frames = [
        torch.stack([torch.sin((x + 2 * t) / 20), torch.cos((y - t) / 15), torch.sin((x + y) / 30 + t / 8)])
        for t in range(num_frames)
    ]
    return torch.stack(frames, dim=1) * 0.9


def levels_clip(num_frames: int, height: int = 32, width: int = 32) -> Tensor:
    """Frame t is one grey, 8 levels brighter than the one before: tells which frame is which. [3, T, H, W]."""
    levels = (16 + 8 * torch.arange(num_frames)).clamp(max=255) / 127.5 - 1
    return levels.view(1, -1, 1, 1).expand(3, num_frames, height, width)


def levels_of(frames: Tensor) -> list[int]:
    """The indices that :func:`levels_clip` put into uint8 frames [T, 3, H, W]."""
    return [round((float(frame.float().mean()) - 16) / 8) for frame in frames]


def psnr(found: Tensor, expected: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of values in [-1, 1]."""
    return float(-10 * torch.log10((found - expected).square().mean() / 4))


def files_below(folder: Path) -> list[str]:
    """Every name below a folder, folders too."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))
