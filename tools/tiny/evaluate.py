"""Evaluation of the tiny models by image analysis alone, on held-back combinations of the tiny world.

No learned judge: `tools.tiny.detect` looks at the pixels, and PSNR compares with what was drawn. Run
``python -m tools.tiny.evaluate --help`` for the commands.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tools.tiny.detect import detect
from tools.tiny.world import Clip, evaluation_clips

Video = NDArray[np.uint8]
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


def contact_sheet(videos: Sequence[Video], path: Path, *, columns: int = 2, frames: int = 5, scale: int = 2) -> None:
    """Write a picture of ``frames`` frames of each video, one video a row in ``columns`` columns."""
    strips = []
    for video in videos:
        chosen = np.linspace(0, len(video) - 1, frames).round().astype(int)
        strip = np.concatenate(list(video[chosen]), axis=1)
        strips.append(np.pad(strip, ((0, 2), (0, 6), (0, 0)), constant_values=255))
    while len(strips) % columns:
        strips.append(np.full_like(strips[0], 255))
    rows = len(strips) // columns
    sheet = np.concatenate([np.concatenate(strips[c * rows : (c + 1) * rows]) for c in range(columns)], axis=1)
    image = Image.fromarray(sheet)
    image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST).save(path)


def held_back_clips(count: int = PROMPTS) -> list[Clip]:
    """The clips that every evaluation uses: the first ``count`` of the held-back sequence."""
    return list(evaluation_clips(count))


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("world", "vae", "t2v", "ti2v", "i2v", "moe", "table"))
    parser.add_argument("--count", type=int, default=PROMPTS, help="held-back clips")
    parser.add_argument("--weights", type=Path, help="text-to-video weights other than the bundled ones")
    parser.add_argument("--solver", default="unipc")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--shift", type=float, default=3.0)
    parser.add_argument("--sheet", type=Path, help="write a contact sheet of the first 24 clips here")
    return parser.parse_args()


def evaluate_models(arguments: argparse.Namespace, clips: list[Clip]) -> Iterable[dict[str, Any]]:
    """Yield the scores of the bundled models, one dict for each setting."""
    import torch

    from tools.tiny import dit_stage, train, vae_stage, weights

    torch.set_num_threads(1)
    vae, encoder = train.load_frozen()
    if arguments.what == "vae":
        yield score_vae(vae_stage.reconstructor(vae), clips)
        return
    dit, low_noise = load_networks(arguments.what)
    if arguments.weights is not None:
        dit.load_state_dict(weights.read_tensors(arguments.weights))
    settings = [(arguments.solver, arguments.steps, arguments.guidance)]
    if arguments.what == "table":
        settings = [
            (solver, steps, arguments.guidance) for solver in ("euler", "unipc", "dpm++") for steps in (4, 8, 20, 50)
        ]
        settings += [("unipc", 20, guidance) for guidance in (1.0, 2.0, 4.0, 6.0)]
    for solver, steps, guidance in settings:
        videos = dit_stage.generate(
            *(dit, vae, encoder, clips),
            solver=solver,
            steps=steps,
            guidance_scale=guidance,
            flow_shift=arguments.shift,
            from_first_frame=arguments.what == "ti2v",
            low_noise=low_noise,
        )
        score = score_continuations if arguments.what in ("ti2v", "i2v") else score_videos
        yield {"solver": solver, "steps": steps, "guidance": guidance} | score(videos, clips)
        if arguments.sheet is not None:
            contact_sheet(videos[:24], arguments.sheet)


def load_networks(what: str) -> tuple[Any, Any]:
    """The bundled network for a kind of evaluation, and the one that takes over at low noise, if there is one."""
    from wan_core.loading import RuntimeOptions, load_pipeline
    from wan_core.tasks import Experts

    name = {"table": "tiny-t2v"}.get(what, f"tiny-{what}")
    dit: Any = load_pipeline(name, options=RuntimeOptions(device="cpu", dtype="float32")).components.dit
    return (dit.high.module(), dit.low.module()) if isinstance(dit, Experts) else (dit.module(), None)


def main() -> None:
    """Print scores as JSON lines."""
    arguments = parse_arguments()
    clips = held_back_clips(arguments.count)
    if arguments.what == "world":
        reports: Iterable[dict[str, Any]] = [score_videos([clip.video for clip in clips], clips)]
    else:
        reports = evaluate_models(arguments, clips)
    for report in reports:
        sys.stdout.write(json.dumps(report) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
