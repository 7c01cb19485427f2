"""``bindweave download`` names every repository, and fetches each into a folder of its own."""

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from bindweave.cli.download import download


def test_the_plan_names_repositories_folders_and_files() -> None:
    told = CliRunner().invoke(download, ["--dry-run"], catch_exceptions=False).output
    assert "ByteDance/BindWeave" in told
    assert str(Path("checkpoints/Wan2.1-I2V-14B-720P-Diffusers/vae/*")) in told


def test_only_what_is_asked_for_is_fetched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[tuple[str, Path]] = []

    def fetch(model: str, folder: Path, **values: Any) -> None:
        asked.append((model, folder))

    monkeypatch.setattr("wan_core.cli.downloads.fetch_model", fetch)
    done = CliRunner().invoke(download, ["--only", "mllm", "--dir", str(tmp_path)], catch_exceptions=False)
    assert done.exit_code == 0
    assert asked == [("Qwen/Qwen2.5-VL-7B-Instruct", tmp_path / "Qwen2.5-VL-7B-Instruct")]


def test_a_name_that_is_none_of_them_is_refused() -> None:
    assert CliRunner().invoke(download, ["--only", "everything"]).exit_code == 2
