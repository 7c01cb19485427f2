"""A tiny BindWeave in the layouts of the real files: Wan's folder, the release's shards, states, pictures."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image
from safetensors.torch import save_file

from bindweave import BINDWEAVE, BindWeaveConfig
from tools.make_checkpoint import CLIP, DIT, make_checkpoint
from wan_core.checkpoints import MemorySource, in_format, write_shards

MLLM_DIM = 48
# One head of 128, so that the release needs no config.json, as the real one has none that is known.
TINY = BindWeaveConfig(
    **vars(replace(DIT, in_dim=36, image_dim=CLIP.dim, dim=128, num_heads=1)), mllm_dim=MLLM_DIM
)  # fmt: skip


def write_release(folder: Path, seed: int = 0) -> Path:
    """Shards with an index, under the release's names, with the norm that no network uses."""
    torch.manual_seed(seed)
    network = BINDWEAVE.build(TINY)
    release = in_format(MemorySource(network.state_dict()), BINDWEAVE, "diffusers")
    tensors = {name: release.read(name) for name in release}
    tensors |= {f"blocks.{i}.attn2.norm_added_q.weight": torch.ones(128) for i in range(TINY.num_layers)}
    write_shards(MemorySource(tensors), folder, max_shard_bytes=MemorySource(tensors).nbytes // 3)
    return folder


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``wan``: Wan's folder; ``release``: BindWeave's; two pictures; states of two prompts."""
    folder = tmp_path_factory.mktemp("bindweave")
    make_checkpoint("i2v-14B-720P", folder / "wan")
    write_release(folder / "release")
    Image.new("RGB", (40, 75), (200, 30, 60)).save(folder / "a.png")
    Image.new("RGB", (120, 60), (20, 180, 60)).save(folder / "b.png")
    torch.manual_seed(1)
    save_file({"hidden_states": torch.randn(1, 7, MLLM_DIM)}, folder / "p.safetensors")
    torch.save(torch.randn(1, 9, MLLM_DIM), folder / "n.pt")
    return folder


@pytest.fixture
def flags(files: Path) -> list[str]:
    """A whole command line for one tiny video."""
    return [
        "--ckpt-dir", str(files / "wan"), "--dit", str(files / "release"), "--prompt", "a cat",
        "--image", str(files / "a.png"), "--image", str(files / "b.png"),
        "--hidden-states", str(files / "p.safetensors"), "--hidden-states-negative", str(files / "n.pt"),
        "--size", "32*48", "--frame-num", "5", "--sample-steps", "2", "--seed", "1", "--quiet", "--device", "cpu",
    ]  # fmt: skip


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Call a command in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def call(command: Any, *words: str | Path) -> Result:
        return CliRunner().invoke(command, [str(word) for word in words])

    return call
