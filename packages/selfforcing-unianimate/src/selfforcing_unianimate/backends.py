"""Optional packages of the extras ``pose`` and ``evaluate``, imported where they are used."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from wan_core import BackendError


def opencv(what: str = "poses", extra: str = "pose") -> Any:
    """The module ``cv2``, which resamples and rasterises as the reference does. Raises BackendError without it.

    ``what`` needs it, and the ``extra`` of this package brings it.
    """
    return _needed("cv2", "opencv-python-headless", what, extra)


def onnxruntime() -> Any:
    """The module ``onnxruntime``, which runs the detectors. Raises BackendError without it."""
    return _needed("onnxruntime", "onnxruntime")


def _needed(module: str, package: str, what: str = "poses", extra: str = "pose") -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        raise BackendError(
            f"{what} need the package {package}, which is not installed; install selfforcing-unianimate[{extra}]"
        ) from error
