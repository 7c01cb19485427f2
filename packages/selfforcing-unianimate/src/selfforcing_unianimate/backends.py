"""Optional packages of the extra ``pose``, imported where they are used."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from wan_core import BackendError


def opencv() -> Any:
    """The module ``cv2``, which resamples and rasterises as the reference does. Raises BackendError without it."""
    return _needed("cv2", "opencv-python-headless")


def onnxruntime() -> Any:
    """The module ``onnxruntime``, which runs the detectors. Raises BackendError without it."""
    return _needed("onnxruntime", "onnxruntime")


def _needed(module: str, package: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        raise BackendError(
            f"poses need the package {package}, which is not installed; install selfforcing-unianimate[pose]"
        ) from error
