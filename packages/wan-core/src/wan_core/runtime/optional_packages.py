"""Packages that only some commands need, imported where they are used."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from wan_core.errors import BackendError


def optional_package(module: str, package: str, *, what: str, extra: str) -> Any:
    """The module ``module`` of ``package``, which ``extra`` brings, as in ``wan-core[metrics]``.

    ``what`` needs it, in the plural. Raises BackendError without it.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise BackendError(f"{what} need the package {package}, which is not installed; install {extra}") from error
