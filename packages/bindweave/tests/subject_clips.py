"""Clips with captions, pictures of their subjects and states, small enough to train on in seconds."""

from pathlib import Path

import torch
from PIL import Image, ImageDraw
from safetensors.torch import save_file

from bindweave.steps import digest_of
from wan_core.media import write_video

SIZE = (32, 48)
FRAMES = 5


def write_clips(folder: Path, width: int, count: int = 3) -> Path:
    """Clip 0 has one plain picture, the others two, of which one is cut out by a mask."""
    folder.mkdir(parents=True)
    for number in range(count):
        generator = torch.Generator().manual_seed(number)
        still = torch.rand(3, 1, SIZE[1], SIZE[0], generator=generator) * 2 - 1
        write_video(iter([still.expand(-1, FRAMES, -1, -1)]), folder / f"{number}.mp4", fps=16)
        caption = f"subject {number} walks"
        (folder / f"{number}.txt").write_text(caption)
        write_states(folder / f"{number}.states.safetensors", 5 + number, width, caption, seed=number)
        if number == 0:
            Image.new("RGB", (40, 30), (200, 40, 60)).save(folder / "0.references.png")
            continue
        write_states(folder / f"{number}.states_empty.safetensors", 3, width, "", seed=10 + number)
        pictures = folder / f"{number}.references"
        pictures.mkdir()
        Image.new("RGB", (30, 40), (20, 40 * number, 160)).save(pictures / "a.png")
        Image.new("RGB", (30, 40), (20, 200, 60)).save(pictures / "b.jpg")
        square((30, 40), (5, 5, 25, 30)).save(pictures / "b.mask.png")
    return folder


def write_states(path: Path, length: int, width: int, caption: str, seed: int = 0) -> Path:
    """States as ``bindweave extract`` writes them."""
    states = torch.randn(1, length, width, generator=torch.Generator().manual_seed(seed))
    save_file({"hidden_states": states}, path, metadata={"prompt_sha256": digest_of(caption)})
    return path


def square(size: tuple[int, int], box: tuple[int, int, int, int]) -> Image.Image:
    """A mask that is white in a box, its last row and column left out."""
    mask = Image.new("L", size)
    ImageDraw.Draw(mask).rectangle((box[0], box[1], box[2] - 1, box[3] - 1), fill=255)
    return mask
