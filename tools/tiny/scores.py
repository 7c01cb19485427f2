"""Scores of the tiny models by image analysis alone, on held-back combinations of the tiny world.

No learned judge: `tools.tiny.detect` looks at the pixels, and PSNR compares with what was drawn.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import torch

from tools.tiny.detect import detect
from tools.tiny.world import Clip, Video, evaluation_clips
from wan_core.media import contact_sheet, write_image

PROMPTS = 200
MILESTONE = {"color": 95.0, "background": 95.0, "shape": 75.0, "motion": 75.0, "all": 55.0}
VAE_MILESTONE = {"psnr": 28.0, "worst_motion_psnr": 26.0, "shape": 95.0}


def psnr(first: Video, second: Video) -> float:
    """Peak signal-to-noise ratio in dB of two uint8 arrays of one shape; equal arrays count as 99 dB."""
    error = float(np.mean((first.astype(np.float32) - second.astype(np.float32)) ** 2))
    return 99.0 if error == 0 else min(99.0, float(10 * np.log10(255.0**2 / error)))


def score_videos(videos: Iterable[Video], clips: Sequence[Clip]) -> dict[str, float]:
    """Percentage of videos in which each attribute of the described combination is found, and all of them."""
    totals: dict[str, int] = defaultdict(int)
    count = 0
    for video, clip in zip(videos, clips, strict=True):
        count += 1
        for name, right in detect(video).agrees(clip.combination).items():
            totals[name] += right
    return {name: round(100 * total / count, 1) for name, total in totals.items()}


def score_by(videos: Sequence[Video], clips: Sequence[Clip], attribute: str) -> dict[str, float]:
    """Percentage right in ``attribute``, for each of its values: which motions or shapes are the weak ones."""
    groups: dict[str, list[bool]] = defaultdict(list)
    for video, clip in zip(videos, clips, strict=True):
        groups[getattr(clip.combination, attribute)].append(detect(video).agrees(clip.combination)[attribute])
    return {name: round(100 * float(np.mean(right)), 1) for name, right in sorted(groups.items())}


def score_vae(reconstruct: Callable[[Video], Video], clips: Sequence[Clip]) -> dict[str, float]:
    """Reconstruction of held-back clips: PSNR in dB (mean, per motion, worst motion) and what is still recognised."""
    videos = [reconstruct(clip.video) for clip in clips]
    ratios: dict[str, list[float]] = defaultdict(list)
    for video, clip in zip(videos, clips, strict=True):
        ratios[clip.combination.motion].append(psnr(video, clip.video))
    by_motion = {f"psnr_{name}": round(float(np.mean(values)), 2) for name, values in sorted(ratios.items())}
    report = {"psnr": round(float(np.mean([value for values in ratios.values() for value in values])), 2)}
    return report | by_motion | {"worst_motion_psnr": min(by_motion.values())} | score_videos(videos, clips)


def score_continuations(videos: Sequence[Video], clips: Sequence[Clip]) -> dict[str, float]:
    """Clips made from the first frame of held-back clips: PSNR of that frame in dB, and the attributes in percent."""
    kept = [psnr(video[:1], clip.video[:1]) for video, clip in zip(videos, clips, strict=True)]
    start = {"first_frame_psnr": round(float(np.mean(kept)), 2), "worst_first_frame_psnr": round(min(kept), 2)}
    return start | score_videos(videos, clips)


def write_sheet(videos: Sequence[Video], path: Path, *, frames: int = 5) -> None:
    """Write an image of ``frames`` frames of each video, two videos a row, twice as large as they are."""
    chosen = [video[np.linspace(0, len(video) - 1, frames).round().astype(int)] for video in videos]
    cells = torch.from_numpy(np.concatenate(chosen)).permute(0, 3, 1, 2)
    write_image(contact_sheet(cells, 2 * frames, cell_width=2 * cells.shape[-1]), path)


def held_back_clips(count: int = PROMPTS) -> list[Clip]:
    """The clips that every evaluation uses: the first ``count`` of the held-back sequence."""
    return list(evaluation_clips(count))
