"""Weights stored in 8 bits with a scale beside them, as plain weights: dequantised one by one when they are read.

Known namings: ComfyUI's ``X.scale_weight`` with a ``scaled_fp8`` marker and ``X.scale_input``, its newer
``X.weight_scale`` with ``X.comfy_quant`` and ``X.input_scale``, and per-row scales of the latter name (LightX2V).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from wan_core.checkpoints.readers.sources import DerivedSource, Recipe, TensorInfo, TensorSource
from wan_core.errors import CheckpointError

_SCALES = (".scale_weight", ".weight_scale")
_NOT_NEEDED = (".scale_input", ".input_scale", ".comfy_quant", "scaled_fp8")
_STORED = (torch.float8_e4m3fn, torch.float8_e5m2, torch.int8)


def dequantized(source: TensorSource) -> TensorSource:
    """A view of ``source`` without scales: weight times scale, in float32. Files without scales come back as they are.

    Raises CheckpointError for a scale without a weight, for one that does not fit it, and for weights packed in a way
    that is not known (4-bit floats).
    """
    scales = {_weight_of(name): name for name in source if name.endswith(_SCALES)}
    extra = [name for name in source if name.endswith(_NOT_NEEDED)]
    if not scales and not extra:
        return source
    recipes: dict[str, Recipe] = {}
    for name in source:
        if name in scales:
            recipes[name] = _scaled(source, name, scales[name])
        elif not name.endswith((*_SCALES, *_NOT_NEEDED)):
            recipes[name] = Recipe((name,), source.info(name))
    orphans = [scale for weight, scale in scales.items() if weight not in recipes]
    if orphans:
        raise CheckpointError(
            f"{source.path}: {len(orphans)} scales have no weight ({', '.join(orphans[:5])}); fetch it again"
        )
    return DerivedSource(source, recipes)


def _weight_of(scale: str) -> str:
    return next(scale.removesuffix(suffix) for suffix in _SCALES if scale.endswith(suffix)) + ".weight"


def _scaled(source: TensorSource, weight: str, scale: str) -> Recipe:
    stored, factor = source.info(weight), source.info(scale)
    # One scale for all, or one for each row.
    per_row = bool(stored.shape) and factor.numel == stored.shape[0]
    is_known = stored.dtype in _STORED and factor.dtype.is_floating_point and factor.dtype.itemsize > 1
    if not is_known or not (factor.numel == 1 or per_row):
        raise CheckpointError(
            f"{source.path}: {weight} ({stored.dtype}, {list(stored.shape)}) has a scale {list(factor.shape)}; "
            "such packing is not known. Use the 16-bit or fp8 file of the model"
        )
    return Recipe((weight, scale), TensorInfo(stored.shape, torch.float32), _multiply)


def _multiply(tensors: Sequence[Tensor]) -> Tensor:
    weight, scale = tensors[0].float(), tensors[1].float()
    return weight * (scale.reshape(-1, *[1] * (weight.ndim - 1)) if scale.numel() > 1 else scale.reshape(()))
