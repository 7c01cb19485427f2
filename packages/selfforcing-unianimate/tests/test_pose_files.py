"""Pose files, and the three kinds of motion that a network takes."""

import io
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from selfforcing_unianimate.drawing import model_picture
from selfforcing_unianimate.pose_file import PoseFile, read_pose_file, write_pose_file
from selfforcing_unianimate.pose_source import frame_indices, open_pose, skeletons
from wan_core import MediaError, RequestError
from wan_core.media import Provenance, image_to_tensor, write_video

from .people import person


def made(frames: int = 5, **changes: Any) -> PoseFile:
    values = {
        "driving": person(frames), "reference": person(scale=0.9), "size": (64, 96), "fps": 24.0,
        "alignment": "none", "provenance": Provenance(preset="sfu pose"),
    }  # fmt: skip
    return PoseFile(**{**values, **changes})


def written(path: Path, **arrays: np.ndarray | None) -> Path:
    """A pose file in which these arrays are others, or missing."""
    write_pose_file(made(), path)
    with np.load(path, allow_pickle=False) as stored:
        content = {**stored, **arrays}
    np.savez(path, **{name: array for name, array in content.items() if array is not None})
    return path


def test_a_pose_file_comes_back_whole(tmp_path: Path) -> None:
    write_pose_file(made(), tmp_path / "pose.npz")
    back = read_pose_file(tmp_path / "pose.npz")
    assert np.array_equal(back.driving.body, made().driving.body)
    assert back.reference is not None
    assert np.array_equal(back.reference.hands, person(scale=0.9).hands)
    assert (back.size, back.fps, back.alignment) == ((64, 96), 24.0, "none")
    assert back.provenance is not None
    assert back.provenance.preset == "sfu pose"
    write_pose_file(made(reference=None, provenance=None), tmp_path / "pose.npz")
    assert read_pose_file(tmp_path / "pose.npz").reference is None
    assert [path.name for path in tmp_path.iterdir()] == ["pose.npz"]


