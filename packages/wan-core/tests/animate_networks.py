"""Tiny ONNX files in the layout of Wan-Animate's detector and pose estimator, which see always the same."""

from pathlib import Path

import numpy as np
from onnx import helper

from tests.onnx_graphs import save_graph


def write_constant(path: Path, sides: tuple[int, int], output: np.ndarray) -> Path:
    """A network of [1, 3, H, W] with this ``output``, whatever it is shown."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nodes = [
        helper.make_node("ReduceMean", ["images"], ["mean"], axes=[0, 1, 2, 3], keepdims=0),
        helper.make_node("Mul", ["mean", "zero"], ["nothing"]),
        helper.make_node("Add", ["constant", "nothing"], ["output"]),
    ]
    known = {"constant": output.astype(np.float32), "zero": np.zeros((), dtype=np.float32)}
    return save_graph(path, nodes, known, {"images": [1, 3, *sides]}, {"output": list(output.shape)})
