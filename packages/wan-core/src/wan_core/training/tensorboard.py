"""Log lines for TensorBoard, beside those in JSON."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from wan_core.errors import BackendError
from wan_core.media import image_to_tensor, load_image

_SCALARS = ("loss", "validation_loss", "rate", "norm", "seconds_per_step")


def require_tensorboard() -> Any:
    """TensorBoard's writer class. Raises BackendError when the package is missing."""
    try:
        return importlib.import_module("torch.utils.tensorboard").SummaryWriter
    except ImportError as error:
        raise BackendError(
            "--tensorboard needs tensorboard, which is not installed; install 'wan-core[train]' or leave it out"
        ) from error


def tensorboard_listener(folder: str | Path) -> Callable[[Mapping[str, Any]], None]:
    """A listener for the log lines of a run that writes them, and contact sheets, into ``folder``.

    Raises BackendError when TensorBoard is missing.
    """
    writer = require_tensorboard()(str(folder))

    def hear(line: Mapping[str, Any]) -> None:
        for name in _SCALARS:
            if name in line:
                writer.add_scalar(name, line[name], line["step"])
        if "sheet" in line:
            pixels = image_to_tensor(load_image(line["sheet"])) / 2 + 0.5
            writer.add_image("validation", np.asarray(pixels), line["step"])
        writer.flush()

    return hear
