"""``bindweave import-features``: the original's stored samples as a cache, and what is refused of them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result
from torch import Tensor

from bindweave.cli.import_features import import_features
from bindweave.cli.train import train
from bindweave.stored_features import read_stored
from tools.make_checkpoint import CLIP
from wan_core.training import Cache

from .conftest import MLLM_DIM, TINY

Run = Callable[..., Result]
TOKENS = TINY.image_tokens


def sample(seed: int = 0, **other: Tensor | None) -> dict[str, Tensor]:
    """A stored sample as the original's extraction writes it, of the tiny model."""
    torch.manual_seed(seed)
    mask = torch.zeros(1, 12, dtype=torch.int64)
    mask[:, :5] = 1
    tensors: dict[str, Tensor | None] = {
        "video": torch.randn(16, 2, 6, 4), "prompt_ids": torch.randn(1, 12, TINY.text_dim), "prompt_mask": mask,
        "hidden_states": torch.randn(1, 7 + seed, MLLM_DIM).bfloat16(), "hidden_states_mask": torch.ones(1, 7 + seed),
        "i2v_clip_feature": torch.randn(1, 4 * TOKENS, CLIP.dim), "i2v_vae_feature": torch.randn(20, 6, 6, 4), **other,
    }  # fmt: skip
    return {name: tensor for name, tensor in tensors.items() if tensor is not None}


def write(folder: Path, count: int = 3) -> Path:
    folder.mkdir()
    for number in range(count):
        torch.save(sample(number), folder / f"video_{number}_mp4.pt")
    return folder


@pytest.fixture
def words(files: Path) -> list[str | Path]:
    return ["features", "cache", "--ckpt-dir", files / "wan", "--dit", files / "release", "--device", "cpu", "--quiet"]


def test_a_stored_sample_keeps_its_numbers_without_padding(tmp_path: Path) -> None:
    given = sample()
    torch.save(given, tmp_path / "a.pt")
    found = read_stored(tmp_path / "a.pt")
    assert torch.equal(found["context"], given["prompt_ids"][0, :5])
    assert torch.equal(found["states"], given["hidden_states"][0].half())
    assert torch.equal(found["channels"], given["i2v_vae_feature"].half())
    assert torch.equal(found["latents"], given["video"].half())


def test_a_cache_of_stored_samples_is_trained_on(run: Run, files: Path, words: list[str | Path]) -> None:
    write(Path("features"))
    for _ in range(2):
        done = run(import_features, *words)
        assert done.exit_code == 0, done.output
    assert Cache("cache").settings["num_frames"] == 5
    trained = run(
        train, "--ckpt-dir", files / "wan", "--dit", files / "release", "--cache", "cache", "--output", "run",
        "--steps", "2", "--batch-size", "2", "--held-out", "0", "--lora-rank", "2", "--caption-dropout", "0.5",
        "--device", "cpu", "--quiet",
    )  # fmt: skip
    assert trained.exit_code == 0, trained.output
    assert Path("run/lora.safetensors").is_file()


BAD: dict[str, tuple[dict[str, Any], int, str]] = {
    "no states": ({"hidden_states": None}, 3, "has no hidden_states"),
    "states of another width": ({"hidden_states": torch.zeros(1, 7, 50)}, 3, "of width 50"),
    "states with padding": ({"hidden_states_mask": torch.zeros(1, 7)}, 2, "all hidden states"),
    "a mask of another length": ({"hidden_states_mask": torch.ones(1, 6)}, 3, "hidden_states_mask is [6]"),
    "three references": ({"i2v_vae_feature": torch.zeros(20, 5, 6, 4)}, 3, "i2v_vae_feature is [20, 5, 6, 4]"),
    "another autoencoder": ({"video": torch.zeros(48, 2, 6, 4)}, 3, "video is [48, 2, 6, 4]"),
    "clip features of one": ({"i2v_clip_feature": torch.zeros(TOKENS, CLIP.dim)}, 3, "i2v_clip_feature is"),
    "a batch of two": ({"prompt_ids": torch.zeros(2, 12, 32)}, 3, "prompt_ids has shape [2, 12, 32]"),
    "values that are not finite": ({"video": torch.full((16, 2, 6, 4), torch.nan)}, 3, "not finite"),
    "another length": (
        {"video": torch.zeros(16, 3, 6, 4), "i2v_vae_feature": torch.zeros(20, 7, 6, 4)}, 2, "2 and 3 latent frames",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
def test_a_sample_that_is_none_is_named(kind: str, run: Run, words: list[str | Path]) -> None:
    changes, code, said = BAD[kind]
    folder = write(Path("features"), 1)
    torch.save(sample(**changes), folder / "video_1_mp4.pt")
    done = run(import_features, *words)
    assert done.exit_code == code, done.output
    assert said in done.output
    assert "Traceback" not in done.output
    assert not list(Path().glob("cache/*.safetensors"))


@pytest.mark.parametrize(("content", "said"), [(b"PK\x03\x04 cut off", "broken.pt"), (None, "holds no stored samples")])
def test_a_broken_file_and_an_empty_folder_are_refused(
    content: bytes | None, said: str, run: Run, words: list[str | Path]
) -> None:
    Path("features").mkdir()
    if content is not None:
        Path("features/broken.pt").write_bytes(content)
    done = run(import_features, *words)
    assert done.exit_code in (2, 3), done.output
    assert said in done.output
    assert not Path("cache").exists()
