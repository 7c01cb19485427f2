"""OpenCV, which resamples, blurs and rasterises the pictures that Wan-Animate was trained with."""

from __future__ import annotations

from typing import Any

from wan_core.runtime import optional_package

EXTRA = "wan-core[animate]"
"""What brings onnxruntime and OpenCV."""
REMEDY = "with 'wan download Wan-AI/Wan2.2-Animate-14B --include \"process_checkpoint/*\"'"
"""How to get the networks, after the word fetch."""


def opencv() -> Any:
    """The module ``cv2``. Raises BackendError without it."""
    return optional_package("cv2", "opencv-python-headless", what="Skeletons, masks and faces", extra=EXTRA)
