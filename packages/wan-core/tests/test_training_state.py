"""Checkpoints of a run on disk: never fewer whole ones than before, and nothing read that is not what was written."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from wan_core.drafts import Draft, alone_in
from wan_core.errors import CheckpointError, ConfigError, RequestError
from wan_core.training import CheckpointFolder

from .test_training_loop import run


def test_a_finished_run_called_again_saves_nothing(tmp_path) -> None:
    run(tmp_path, 3)
    before = {path: path.stat().st_ino for path in tmp_path.rglob("*")}
    assert run(tmp_path, 3)[0].step == 3
    assert {path: path.stat().st_ino for path in tmp_path.rglob("*")} == before


def test_a_checkpoint_that_was_whole_but_not_named_is_taken_up(tmp_path) -> None:
    whole = run(tmp_path / "whole", 6)[1]
    run(tmp_path / "parts", 4, save_seconds=99.0)
    folder = CheckpointFolder(tmp_path / "parts")
    draft = abandoned(folder.path(4))
    parted = run(tmp_path / "parts", 6)
    assert all(torch.equal(one, other) for one, other in zip(whole, parted[1], strict=True))
    assert not draft.exists()
    assert 4 not in folder.steps()  # kept as long as it was among the last


@pytest.mark.parametrize("name", ["state.json", "model.safetensors"])
def test_an_unnamed_checkpoint_that_is_not_whole_is_not_taken_up(tmp_path, name) -> None:
    run(tmp_path, 4)
    folder = CheckpointFolder(tmp_path)
    draft = abandoned(folder.path(4))
    (draft / name).write_bytes((draft / name).read_bytes()[:-9])
    assert run(tmp_path, 4)[0].step == 4
    assert folder.steps() == [3, 4]
    assert not draft.exists()


def abandoned(folder: Path) -> Path:
    """The folder under the name that it has while it is written, by a process that is no more."""
    ended = subprocess.Popen(["true"])
    ended.wait()
    draft = Draft(folder, is_folder=True).path
    draft = draft.with_name(draft.name.replace(f"-{os.getpid()}-", f"-{ended.pid}-"))
    folder.rename(draft)
    return draft


def test_files_with_other_content_of_the_same_size_are_refused(tmp_path) -> None:
    run(tmp_path, 2)
    file = CheckpointFolder(tmp_path).path(2) / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model\.safetensors has other content; remove it to go on"):
        run(tmp_path, 4)


@pytest.mark.parametrize(
    "text",
    ["", "[]", "[" * 100_000, "null", '"x"', "{}", '{"step": "4"}', '{"sizes": {"model.safetensors": "x"}}'],
)
def test_a_state_that_nobody_writes_is_damage(tmp_path, text) -> None:
    run(tmp_path, 2)
    (CheckpointFolder(tmp_path).path(2) / "state.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"damaged: .*; remove it to go on from an earlier one"):
        run(tmp_path, 4)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("step", "2"),
        ("settings", []),
        ("optimizers", []),
        ("optimizers", [{}, {}]),
        ("optimizers", [{"values": 1, "groups": None}] * 2),
        ("average_updates", None),
        ("sizes", {"../../x": 1}),
        ("sha256", {"model.safetensors": 5}),
        ("sha256", {"none.safetensors": "x"}),
    ],
)
def test_a_state_with_another_value_is_damage(tmp_path, name, value) -> None:
    run(tmp_path, 2)
    file = CheckpointFolder(tmp_path).path(2) / "state.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), name: value}))
    with pytest.raises((CheckpointError, ConfigError)) as refused:
        run(tmp_path, 4)
    assert len(str(refused.value)) < 600


def test_an_old_checkpoint_goes_away_without_a_moment_of_halves(tmp_path, monkeypatch) -> None:
    run(tmp_path, 2)
    names = []
    remove = shutil.rmtree
    monkeypatch.setattr("wan_core.drafts.shutil.rmtree", lambda path, **k: (names.append(path.name), remove(path, **k)))
    run(tmp_path, 3)
    assert [name.startswith(".step-00000001.") for name in names] == [True]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000002", "step-00000003"]


def test_a_folder_is_held_by_one_process_at_a_time(tmp_path) -> None:
    busy = RequestError("busy")
    with alone_in(tmp_path / "a", busy):
        code = (
            "from pathlib import Path; from wan_core.drafts import alone_in; from wan_core.errors import RequestError\n"
            f"with alone_in(Path({str(tmp_path / 'a')!r}), RequestError('busy')): pass"
        )
        other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert "RequestError: busy" in other.stderr
    with alone_in(tmp_path / "a", busy):
        pass


@pytest.mark.parametrize("values", ['"sha256": [1]', '"sha256": {"../x": "a"}', '"sizes": {"a\\u0000": 1}'])
def test_a_state_of_a_stranger_is_refused(tmp_path: Path, values: str) -> None:
    folder = tmp_path / "step-00000001"
    folder.mkdir()
    good = '"step": 1, "settings": {}, "optimizers": [], "average_updates": 0, "sizes": {}, "shapes": {}'
    (folder / "state.json").write_text(f"{{{good}}}")
    (tmp_path / "step-\u00b2").mkdir()
    assert CheckpointFolder(tmp_path).compare({}) == 1
    (folder / "state.json").write_text(f"{{{good}, {values}}}")
    with pytest.raises(CheckpointError, match="is damaged"):
        CheckpointFolder(tmp_path).compare({})
