"""Networks in ONNX files: detectors and encoders that others have trained, run by onnxruntime."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wan_core.errors import CheckpointError
from wan_core.files import existing_file, plain_text
from wan_core.runtime.optional_packages import optional_package

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float32]

_PREFERRED = ("CUDAExecutionProvider", "CoreMLExecutionProvider", "CPUExecutionProvider")


class OnnxNetwork:
    """An ONNX file with one input [1, 3, H, W] of float32.

    ``size`` is the (height, width) that it must take, None for any. ``device`` "cpu" keeps it off an accelerator;
    otherwise one that onnxruntime offers is tried first. ``remedy`` says how to get the file, ``extra`` what brings
    onnxruntime. Raises CheckpointError for a file that is missing, damaged or of another network, BackendError without
    onnxruntime.
    """

    def __init__(self, path: Path, size: tuple[int, int] | None, *, device: str, remedy: str, extra: str) -> None:
        if not path.exists():
            raise CheckpointError(f"{plain_text(path)} is missing; fetch it {remedy}")
        self.path = existing_file(path, "network")
        self._session = _session(self.path, device, remedy, extra)
        self.providers: tuple[str, ...] = tuple(self._session.get_providers())
        """What runs it, in onnxruntime's words."""
        inputs = self._session.get_inputs()
        self.input_shape: tuple[int | None, ...] = ()
        """Its sides, None for those that are free."""
        if len(inputs) == 1:
            self.input_shape = tuple(side if type(side) is int else None for side in inputs[0].shape)
        self.num_outputs = len(self._session.get_outputs())
        wanted_shape = (1, 3, *(size or (None, None)))
        if len(self.input_shape) != len(wanted_shape) or not all(map(_agree, self.input_shape, wanted_shape)):
            sides = [side or "any" for side in wanted_shape]
            raise CheckpointError(
                f"{plain_text(self.path)} is another network: it takes {[each.shape for each in inputs]}, not {sides}"
            )
        self._input = inputs[0].name

    def run(self, pixels: Array, shapes: Sequence[tuple[int, ...]] | None = None) -> list[Array]:
        """Its outputs, which must have these ``shapes`` where they are given; what is no number is 0.

        Raises CheckpointError.
        """
        import numpy as np

        try:
            outputs: list[Any] = self._session.run(None, {self._input: pixels})
        except _errors() as error:
            raise CheckpointError(f"{plain_text(self.path)} cannot be run: {plain_text(error)[:120]}") from error
        found = [getattr(output, "shape", None) for output in outputs]
        wanted = found if shapes is None else list(shapes)
        if found != wanted or any(getattr(output, "dtype", np.dtype(bool)).kind != "f" for output in outputs):
            raise CheckpointError(f"{plain_text(self.path)} is another network: its outputs are {found}, not {wanted}")
        return [np.nan_to_num(output.astype(np.float32), nan=0.0, posinf=0.0, neginf=0.0) for output in outputs]


def _session(path: Path, device: str, remedy: str, extra: str) -> Any:
    runtime = optional_package("onnxruntime", "onnxruntime", what="ONNX networks", extra=extra)
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    available = runtime.get_available_providers()
    wanted = [each for each in _PREFERRED if each in available and (device != "cpu" or each.startswith("CPU"))]
    try:
        return runtime.InferenceSession(str(path), options, providers=wanted)
    except _errors() as error:
        raise CheckpointError(
            f"{plain_text(path)} is no ONNX network, or a damaged one; fetch it again {remedy}"
        ) from error


def _agree(side: int | None, wanted: int | None) -> bool:
    return side is None or wanted is None or side == wanted


@cache
def _errors() -> tuple[type[Exception], ...]:
    """What onnxruntime raises: classes of its own, which have no base but Exception."""
    state = import_module("onnxruntime.capi.onnxruntime_pybind11_state")

    own = [each for each in vars(state).values() if isinstance(each, type) and issubclass(each, Exception)]
    return (*own, RuntimeError, ValueError)
