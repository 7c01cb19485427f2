"""Write clips of the tiny world as a training folder: ``python -m tools.tiny.clips FOLDER --count 20``.

Each clip is an mp4 file of 17 frames at 64x64 with its caption in a text file of the same name. With ``--negative`` the
colours are turned into their opposites: a world that the bundled models do not know, described in words that they do.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from tools.tiny.family import SAMPLING
from tools.tiny.vae_stage import to_pixels
from tools.tiny.world import training_clip
from wan_core.media import write_video

FIRST_SEED = 50_000  # beyond the clips that the bundled models were trained on


def write_clips(folder: Path, count: int, *, first_seed: int = FIRST_SEED, negative: bool = False) -> Path:
    """Write ``count`` clips and captions, numbered from 000; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        clip = training_clip(first_seed + number)
        frames = to_pixels([clip.video])[0]
        write_video([-frames if negative else frames], folder / f"{number:03d}.mp4", fps=SAMPLING.fps)
        (folder / f"{number:03d}.txt").write_text(clip.caption + "\n")
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--negative", action="store_true")
    arguments = parser.parse_args()
    write_clips(arguments.folder, arguments.count, negative=arguments.negative)


if __name__ == "__main__":
    main()
