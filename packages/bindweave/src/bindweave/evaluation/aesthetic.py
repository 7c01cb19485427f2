"""How pleasing a picture is: LAION's predictor, a few linear layers on CLIP's vector of the picture.

Schuhmann, "improved-aesthetic-predictor" (2022); OpenS2V-Eval uses its weights for ViT-L/14.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from wan_core import CheckpointError
from wan_core.files import existing_file, plain_text

if TYPE_CHECKING:
    from bindweave.evaluation.encoders import Array

_WIDTHS = (768, 1024, 128, 64, 16, 1)
_LAYER = re.compile(r"layers\.(\d+)\.(weight|bias)")


class AestheticHead:
    """The layers of a file, without anything between them, from vectors of unit length [N, dim] to [N], about 1 to 10.

    Raises RequestError for no file, CheckpointError for one of another network.
    """

    def __init__(self, path: Path) -> None:
        from wan_core.checkpoints import read_weights

        stored = read_weights(existing_file(path, "aesthetic head"))
        found: dict[int, dict[str, Array]] = {}
        for name in stored:
            if (match := _LAYER.fullmatch(name)) is not None:
                found.setdefault(int(match[1]), {})[match[2]] = stored.read(name).float().numpy()
        self._layers = [found[number] for number in sorted(found)]
        shapes = [each["weight"].shape for each in self._layers if {*each} == {"weight", "bias"}]
        widths = (*(shape[1] for shape in shapes[:1]), *(shape[0] for shape in shapes))
        is_chain = all(len(shape) == 2 and shape[1] == width for shape, width in zip(shapes, widths, strict=False))
        if not shapes or len(shapes) < len(self._layers) or not is_chain or widths[-1] != 1:
            raise CheckpointError(
                f"{plain_text(path)} is no aesthetic predictor: its layers must lead from CLIP's vector to one number; "
                "LAION's sac+logos+ava1-l14-linearMSE.pth does"
            )
        self.dim = int(widths[0])
        self.is_released = widths == _WIDTHS
        """Whether it has the widths of the released one."""

    def __call__(self, vectors: Array) -> Array:
        for layer in self._layers:
            vectors = vectors @ layer["weight"].T + layer["bias"]
        return np.asarray(vectors[:, 0])
