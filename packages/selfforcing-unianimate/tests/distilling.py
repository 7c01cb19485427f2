"""A tiny student that knows poses, its pose encoder, and targets of random latents."""

import json
from importlib.resources import files
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from selfforcing_unianimate import CausalDiT, CausalDiTConfig
from selfforcing_unianimate.distillation.targets import COMMAND, VERSION
from selfforcing_unianimate.packed_pixels import pack_pixels
from selfforcing_unianimate.pose_config import PoseConfig
from selfforcing_unianimate.pose_encoder import PoseEncoder
from wan_core.training import write_cache

POSE_DIM = 24
SEEN = [1000.0, 940.0, 830.0, 620.0]
STEPS = [1000.0, 937.5, 833.3333, 625.0]
TINY = Path(str(files("wan_core") / "weights" / "tiny"))


CONFIG = CausalDiTConfig(
    in_dim=24, out_dim=24, dim=32, ffn_dim=64, num_heads=2, num_layers=3, freq_dim=16, text_dim=96, text_len=24,
    patch_size=(1, 1, 1), pose_dim=POSE_DIM,
)  # fmt: skip


def write_student(path: Path, seed: int = 0) -> Path:
    """The weights of a causal network with a projection of poses; returns the path."""
    torch.manual_seed(seed)
    network = CausalDiT(CONFIG)
    torch.nn.init.normal_(network.get_parameter("pose_proj.weight"))
    config = json.dumps({"num_heads": CONFIG.num_heads, "text_len": CONFIG.text_len, "eps": CONFIG.eps})
    save_file(network.state_dict(), path, {"format": "pt", "config": config})
    return path


def write_encoder(path: Path, width: int = POSE_DIM) -> Path:
    """A pose encoder of a width, random; returns the path."""
    torch.manual_seed(1)
    encoder = PoseEncoder(PoseConfig(hidden=4, token_dim=width))
    torch.nn.init.normal_(encoder.dwpose_embedding[12].weight)
    save_file(encoder.state_dict(), path)
    return path


def write_targets(
    folder: Path, *, frames: int = 3, count: int = 4, poses: bool = True, leave_out: str = "", **settings: object
) -> Path:
    """Targets for videos of ``frames`` latent frames of 2x3; returns the folder."""

    def encode(number: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(number)
        latents = torch.randn(24, frames, 2, 3, generator=generator)
        tensors = {
            "latents": latents,
            "states": latents + torch.randn(4, 24, frames, 2, 3, generator=generator),
            "context": torch.randn(3 + number, 96, generator=generator),
            "empty": torch.zeros(1, 96),
            "channels": torch.randn(28, frames, 2, 3, generator=generator),
        }
        if poses:
            pixels = torch.randint(0, 256, (3, 4 * frames - 3, 32, 48), generator=generator, dtype=torch.uint8)
            tensors["motion"] = pack_pixels(pixels)
        return {name: value for name, value in tensors.items() if name != leave_out}

    made_with = {
        "made_by": COMMAND,
        "version": VERSION,
        "timesteps": STEPS,
        "seen": SEEN,
        "prompts": ["a person is dancing"] * count,
        "seeds": list(range(count)),
        "settings_hash": f"{frames}/{poses}",
        **settings,
    }
    common = {"negative": torch.ones(2, 96)}
    return write_cache(folder, count, encode, made_with, common=lambda: common)
