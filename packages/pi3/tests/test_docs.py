"""The commands of the pi3 page and the Python of its README run on the bundled model."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from pi3.cli import pi3

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "docs/pi3.md").read_text(encoding="utf-8")
NEEDS_MORE = ("download", "holiday", "walk.mp4")


def test_commands_of_the_page_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    lines = [
        line for line in re.findall(r"^uv run (.+)$", PAGE, re.MULTILINE) if not any(w in line for w in NEEDS_MORE)
    ]
    assert len(lines) == 2
    for line in lines:
        program, *words = shlex.split(line)
        if program == "python":
            subprocess.run([sys.executable, *words], check=True, env={"PYTHONPATH": str(ROOT)})
            continue
        result = CliRunner().invoke(pi3, words)
        assert result.exit_code == 0, result.output
    assert (tmp_path / "outputs/room.png").stat().st_size > 10_000


def test_every_option_of_the_page_exists() -> None:
    known = {name for command in pi3.list_commands(None) for name in option_names(command)}
    assert set(re.findall(r"`(--[a-z-]+)", PAGE)) <= known


def option_names(command: str) -> list[str]:
    loaded = pi3.get_command(None, command)
    return [name for parameter in loaded.params for name in parameter.opts]
