"""Level 0 of the testing ladder: the environment is told, and a machine without a GPU is no failure."""

import json

import pytest
import torch
from click.testing import CliRunner

from selfforcing_unianimate.cli.doctor import doctor


def test_level_0_the_environment_is_told() -> None:
    report = json.loads(CliRunner().invoke(doctor, ["--json"], catch_exceptions=False).output)
    assert torch.__version__.startswith(report["torch"])
    assert report["onnxruntime"] is not None
    assert (report["dtype"] == "float32") == (report["device"] == "cpu")


def test_a_missing_package_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("selfforcing_unianimate.cli.doctor.PACKAGES", ("no-such-package",))
    assert "no-such-package          None" in CliRunner().invoke(doctor).output
