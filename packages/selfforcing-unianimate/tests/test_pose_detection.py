"""Detection by tiny ONNX files of the published layout."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from selfforcing_unianimate.detection import PERSON_MODEL, POINT_MODEL, PoseDetector
from wan_core import BackendError, CheckpointError, MediaError

from .detectors import OFFSETS, write_detectors


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_detectors(tmp_path_factory.mktemp("detectors"))


def dot(x: int, y: int, width: int = 288, height: int = 384, level: int = 255) -> np.ndarray:
    """A bright dot on black."""
    picture = np.zeros((height, width, 3), dtype=np.uint8)
    picture[y - 1 : y + 2, x - 1 : x + 2] = level
    return picture


def test_points_come_back_in_pixels_of_the_picture(folder: Path) -> None:
    points, scores = PoseDetector(folder, device="cpu").points(dot(144, 200))
    # The box is the whole square of 640 pixels: 384 of the picture, a quarter more around it, as wide as the input.
    scale = 384 * 1.25 / 288
    assert points == pytest.approx(np.array([144, 200]) + OFFSETS / 2 * scale, abs=2.5)
    assert (scores > 0.3).all()


def test_the_crop_follows_the_box(tmp_path: Path) -> None:
    """A dot outside of the person's box is not looked at."""
    left = write_detectors(tmp_path, box=(0, 0, 120, 240))
    poses = PoseDetector(left, device="cpu").poses([dot(300, 300, 384, 384), dot(20, 60, 384, 384)])
    assert poses.has_person.tolist() == [False, True]


@pytest.mark.parametrize("box", [(0, 0, 1e12, 1e12), (9, 9, 9.2, 9.2), (-1e9, 0, 640, 640)])
def test_a_box_that_no_person_has_counts_as_none(tmp_path: Path, box: tuple[float, float, float, float]) -> None:
    poses = PoseDetector(write_detectors(tmp_path, box=box)).poses([dot(144, 200)])
    assert poses.body[0, 0] == pytest.approx([0.5, (200 - 45 * 384 * 1.25 / 384) / 384], abs=0.05)


def test_the_person_network_sees_blue_first(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    detector = PoseDetector(folder, device="cpu")
    run = detector._persons.run
    monkeypatch.setattr(detector._persons, "run", lambda pixels, shapes: (seen.append(pixels), run(pixels, shapes))[1])
    red = np.zeros((64, 64, 3), dtype=np.uint8)
    red[..., 0] = 200
    detector.points(red)
    assert seen[0][0, :, 0, 0].tolist() == [0.0, 0.0, 200.0]


def test_the_poses_of_a_walk_are_one_person(folder: Path) -> None:
    poses = PoseDetector(folder, device="cpu").poses([dot(120 + 5 * step, 200) for step in range(3)])
    assert poses.body.shape == (3, 20, 2)
    assert (poses.subset == np.arange(20)).all()
    steps = np.diff(poses.body[:, 8, 0]) * 288
    assert steps == pytest.approx([5, 5], abs=1.5)
    assert poses.body[0, 5, 0] > poses.body[0, 2, 0]


def test_nobody_is_told(folder: Path) -> None:
    detector = PoseDetector(folder, device="cpu")
    with pytest.raises(MediaError, match="no person was found"):
        detector.poses([np.zeros((40, 30, 3), dtype=np.uint8)])
    with pytest.raises(MediaError, match="no picture to look"):
        detector.poses([])
    assert detector.points(np.zeros((1, 1, 3), dtype=np.uint8))[1].max() <= 0


def test_detectors_that_are_not_there_or_others_are_told(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"there is no folder .*sfu download --only detectors"):
        PoseDetector(tmp_path / "none")
    with pytest.raises(CheckpointError, match=r"yolox_l\.onnx is missing"):
        PoseDetector(tmp_path)
    (tmp_path / PERSON_MODEL).write_bytes((folder / POINT_MODEL).read_bytes())
    (tmp_path / POINT_MODEL).write_bytes(b"no network at all")
    with pytest.raises(CheckpointError, match="is another network: it takes"):
        PoseDetector(tmp_path)
    (tmp_path / PERSON_MODEL).write_bytes((folder / PERSON_MODEL).read_bytes())
    with pytest.raises(CheckpointError, match=r"is no ONNX network, or a damaged one; fetch it again"):
        PoseDetector(tmp_path)


def test_outputs_of_another_shape_are_told(folder: Path, tmp_path: Path) -> None:
    (tmp_path / POINT_MODEL).write_bytes((folder / POINT_MODEL).read_bytes())
    model = onnx.load(folder / PERSON_MODEL)
    del model.graph.node[:]
    node = onnx.helper.make_node("Flatten", ["images"], ["output"])
    model.graph.node.append(node)
    del model.graph.initializer[:]
    model.graph.output[0].CopyFrom(onnx.helper.make_tensor_value_info("output", onnx.TensorProto.FLOAT, None))
    onnx.save(model, tmp_path / PERSON_MODEL)
    with pytest.raises(CheckpointError, match=r"its outputs are \[\(1, 1228800\)\], not"):
        PoseDetector(tmp_path).points(dot(20, 20))


def test_without_onnxruntime_the_extra_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(BackendError, match=r"onnxruntime.*selfforcing-unianimate\[pose\]"):
        PoseDetector(folder)
