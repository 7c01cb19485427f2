"""What the tests of ``wan download`` share: files, an environment without tokens, the hub, the command."""

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from wan_core.cli import wan
from wan_core.hub import (
    MANIFEST_NAME,
    fetch,
)

from .small_hub import SmallHub, serving

WEIGHTS = random.Random(1).randbytes(300_000)
FILES = {"config.json": b'{"dim": 8}', "high/model.safetensors": WEIGHTS, "google/umt5-xxl/tokenizer.json": b"t" * 999}
TOKEN = "hf_secretsecret"


@pytest.fixture(autouse=True)
def quiet_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HUB_CACHE", "MODELSCOPE_API_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: os.environ.get("HF_TOKEN"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(fetch, "BACKOFF_SECONDS", 0.001)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[SmallHub]:
    with serving(SmallHub(dict(FILES))) as small:
        monkeypatch.setenv("HF_ENDPOINT", small.address)
        monkeypatch.setenv("MODELSCOPE_ENDPOINT", small.address)
        yield small


def run(*words: str, code: int = 0) -> Result:
    result = CliRunner().invoke(wan, ["download", *words, "--quiet"])
    assert result.exit_code == code, (result.output, result.exception)
    assert result.output.count("Error:") == (code != 0)
    return result


def contents(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST_NAME]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
