"""What the tests of ``wan download`` share: files, an environment without tokens, the hub, the command."""

import random
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner, Result

from wan_core.cli import wan
from wan_core.hub import MANIFEST_NAME

from .small_hub import SmallHub, serving

WEIGHTS = random.Random(1).randbytes(300_000)
FILES = {"config.json": b'{"dim": 8}', "high/model.safetensors": WEIGHTS, "google/umt5-xxl/tokenizer.json": b"t" * 999}
TOKEN = "hf_secretsecret"


@pytest.fixture(autouse=True)
def quiet_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HUB_CACHE", "MODELSCOPE_API_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    # The client has read its environment when it was imported; a process of its own reads HF_HOME.
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "home" / "token"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "home" / "hub"))
    monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path / "modelscope"))
    monkeypatch.setenv("MODELSCOPE_HOME", str(tmp_path / "modelscope"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    for module in ("wan_core.hub.download", "huggingface_hub.file_download", "huggingface_hub.utils._http"):
        monkeypatch.setattr(f"{module}.time", SimpleNamespace(sleep=lambda seconds: None, time=time.time))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[SmallHub]:
    with serving(SmallHub(dict(FILES))) as small:
        monkeypatch.setenv("HF_ENDPOINT", small.address)
        template = small.address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", small.address)
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
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
