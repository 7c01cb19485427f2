"""Packages export on demand what type checkers see, and nothing else."""

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from wan_core.lazy import load

PACKAGE = """
from typing import TYPE_CHECKING

from wan_core.lazy import on_demand

if TYPE_CHECKING:
    from {name}.room import first
    from {name}.room import second as other
else:
    __getattr__, __dir__ = on_demand(__name__)

here = 0
"""


@pytest.fixture
def name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A package outside of ours whose exports lie in a module ``room``."""
    name = f"exporting_{tmp_path.name}"
    folder = tmp_path / name
    folder.mkdir()
    (folder / "__init__.py").write_text(PACKAGE.format(name=name), encoding="utf-8")
    (folder / "room.py").write_text("first = [1]\nsecond = 2\nthird = 3\n", encoding="utf-8")
    (folder / "beside.py").write_text("", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    return name


def test_an_export_is_imported_when_it_is_asked_for(name: str) -> None:
    package = importlib.import_module(name)
    assert f"{name}.room" not in sys.modules
    assert (package.here, package.other) == (0, 2)
    assert package.first is package.first is sys.modules[f"{name}.room"].first


def test_all_names_are_listed_before_they_are_imported(name: str) -> None:
    names = dir(importlib.import_module(name))
    assert {"first", "here", "other"} <= set(names)
    assert f"{name}.room" not in sys.modules


@pytest.mark.parametrize("wrong", ["third", "second", "nothing"])
def test_another_name_is_no_attribute(name: str, wrong: str) -> None:
    with pytest.raises(AttributeError, match=f"module '{name}' has no attribute '{wrong}'"):
        getattr(importlib.import_module(name), wrong)


def test_modules_of_the_package_are_found_beside_its_exports(name: str) -> None:
    exec(f"from {name} import beside, first\nassert beside and first")


def test_an_address_is_a_module_and_a_name(name: str) -> None:
    assert load(f"{name}.room:third") == 3


@pytest.mark.parametrize(
    "package",
    [
        *(f"wan_core.{name}" for name in ("checkpoints", "cli", "media", "presets", "runtime", "sampling", "training")),
        *(f"wan_core.models{name}" for name in ("", ".dit", ".image", ".text", ".vae")),
        *("bindweave", "pi3", "pi3.checkpoints", "poze", "wan_mi2v"),
    ],
)
def test_every_export_of_ours_is_found_where_it_is_said_to_be(package: str) -> None:
    module = importlib.import_module(package)
    for name in module.__all__:
        if importlib.util.find_spec(f"{package}.{name}"):
            importlib.import_module(f"{package}.{name}")
        assert not isinstance(getattr(module, name), ModuleType)