BODY = person(5).body
NAN = BODY.copy()
NAN[2, 3] = np.nan


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"version": np.array(9)}, "its version is 9"),
        ({"version": None}, "it has no version"),
        ({"body": NAN}, "body holds NaN"),
        ({"body": BODY[:4]}, "differ in their number of frames"),
        ({"body": BODY[:, :18]}, r"body is float64 \[5, 18, 2\], not"),
        ({"body": BODY.astype(np.int64)}, "body is int64"),
        ({"body": BODY * 1000}, "more than 100 pictures away"),
        ({"hands": None}, "it has no hands"),
        ({"subset": np.full((5, 20), 7.0)}, "subset holds another number"),
        ({"fps": np.array(np.inf)}, "fps is inf"),
        ({"size": np.array([0, 5])}, "size is no width"),
        ({"alignment": np.array("sideways\x1b[2J")}, "alignment is 'sideways"),
        ({"faces": np.array([object()] * 5, dtype=object)}, "holds no numbers"),
        ({"reference_body": BODY}, "differ in their number"),
        ({"reference_scores": None}, "it has no reference_scores"),
    ],
)
def test_a_pose_file_that_makes_no_sense_is_refused(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    with pytest.raises(MediaError, match=message) as raised:
        read_pose_file(written(tmp_path / "bad.npz", **arrays))
    assert "\x1b" not in str(raised.value)


def test_what_is_no_zip_and_what_lies_about_its_size_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bad.npz"
    path.write_bytes(b"PK\x03\x04 nothing")
    with pytest.raises(MediaError, match="no pose file or damaged"):
        read_pose_file(path)
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": (10**9, 20, 2)})
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("body.npy", header.getvalue())
    with pytest.raises(MediaError, match="does not have the size that it says"):
        read_pose_file(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("body.npy", bytes(1 << 20))
        archive.infolist()[0].file_size = 1 << 40
    with pytest.raises(MediaError, match="no pose file"):
        read_pose_file(path)
    for packing in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        with zipfile.ZipFile(path, "w", packing) as archive:
            archive.writestr("body.npy", b"no array")
        with pytest.raises(MediaError, match="packed in a way"):
            read_pose_file(path)
    whole = written(tmp_path / "cut.npz").read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(MediaError, match="no pose file"):
        read_pose_file(path)
    with pytest.raises(RequestError, match=r"ends in \.npz"):
        write_pose_file(made(), tmp_path / "pose.npy")


def test_a_folder_a_clip_and_a_file_of_one_motion_give_the_same_pictures(tmp_path: Path) -> None:
    """The pictures as the reference keeps them: exchanged channels, files by name, the reference in one called pose."""
    file, (width, height) = made(), (96, 64)
    write_pose_file(file, tmp_path / "pose.npz")
    drawn = [model_picture(file.driving[index : index + 1], 512, 768) for index in range(5)]
    folder = tmp_path / "frames"
    folder.mkdir()
    for index, picture in enumerate(drawn):
        Image.fromarray(picture).save(folder / f"{index}.png")
    Image.fromarray(model_picture(person(scale=0.9), 512, 768)).save(folder / "pose.png")
    pictures = [image_to_tensor(Image.fromarray(picture))[:, None] for picture in drawn]
    write_video(pictures, tmp_path / "clip.mp4", fps=24, crf=0)
    from_file, from_folder, from_clip = (
        skeletons(open_pose(tmp_path / name), width, height, 5) for name in ("pose.npz", "frames", "clip.mp4")
    )
    assert (from_file.frames.shape, from_file.frames.dtype) == ((3, 5, height, width), torch.uint8)
    assert torch.equal(from_file.frames, from_folder.frames)
    assert (from_clip.frames.float() - from_file.frames.float()).abs().mean() < 2
    references = [each.reference for each in (from_file, from_folder) if each.reference is not None]
    assert torch.equal(*references)
    assert references[0].shape == (height, width, 3)
    assert (from_clip.reference, open_pose(tmp_path / "clip.mp4").fps, open_pose(folder).fps) == (None, 24.0, None)


def test_frames_are_chosen_as_the_reference_does() -> None:
    assert frame_indices(9, 9) == tuple(range(9))
    assert frame_indices(100, 9, interval=2) == tuple(range(0, 18, 2))
    assert frame_indices(100, 9, interval=2, start=80) == tuple(range(80, 98, 2))
    # Too few for the interval: the largest that fits, and the last one repeats.
    assert frame_indices(18, 9, interval=2) == tuple(range(0, 18, 2))
    assert frame_indices(20, 9, interval=4) == tuple(range(0, 18, 2))
    assert frame_indices(4, 9) == (0, 1, 2, 3, 3, 3, 3, 3, 3)
    drawn = {frame_indices(100, 9, start=None, seed=seed)[0] for seed in range(20)}
    assert len(drawn) > 5
    assert max(drawn) <= 90
    assert frame_indices(100, 9, start=None, seed=3) == frame_indices(100, 9, start=None, seed=3)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"total": 0, "count": 9}, "at least 1"),
        ({"total": 9, "count": 9, "interval": 0}, "at least 1"),
        ({"total": 9, "count": 9, "start": 3}, "there are not 9 frames"),
        ({"total": 20, "count": 9, "start": 12}, "can begin at frame 0 to 11"),
        ({"total": 20, "count": 9, "start": -1}, "can begin at frame 0 to 11"),
    ],
)
def test_choices_that_cannot_be_are_told(values: dict[str, int], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        frame_indices(**values)


def test_motions_that_cannot_be_read_are_told(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"must be an \.npz of 'sfu pose', a video or a folder"):
        open_pose(tmp_path / "pose.txt")
    with pytest.raises(RequestError, match=r"pose file .* does not exist"):
        open_pose(tmp_path / "none.npz")
    with pytest.raises(RequestError, match="holds no pictures of skeletons"):
        open_pose(tmp_path)
    Image.new("RGB", (8, 8)).save(tmp_path / "pose.jpg")
    with pytest.raises(RequestError, match="holds no pictures of skeletons"):
        open_pose(tmp_path)
    write_pose_file(made(), tmp_path / "pose.npz")
    with pytest.raises(RequestError, match=r"4k\+1 frames, got 8"):
        skeletons(open_pose(tmp_path / "pose.npz"), 64, 64, 8)
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    with pytest.raises(MediaError, match="no video"):
        open_pose(tmp_path / "bad.mp4")


def test_a_hidden_person_is_an_empty_picture(tmp_path: Path) -> None:
    away = {"body": np.full((1, 20, 2), -1.0), "hands": np.full((1, 2, 21, 2), -1.0)}
    hidden = replace(person(), subset=np.full((1, 20), -1.0), **away)
    write_pose_file(made(driving=hidden), tmp_path / "pose.npz")
    assert not skeletons(open_pose(tmp_path / "pose.npz"), 64, 64, 5).frames.any()
