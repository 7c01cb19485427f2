"""Small ONNX graphs as files."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def save_graph(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    known: Mapping[str, np.ndarray],
    inputs: Mapping[str, Sequence[int]],
    outputs: Mapping[str, Sequence[int]],
) -> Path:
    """A graph of float32 inputs and outputs, by their shapes, as a file that old and new runtimes read."""
    ends = [
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape)) for name, shape in each.items()]
        for each in (inputs, outputs)
    ]
    constants = [numpy_helper.from_array(np.asarray(each), name) for name, each in known.items()]
    graph = helper.make_graph(list(nodes), "tiny", *ends, constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)
    return path
