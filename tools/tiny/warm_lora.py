"""The LoRA of the docs and tests: it warms the colours of what the tiny models make. Computed, not trained.

How the latents of a clip change when its pixels get warmer is nearly the same for every clip: their mean change, taken
off the velocity by the bias of the last layer, moves what is sampled by as much. So the file holds one tensor, under
the name that lightx2v gives to changes of a bias.

    python -m tools.tiny.warm_lora tests/data/tiny_warm.safetensors
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

import torch
from torch import Tensor

from tools.tiny.family import DIT, load_frozen
from tools.tiny.vae_stage import to_pixels
from tools.tiny.world import training_clip
from wan_core.checkpoints import MemorySource, write_file

NAME = "diffusion_model.head.head.diff_b"
CLIPS = 24
WARMER = (0.5, 0.0, -0.5)
"""What red, green and blue gain, on the scale of -1 to 1."""


@torch.no_grad()
def latent_change() -> Tensor:
    """Mean change [C] of normalised latents."""
    vae, _ = load_frozen()
    shift = torch.tensor(WARMER).view(1, 3, 1, 1, 1)
    changes = []
    for seed in range(CLIPS):
        video = to_pixels([training_clip(seed).video])
        changes.append((vae.encode((video + shift).clamp(-1, 1)) - vae.encode(video)).mean(dim=(0, 2, 3, 4)))
    return torch.stack(changes).mean(dim=0)


def main() -> None:
    """Write the file named on the command line."""
    cells = math.prod(DIT.patch_size)  # of a token, its channels innermost
    change = {NAME: -latent_change().repeat(cells).half()}
    metadata = {
        "recipe": f"tools/tiny/warm_lora.py, {CLIPS} clips",
        "base_model": "wan tiny",
        "license": "Apache-2.0",
    }
    write_file(MemorySource(change, metadata=metadata), Path(sys.argv[1]))


if __name__ == "__main__":
    main()
