"""GGUF files for tests, written with the gguf package as ComfyUI's converter does."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from torch import Tensor

QUANTISED = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "MXFP4"]
"""Types that the peer can write (it has no quantiser for the others) or, for the K types, that we fill at random."""


def write_gguf(path: Path, tensors: Mapping[str, Tensor], kind: str) -> dict[str, Tensor]:
    """A file as ComfyUI's converter makes it; returns what its tensors stand for."""
    writer = gguf.GGUFWriter(path, "wan")
    quantised = getattr(gguf.GGMLQuantizationType, kind)
    expected: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        array, shape = tensor.float().numpy(), tuple(tensor.shape)
        if tensor.ndim < 2 or kind == "F16":
            writer.add_tensor(name, array.astype(np.float16) if kind == "F16" else array)
            expected[name] = tensor.half() if kind == "F16" else tensor
            continue
        if tensor.ndim > 2 or shape[-1] % 256:
            array = array.reshape(-1, 256) if tensor.numel() % 256 == 0 else array.reshape(-1, shape[-1])
            writer.add_array(f"comfy.gguf.orig_shape.{name}", list(shape))
        if array.shape[-1] % 256:
            writer.add_tensor(name, array)
            expected[name] = tensor
            continue
        blocks = quantise(array, quantised)
        writer.add_tensor(name, blocks, raw_dtype=quantised)
        expected[name] = torch.from_numpy(gguf.dequantize(blocks, quantised)).reshape(shape)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return expected


def quantise(array: Any, kind: Any) -> Any:
    try:
        return gguf.quantize(array, kind)
    except NotImplementedError:
        elements, size = gguf.GGML_QUANT_SIZES[kind]
        filled = np.random.default_rng(0).integers(0, 60, (*array.shape[:-1], array.shape[-1] // elements * size))
        return filled.astype(np.uint8)
