"""``sfu pose`` and ``sfu download``: from a video to a pose file and back, and what can go wrong."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image
from torch import Tensor

from selfforcing_unianimate import cli
from selfforcing_unianimate.cli.download import download
from selfforcing_unianimate.cli.pose import pose
from selfforcing_unianimate.pose_file import read_pose_file
from selfforcing_unianimate.pose_source import open_pose, skeletons
from wan_core.media import read_provenance, write_video

from .detectors import write_detectors

SIZE = (192, 256)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Detectors, a video of a dot that walks and vanishes in its last frame, and a reference picture."""
    place = tmp_path_factory.mktemp("pose")
    write_detectors(place / "detectors", box=(0, 0, 480, 640))
    frames = [dot(90 + 4 * step) for step in range(5)]
    write_video([*frames, torch.full((3, 1, *SIZE[::-1]), -1.0)], place / "walk.mp4", fps=12, crf=1)
    write_video([torch.full((3, 2, *SIZE[::-1]), -1.0)], place / "nobody.mp4", fps=12)
    Image.fromarray(((dot(110)[:, 0] + 1) * 127.5).permute(1, 2, 0).byte().numpy()).save(place / "person.png")
    Image.new("RGB", SIZE).save(place / "black.png")
    return place


def dot(x: int, y: int = 130) -> Tensor:
    """A bright dot on black: [3, 1, H, W] in -1..1."""
    frame = torch.full((3, 1, *SIZE[::-1]), -1.0)
    frame[..., y - 3 : y + 3, x - 3 : x + 3] = 1
    return frame


def run(place: Path, out: Path, *words: str, video: str = "walk.mp4") -> Result:
    common = ["--detector-dir", str(place / "detectors"), "--device", "cpu", "--quiet"]
    return CliRunner().invoke(pose, [str(place / video), "--out", str(out), *common, *words])


def test_a_video_becomes_aligned_poses_and_a_preview_that_is_a_pose_again(place: Path, tmp_path: Path) -> None:
    out, preview = tmp_path / "pose.npz", tmp_path / "preview.mp4"
    result = run(place, out, "--reference", str(place / "person.png"), "--preview", str(preview))
    assert result.exit_code == 0, result.output
    assert "6 poses, 12 a second, alignment reference" in result.output
    made = read_pose_file(out)
    assert (made.alignment, made.size, made.fps) == ("reference", SIZE, 12.0)
    assert made.driving.has_person.tolist() == [True] * 5 + [False]
    assert made.reference is not None
    # The same body: aligned, the first frame stands where the reference does, and the walk goes on from there.
    assert made.driving.body[0] == pytest.approx(made.reference.body[0], abs=0.02)
    assert np.diff(made.driving.body[:5, 1, 0]) * SIZE[0] == pytest.approx([4] * 4, abs=2)
    assert made.provenance is not None
    assert made.provenance.settings["video"] == "walk.mp4"
    assert read_provenance(preview).preset == "sfu pose"
    drawn, filmed = (skeletons(open_pose(path), 96, 128, 5).frames.float() for path in (out, preview))
    assert (drawn - filmed).abs().mean() < 6


def test_without_a_reference_the_poses_stay_as_they_are(place: Path, tmp_path: Path) -> None:
    assert run(place, tmp_path / "raw.npz", "--max-frames", "2").exit_code == 0
    raw = read_pose_file(tmp_path / "raw.npz")
    assert (raw.alignment, raw.reference, len(raw.driving)) == ("none", None, 2)
    result = run(place, tmp_path / "v.npz", "--reference", str(place / "person.png"), "--validated")
    assert read_pose_file(tmp_path / "v.npz").alignment == "validated", result.output


def test_gaps_are_told(place: Path, tmp_path: Path) -> None:
    words = [str(place / "walk.mp4"), "--out", str(tmp_path / "p.npz"), "--detector-dir", str(place / "detectors")]
    result = CliRunner().invoke(pose, words)
    assert "note: no person is seen in 1 of 6 frames" in result.output


