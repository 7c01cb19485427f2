"""How well videos of the tiny model keep their images: ``measure_mi2v.py [--clips 24] [--steps 20]``.

Images are frames of clips whose combinations were held back from training (`tools.tiny.world`), given as the first N
latent frames, far apart, or as consecutive frames encoded together. Prints a Markdown table of PSNR in dB: mean and
lowest over the clips, of the first image and of the later ones, each by the best of the frames that it fixes.
"""

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tools.tiny.world import Clip, evaluation_clips
from wan_core.loading import load_pipeline
from wan_core.pipeline import Pipeline
from wan_mi2v import AnchorMatch, MI2VRequest, compare_anchors
from wan_mi2v.preview import best_matches

STRIDE, FRAMES = 4, 17


@dataclass(frozen=True)
class Setting:
    """One row: which frames of a clip are the images, and where they are put."""

    name: str
    frames: tuple[int, ...]
    at: tuple[int, ...] | None = None
    joint: bool = False


def settings() -> Iterator[Setting]:
    """The rows: N = 1 to 5 one by one, apart, and together."""
    for count in range(1, FRAMES // STRIDE + 2):
        yield Setting(f"{count}", tuple(STRIDE * index for index in range(count)))
    yield Setting("2, `--at 0,4`", (0, 16), at=(0, 4))
    yield Setting("3, `--at 0,2,4`", (0, 8, 16), at=(0, 2, 4))
    for count in (5, 9, 13, 17):
        yield Setting(f"{count}, `--joint`", tuple(range(count)), joint=True)


def measure(pipeline: Pipeline, clip: Clip, setting: Setting, steps: int, seed: int) -> list[AnchorMatch]:
    """The best frame of every image of one video."""
    request = MI2VRequest(
        prompt=clip.caption,
        pictures=tuple(Image.fromarray(clip.video[frame]) for frame in setting.frames),
        at=setting.at,
        joint=setting.joint,
        num_inference_steps=steps,
        seed=seed,
    )
    inputs = pipeline.plan(request)
    frames = torch.cat([chunk.cpu() for chunk in pipeline.stream(inputs)], dim=1)
    return best_matches(compare_anchors(inputs, frames.transpose(0, 1)))


def row(setting: Setting, found: list[list[AnchorMatch]]) -> str:
    """One line of the table."""
    first = [matches[0].psnr for matches in found]
    later = [match.psnr for matches in found for match in matches[1:]]
    cells = [f"{sum(values) / len(values):.1f} | {min(values):.1f}" if values else "- | -" for values in (first, later)]
    return f"| {setting.name} | {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=24)
    parser.add_argument("--steps", type=int, default=20)
    arguments = parser.parse_args()
    pipeline = load_pipeline("tiny-mi2v")
    clips = list(evaluation_clips(arguments.clips, frames=FRAMES))
    print("| pictures | first, mean | first, lowest | later, mean | later, lowest |\n|---|---|---|---|---|")
    for setting in settings():
        found = [measure(pipeline, clip, setting, arguments.steps, seed) for seed, clip in enumerate(clips)]
        print(row(setting, found), flush=True)


if __name__ == "__main__":
    main()
