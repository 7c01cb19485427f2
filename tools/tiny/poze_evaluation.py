"""How true to a known room a generated camera move is: the tiny Pi3 as the judge, and the rendered truth.

``python -m tools.tiny.poze_train --stage evaluate`` uses this. Everything here was fixed before the first training run:
the 60 held-back scenes (`EVALUATION_SEEDS`), the metrics, the sampler settings, the resampling. The question is
whether "point_error" is lower with guidance than without; the interval of the paired difference answers it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from pi3 import Pi3
from pi3.camera import apply_transform, invert_rigid
from pi3.evaluation import align_points, world_points
from poze import TINY_POZE
from tools.tiny.poze_data import pi3_images
from tools.tiny.room_clips import SIZE, RoomClip, resized
from tools.tiny.rooms import camera_rays
from wan_core.metrics import interval

JUDGED_FRAMES = (0, 4, 8, 12, 16)
METRICS = {
    "point_error": "mean distance in metres of Pi3's points to the true ones, after one similarity for the whole clip",
    "reprojection": "mean distance in pixels (64 at most) of where Pi3's points of the first frame appear in the later "
    "frames' Pi3 cameras from where the true points appear in the true cameras; only what is visible there",
    "warp": "mean difference in 0..255 of a true point's colour in the first frame from that in the generated later "
    "frames, at its true place",
    "psnr": "dB of the frames after the first against the rendered ones",
}
SETTINGS = TINY_POZE.sampling
_DEPTH_TOLERANCE = 0.05


def shown_interval(values: Sequence[float]) -> str:
    """The mean of two scenes or more and its 95 % bootstrap interval; the same in every run."""
    found = interval(values)
    if found is None or found.low is None or found.high is None:
        raise ValueError("an interval is over two scenes or more")
    return f"{found.mean:.3f} [{found.low:.3f}, {found.high:.3f}]"


@torch.inference_mode()
def score_clip(video: NDArray[np.uint8], clip: RoomClip, pi3: Pi3) -> dict[str, float]:
    """The METRICS of a video [17, 64, 64, 3] that should show ``clip``."""
    frames = list(JUDGED_FRAMES)
    output = pi3(pi3_images(video[frames], pi3)[None])
    points, cameras = output.points[0], output.camera_poses[0]
    height, width = points.shape[1:3]
    poses = torch.from_numpy(clip.poses[frames])
    rays = torch.from_numpy(camera_rays(resized(clip.intrinsics, height, width), height, width))
    depth = torch.from_numpy(np.stack([clip.depth(frame, height, width) for frame in frames]))
    truth = world_points(rays * depth[..., None], poses)
    aligned = align_points(points.reshape(-1, 3), truth.reshape(-1, 3)).apply(points.reshape(-1, 3))
    error = video[1:].astype(np.float32) - clip.video[1:].astype(np.float32)
    true_places, visible = _visible_places(clip, truth[0].reshape(-1, 3), poses[1:])
    places = _places(points[0].reshape(-1, 3), cameras[1:], clip.intrinsics)
    distance = (places - true_places).norm(dim=-1).nan_to_num(SIZE, SIZE, SIZE).clamp(max=SIZE)
    return {
        "point_error": (aligned - truth.reshape(-1, 3)).norm(dim=-1).mean().item(),
        "reprojection": distance[visible].mean().item(),
        "warp": _colour_difference(video, (height, width), true_places, visible),
        "psnr": float(10 * np.log10(255**2 / max(1e-3, np.mean(error**2)))),
    }


def _places(points: Tensor, poses: Tensor, intrinsics: NDArray[np.float32]) -> Tensor:
    """Pixels [K, M, 2] where world points [M, 3] appear in cameras [K, 4, 4]; infinite behind them."""
    local = apply_transform(invert_rigid(poses)[:, None], points[None])
    focal = torch.from_numpy(intrinsics.diagonal()[:2].copy())
    centre = torch.from_numpy(intrinsics[:2, 2].copy())
    places = local[..., :2] / local[..., 2:] * focal + centre
    return torch.where(local[..., 2:] > 1e-3, places, torch.inf)


def _visible_places(clip: RoomClip, points: Tensor, poses: Tensor) -> tuple[Tensor, Tensor]:
    """True pixels [K, M, 2] of points, and whether [K, M] they are inside and nothing stands before them."""
    places = _places(points, poses, clip.intrinsics)
    distance = apply_transform(invert_rigid(poses)[:, None], points[None])[..., 2]
    inside = ((places >= 0) & (places < SIZE)).all(dim=-1)
    index = torch.where(inside[..., None], places, 0).long()
    seen = []
    for row, frame in enumerate(JUDGED_FRAMES[1:]):
        depth = torch.from_numpy(clip.depth(frame, SIZE, SIZE))
        there = depth[index[row, :, 1], index[row, :, 0]]
        seen.append((distance[row] - there).abs() < _DEPTH_TOLERANCE * distance[row])
    return places, inside & torch.stack(seen)


def _colour_difference(video: NDArray[np.uint8], size: tuple[int, int], places: Tensor, visible: Tensor) -> float:
    """The metric "warp", for points that are the first frame's pixels at ``size``."""
    frames = torch.from_numpy(video[list(JUDGED_FRAMES)].astype(np.float32)).permute(0, 3, 1, 2)
    first = functional.interpolate(frames[:1], size=size, mode="bilinear", align_corners=False)
    colours = first[0].flatten(1).T
    grid = torch.where(visible[..., None], places / SIZE * 2 - 1, 0)
    there = functional.grid_sample(frames[1:], grid[:, None], align_corners=False, padding_mode="border")
    return (there[:, :, 0].transpose(1, 2) - colours).abs()[visible].mean().item()


def table(scores: Mapping[str, Sequence[Mapping[str, float]]], pairs: Sequence[tuple[str, str]]) -> list[str]:
    """Markdown rows: mean and interval of every metric per arm, then those of the paired differences of ``pairs``."""
    rows = ["| | " + " | ".join(METRICS) + " |", "|---" * (len(METRICS) + 1) + "|"]
    for name, values in scores.items():
        cells = [shown_interval([scene[metric] for scene in values]) for metric in METRICS]
        rows.append(f"| {name} | " + " | ".join(cells) + " |")
    for first, second in pairs:
        both = list(zip(scores[first], scores[second], strict=True))
        cells = [shown_interval([a[metric] - b[metric] for a, b in both]) for metric in METRICS]
        rows.append(f"| {first} minus {second} | " + " | ".join(cells) + " |")
    return rows
