"""The optional package of the extras ``pose`` and ``evaluate`` that is used in many places."""

from __future__ import annotations

from typing import Any

from wan_core.runtime import optional_package


def opencv(what: str = "poses", extra: str = "pose") -> Any:
    """The module ``cv2``, which resamples and rasterises as the reference does. Raises BackendError without it.

    ``what`` needs it, and the ``extra`` of this package brings it.
    """
    return optional_package("cv2", "opencv-python-headless", what=what, extra=f"selfforcing-unianimate[{extra}]")