@pytest.mark.parametrize(
    ("words", "video", "code", "message"),
    [
        (["--align", "reference"], "walk.mp4", 2, "give --reference PICTURE"),
        (["--validated"], "walk.mp4", 2, "--validated is a way to align"),
        (["--reference", "none.png"], "walk.mp4", 2, "none.png does not exist"),
        (["--reference", "{place}/black.png"], "walk.mp4", 4, "black.png: no person was found"),
        ([], "nobody.mp4", 4, "no person was found"),
        ([], "none.mp4", 2, "none.mp4 does not exist"),
        ([], "person.png", 4, "person.png"),
        (["--detector-dir", "nowhere"], "walk.mp4", 3, "sfu download --only detectors"),
        (["--out", "pose.npy"], "walk.mp4", 2, "--out ends in .npz"),
        (["--preview", "preview.doc"], "walk.mp4", 2, "ends in .doc"),
        (["--preview", "one.png"], "walk.mp4", 2, "holds one picture, not 6 frames"),
        (["--max-frames", "0"], "walk.mp4", 2, "--max-frames must be 1 to 100000"),
        (["--start", "9"], "walk.mp4", 2, "has no frame from 9 s"),
        (["--start", "nan"], "walk.mp4", 2, "nan"),
        (["--start", "-1", "--detector-dir", "nowhere"], "walk.mp4", 2, "needs 0 <= start < end, got -1 s to its end"),
        (["--start", "2", "--end", "1"], "walk.mp4", 2, "got 2 s to 1 s"),
        (["--size", "64x64"], "walk.mp4", 2, "--size is that of the preview; give --preview"),
        (["--size", "99999x10", "--preview", "{place}/p.mp4"], "walk.mp4", 2, "at most 4096 pixels, got 99999x10"),
        (["--size", "wide", "--preview", "{place}/p.mp4"], "walk.mp4", 2, "a size is width*height"),
        (["--fps", "0"], "walk.mp4", 2, "give --fps from 0.01 to 1000; got 0"),
        (["--fps", "1e-9"], "walk.mp4", 2, "give --fps from 0.01 to 1000; got 1e-09"),
        (["--preview", "{place}/walk.mp4"], "walk.mp4", 2, "would take the place of an input"),
        (["--preview", "./pose.npz", "--out", "pose.npz"], "walk.mp4", 2, "would take the place of another output"),
        (["--device", "cdua"], "walk.mp4", 2, "'cdua' is not one of"),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_nothing(
    place: Path, tmp_path: Path, words: list[str], video: str, code: int, message: str
) -> None:
    result = run(place, tmp_path / "p.npz", *(word.format(place=place) for word in words), video=video)
    assert (result.exit_code, "Traceback" in result.output) == (code, False), result.output
    assert message in result.output
    assert list(tmp_path.iterdir()) == []


def test_an_interruption_leaves_nothing(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr("selfforcing_unianimate.detection.PoseDetector.points", interrupted)
    result = run(place, tmp_path / "p.npz")
    assert result.exit_code == 130
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_lists_files_and_no_folder_twice() -> None:
    result = CliRunner().invoke(download, ["--dry-run"])
    assert result.exit_code == 0
    assert "checkpoints/Self-Forcing/checkpoints/self_forcing_dmd.pt" in result.output
    assert "checkpoints/checkpoints" not in result.output
    assert "checkpoints/detectors/yolox_l.onnx" in result.output
    assert "about 82 GB" in result.output
    only = CliRunner().invoke(download, ["--dry-run", "--only", "detectors", "--dir", "w"])
    assert len(only.output.splitlines()) == 3


def test_each_repository_is_fetched_into_its_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fetched: list[tuple[str, Path, tuple[str, ...]]] = []

    def fetch(model: str, folder: Path, *, token: str | None, include: tuple[str, ...], quiet: bool) -> None:
        fetched.append((model, folder, include))

    monkeypatch.setattr("wan_core.cli.downloads.fetch_model", fetch)
    result = CliRunner().invoke(download, ["--dir", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert len(fetched) == 6
    assert ("i2v-14B-720P", tmp_path / "Wan2.1-I2V-14B-720P", ()) in fetched
    clip = next(each for each in fetched if each[0].endswith("480P"))
    assert clip[1] == tmp_path / "Wan2.1-T2V-1.3B"


def test_the_commands_are_in_the_group() -> None:
    assert {"pose", "download"} <= set(cli.COMMANDS)
