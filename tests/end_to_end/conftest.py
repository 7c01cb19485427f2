"""Tiny checkpoints in the exact layout of the real ones, made once per test session, and pictures to start from."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from wan_core.cli import wan


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a tiny checkpoint of a preset, in the real layout."""

    @cache
    def folder(preset: str) -> Path:
        path = tmp_path_factory.mktemp("checkpoints") / preset
        from tools.make_checkpoint import make_checkpoint

        make_checkpoint(preset, path)
        return path

    return folder


@pytest.fixture(scope="session")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small landscape picture."""
    path = tmp_path_factory.mktemp("pictures") / "red.png"
    image = Image.new("RGB", (96, 64), (40, 75, 215))
    image.paste((225, 35, 40), (10, 20, 40, 50))
    image.save(path)
    return path


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Run ``wan``, or another ``command``, in an empty folder, which is where its default outputs go."""
    monkeypatch.chdir(tmp_path)

    def invoke(*arguments: object, command: click.Command = wan) -> Result:
        return CliRunner().invoke(command, [str(argument) for argument in arguments], catch_exceptions=False)

    return invoke


@pytest.fixture
def clips(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows with each clip that is denoised; the second one is interrupted."""
    from wan_core.pipeline import Pipeline

    begun: list[int] = []
    denoise = Pipeline.denoise

    def counted(self: Pipeline, *arguments: Any, **options: Any) -> Any:
        begun.append(len(begun))
        if len(begun) == 2:
            raise KeyboardInterrupt
        return denoise(self, *arguments, **options)

    monkeypatch.setattr(Pipeline, "denoise", counted)
    return begun
