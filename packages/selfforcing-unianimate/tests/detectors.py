"""Tiny detectors in the published files' layout: one always sees a person, the other finds the brightest dot.

Point k of the person lies at the dot plus an offset of its own, so that a dot is a whole body.
"""

from pathlib import Path

import numpy as np
from onnx import helper

from selfforcing_unianimate.detection import PERSON_MODEL, POINT_MODEL
from tests.onnx_graphs import save_graph

REACH = 120
"""Largest offset, in half pixels of the network's input."""
# COCO's 17 joints and 6 points of the feet about the hips' middle, in half pixels of the input.
_BODY = [
    (0, -90), (4, -95), (-4, -95), (10, -92), (-10, -92), (25, -65), (-25, -65), (36, -36), (-36, -36), (40, -8),
    (-40, -8), (15, 0), (-15, 0), (17, 45), (-17, 45), (18, 90), (-18, 90), (22, 96), (26, 96), (16, 98), (-22, 96),
    (-26, 96), (-16, 98),
]  # fmt: skip
OFFSETS = np.array([*_BODY, *[(0, -88)] * 68, *[(42, -4)] * 21, *[(-42, -4)] * 21])


def write_detectors(folder: Path, *, box: tuple[float, float, float, float] = (0, 0, 640, 640)) -> Path:
    """Both files; ``box`` is the person's in the square of 640 pixels: left, top, right, bottom."""
    folder.mkdir(parents=True, exist_ok=True)
    output = np.zeros((1, 8400, 85), dtype=np.float32)
    centre, sides = ((box[0] + box[2]) / 64, (box[1] + box[3]) / 64), (box[2] - box[0], box[3] - box[1])
    output[0, 8000, :6] = [*centre, *np.log(np.array(sides) / 32), 1.0, 0.9]
    nodes = [
        helper.make_node("ReduceMean", ["images"], ["mean"], axes=[0, 1, 2, 3], keepdims=0),
        helper.make_node("Mul", ["mean", "zero"], ["nothing"]),
        helper.make_node("Add", ["constant", "nothing"], ["output"]),
    ]
    known = {"constant": output, "zero": np.zeros((), dtype=np.float32)}
    save_graph(folder / PERSON_MODEL, nodes, known, {"images": [1, 3, 640, 640]}, {"output": [1, 8400, 85]})
    nodes, known, outputs = [], {}, {}
    for axis, (name, length, reduced) in enumerate((("simcc_x", 288, 2), ("simcc_y", 384, 3))):
        kernel = np.zeros((133, 1, 2 * REACH + 1), dtype=np.float32)
        kernel[np.arange(133), 0, REACH - OFFSETS[:, axis]] = 1
        known |= {
            f"{name}_twice": np.array([1, 1, length, 2]), f"{name}_flat": np.array([1, 1, 2 * length]),
            f"{name}_kernel": kernel, f"{name}_line": np.array([1, 1, length, 1]),
        }  # fmt: skip
        nodes += [
            helper.make_node("ReduceMax", ["input"], [f"{name}_max"], axes=[1, reduced], keepdims=0),
            helper.make_node("Reshape", [f"{name}_max", f"{name}_line"], [f"{name}_row"]),
            helper.make_node("Expand", [f"{name}_row", f"{name}_twice"], [f"{name}_pairs"]),
            helper.make_node("Reshape", [f"{name}_pairs", f"{name}_flat"], [f"{name}_long"]),
            helper.make_node("Conv", [f"{name}_long", f"{name}_kernel"], [name], pads=[REACH, REACH]),
        ]
        outputs[name] = [1, 133, 2 * length]
    save_graph(folder / POINT_MODEL, nodes, known, {"input": [1, 3, 384, 288]}, outputs)
    return folder
