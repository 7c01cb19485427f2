"""Packages of attention kernels as they are met: made up, in this process or as files."""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest


def flash_package(monkeypatch: pytest.MonkeyPatch, name: str, kernel: Callable[..., Any]) -> None:
    """A module called ``name`` whose flash_attn_func is ``kernel``."""
    package = ModuleType(name)
    package.flash_attn_func = kernel  # type: ignore[attr-defined]
    monkeypatch.setitem(__import__("sys").modules, name, package)
