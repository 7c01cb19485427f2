"""Targets as their reader gives them, and what it refuses."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from selfforcing_unianimate.distillation.targets import COMMAND, VERSION, Targets
from selfforcing_unianimate.packed_pixels import pack_pixels
from wan_core import CheckpointError, ConfigError, RequestError
from wan_core.training import write_cache

SETTINGS: dict[str, Any] = {
    "made_by": COMMAND,
    "version": VERSION,
    "timesteps": [1000, 937.5],
    "seen": [1000.0, 940.625],
    "prompts": ["a", "b", "c"],
    "seeds": [5, 6, 7],
}


def encode(number: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(number)
    return {
        "latents": torch.randn(16, 2, 8, 6, generator=generator),
        "states": torch.randn(2, 16, 2, 8, 6, generator=generator).bfloat16(),
        "context": torch.randn(3 + number, 32, generator=generator).bfloat16(),
        "empty": torch.zeros(1, 32),
        "channels": torch.randn(20, 2, 8, 6, generator=generator),
        "motion": pack_pixels(torch.full((3, 5, 64, 48), number, dtype=torch.uint8)),
    }


def make(folder: Path, settings: dict[str, Any] = SETTINGS, **values: Any) -> Path:
    given = {"shard_size": 2, "common": lambda: {"negative": torch.ones(4, 32)}, **values}
    return write_cache(folder, 3, given.pop("encode", encode), settings, **given)


def test_targets_are_what_was_written_as_numbers_of_one_kind(tmp_path: Path) -> None:
    targets = Targets(make(tmp_path), expected={"seeds": [5, 6, 7]})
    assert len(targets) == 3
    made, found = encode(1), targets[1]
    assert torch.equal(found.latents, made["latents"])
    assert torch.equal(found.states, made["states"].float())
    assert found.states.dtype == torch.float32
    assert torch.equal(found.context, made["context"])
    assert torch.equal(found.picture, made["channels"][4:, :1])
    assert torch.equal(found.motion, torch.ones(3, 5, 64, 48, dtype=torch.uint8))  # type: ignore[arg-type]
    assert found.image is None
    assert found.reference is None
    assert (found.prompt, found.seed) == ("b", 6)


def test_timesteps_are_those_asked_for_and_those_of_the_states(tmp_path: Path) -> None:
    targets = Targets(make(tmp_path))
    assert targets.timesteps.tolist() == [1000, 937.5]
    assert targets.seen.tolist() == [1000, 940.625]
    negative = targets.negative()
    assert negative is not None
    assert negative.shape == (4, 32)
    assert Targets(make(tmp_path / "bare", common=None)).negative() is None


def no_folder(folder: Path) -> None:
    pass


def a_cache_of_examples(folder: Path) -> None:
    make(folder, {**SETTINGS, "made_by": "wan cache"})


def later_version(folder: Path) -> None:
    make(folder, {**SETTINGS, "version": 9})


def unfinished(folder: Path) -> None:
    make(folder, part=(1, 2))


def too_few_prompts(folder: Path) -> None:
    make(folder, {**SETTINGS, "prompts": ["a"]})


def timesteps_of_no_kind(folder: Path) -> None:
    make(folder, {**SETTINGS, "timesteps": ["x", "y"]})


def other_numbers(folder: Path) -> None:
    make(folder, {**SETTINGS, "seen": [1.0]})


def damaged_index(folder: Path) -> None:
    make(folder)
    (folder / "cache.json").write_text(json.dumps({"settings": 3}))


def damaged_shard(folder: Path) -> None:
    make(folder)
    (folder / "shard-00000.safetensors").write_bytes(b"no")


def without_states(folder: Path) -> None:
    make(folder, encode=lambda number: {name: each for name, each in encode(number).items() if name != "states"})


def states_of_another_shape(folder: Path) -> None:
    make(folder, encode=lambda number: {**encode(number), "states": torch.zeros(1, 16, 2, 8, 6)})


def damaged_skeletons(folder: Path) -> None:
    make(folder, encode=lambda number: {**encode(number), "motion": torch.zeros(40, dtype=torch.uint8)})


BAD: dict[str, tuple[Callable[[Path], None], type[Exception], str]] = {
    "no folder": (no_folder, RequestError, "holds no targets"),
    "a cache of examples": (a_cache_of_examples, RequestError, "cache of examples"),
    "a later version": (later_version, RequestError, "version 9"),
    "not finished": (unfinished, RequestError, "1 of 2 shards.*sfu make-targets"),
    "too few prompts": (too_few_prompts, CheckpointError, "prompts"),
    "timesteps of no kind": (timesteps_of_no_kind, CheckpointError, "timesteps"),
    "states and timesteps that differ": (other_numbers, CheckpointError, "differ in number"),
    "a damaged index": (damaged_index, CheckpointError, "cache.json is damaged"),
    "a damaged shard": (damaged_shard, CheckpointError, "sfu make-targets"),
    "no states": (without_states, CheckpointError, "has no states"),
    "states of another shape": (states_of_another_shape, CheckpointError, "has states"),
    "damaged skeletons": (damaged_skeletons, CheckpointError, "packed pixels"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_folders_are_one_sentence(name: str, tmp_path: Path) -> None:
    spoil, kind, words = BAD[name]
    spoil(tmp_path / "targets")
    with pytest.raises(kind, match=words):
        Targets(tmp_path / "targets")[0]


def test_other_settings_than_expected_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="model was None, is 'x'"):
        Targets(make(tmp_path), expected={"model": "x"})
