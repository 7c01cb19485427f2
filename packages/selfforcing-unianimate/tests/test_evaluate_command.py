"""``sfu evaluate``: videos with their poses in, a table and a report out, and what can go wrong."""

import csv
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from torch import Tensor, nn

from selfforcing_unianimate.cli import COMMANDS
from selfforcing_unianimate.cli.evaluate import evaluate
from selfforcing_unianimate.evaluation import block_starts
from selfforcing_unianimate.frame_blocks import FrameBlocks
from selfforcing_unianimate.metrics import METRICS
from selfforcing_unianimate.metrics.flow import Raft
from selfforcing_unianimate.pose_file import PoseFile, write_pose_file
from wan_core.cli import wan
from wan_core.media import Provenance, read_provenance, write_video
from wan_core.runtime import optional_packages

from .detectors import write_detectors
from .people import person

SIZE = (192, 256)
POSE_METRICS = [*METRICS][:13]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Detectors; videos of a dot that walks, which is a person to them; their poses, found once."""
    place = tmp_path_factory.mktemp("evaluate")
    write_detectors(place / "detectors", box=(0, 0, 480, 640))
    path = [90, 94, 100, 104, 112]
    write_video([dot(x) for x in path], place / "walk.mp4", fps=12, crf=1)
    write_video([dot(x + 8) for x in path], place / "beside.mp4", fps=12, crf=1)
    write_video([dot(x) for x in path[:3]], place / "short.mp4", fps=12, crf=1)
    write_video([black()] * 5, place / "nobody.mp4", fps=12)
    write_video([black()[..., :128]] * 5, place / "narrow.mp4", fps=12)
    for name in ("walk", "beside", "short"):
        words = [str(place / f"{name}.mp4"), "--out", str(place / f"{name}.npz"), "--quiet"]
        result = CliRunner().invoke(COMMANDS["pose"].load(), [*words, "--detector-dir", str(place / "detectors")])
        assert result.exit_code == 0, result.output
    aligned = PoseFile(driving=person(5), reference=person(), size=SIZE, fps=12, alignment="reference")
    write_pose_file(aligned, place / "aligned.npz")
    (place / "damaged.npz").write_bytes((place / "walk.npz").read_bytes()[:200])
    (place / "text.mp4").write_text("no video")
    return place


def dot(x: int, y: int = 130) -> Tensor:
    """A bright dot on black: [3, 1, H, W] in -1..1."""
    frame = black()
    frame[..., y - 3 : y + 3, x - 3 : x + 3] = 1
    return frame


def black() -> Tensor:
    return torch.full((3, 1, *SIZE[::-1]), -1.0)


def run(place: Path, *words: str, quiet: bool = True) -> Result:
    """The command; ``{}`` in a word is the place."""
    given = [word.replace("{}", str(place)) for word in words]
    common = ["--detector-dir", str(place / "detectors"), "--device", "cpu", *["--quiet"] * quiet]
    return CliRunner().invoke(evaluate, [*common, *given])


def report_of(place: Path, *words: str) -> dict[str, Any]:
    result = run(place, *words, "--json")
    assert result.exit_code == 0, result.output
    loaded: dict[str, Any] = json.loads(result.stdout)
    return loaded


def test_a_video_follows_its_own_pose(place: Path) -> None:
    values = report_of(place, "{}/walk.mp4", "--pose", "{}/walk.npz")["clips"][0]["values"]
    perfect = {"missing_rate": 0, "akd": 0, "akd_relative": 0, "limb_angle": 0, "jitter": 0, "best_lag": 0}
    assert {name: values[name] for name in POSE_METRICS} == pytest.approx(
        {name: perfect.get(name, 1) for name in POSE_METRICS}, abs=1e-6
    )
    assert "psnr" not in values
    assert "seam_ratio" not in values


def test_a_person_beside_the_pose_is_that_far_away(place: Path) -> None:
    words = ["{}/beside.mp4", "--pose", "{}/walk.npz"]
    values = report_of(place, *words)["clips"][0]["values"]
    assert values["akd"] == pytest.approx(8, abs=1)
    assert values["limb_angle"] == pytest.approx(0, abs=0.5)
    assert values["pck_0.2"] == 1
    assert values["oks"] < 0.7
    found_before = report_of(place, *words, "--detected", "{}/beside.npz")["clips"][0]["values"]
    assert found_before == pytest.approx(values)


def test_nobody_in_the_video_is_a_score_and_no_error(place: Path) -> None:
    values = report_of(place, "{}/nobody.mp4", "--pose", "{}/walk.npz")["clips"][0]["values"]
    assert (values["pck_0.1"], values["missing_rate"], values["akd"]) == (0, 1, None)


@pytest.fixture(scope="module")
def written(place: Path) -> dict[str, Any]:
    """The report, as a file, of two videos with a target."""
    out = place / "new" / "report.json"
    words = ["{}/walk.mp4", "{}/beside.mp4", "--pose", "{}/walk.npz", "--target", "{}/walk.mp4"]
    result = run(place, *words, "--target", "{}/walk.mp4", "--block", "1", "--seed", "7", "--out", str(out))
    assert result.exit_code == 0, result.output
    assert "akd (px)" in result.output
    loaded: dict[str, Any] = json.loads(out.read_text())
    return loaded


def test_the_report_says_how_it_was_made(place: Path, written: dict[str, Any]) -> None:
    assert (written["format"], written["left_out"]) == ("sfu-evaluate/1", [])
    assert [*written["metrics"]] == [*written["summary"]] == [*METRICS]
    made = written["provenance"]
    assert made["settings"] == {"flow": "farneback", "block": 1, "no_pose": False, "seed": 7}
    assert made["record"]["detector_sha256"] == {path.name: sha256(path) for path in (place / "detectors").iterdir()}
    assert {"torch", "opencv", "providers"} <= set(made["record"])


def test_the_report_has_every_clip_with_its_files(place: Path, written: dict[str, Any]) -> None:
    first = written["clips"][0]
    assert first["video"] == str(place / "walk.mp4")
    named = {"video": "walk.mp4", "pose": "walk.npz", "target": "walk.mp4"}
    assert first["sha256"] == {role: sha256(place / name) for role, name in named.items()}
    assert (first["frames"], first["size"], first["block"]) == (5, [*SIZE], 1)
    assert (first["values"]["psnr"], first["values"]["ssim"], first["values"]["tof"]) == (99, pytest.approx(1), 0)


def test_the_report_s_means_are_over_clips(written: dict[str, Any]) -> None:
    low, high = (clip["values"]["akd"] for clip in written["clips"])
    assert written["summary"]["akd"] == {"mean": pytest.approx((low + high) / 2), "low": low, "high": high, "count": 2}


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_table_has_a_line_for_each_metric_and_no_interval_for_one_clip(place: Path) -> None:
    lines = run(place, "{}/walk.mp4", "--pose", "{}/walk.npz").stdout.splitlines()
    rows = {line.split()[0]: line.split() for line in lines}
    assert rows["metric"] == ["metric", "better", "mean", "95", "%", "interval", "clips"]
    assert rows["pck_0.1"] == ["pck_0.1", "higher", "1", "1"]
    assert [*rows][1:] == [name for name in METRICS if name not in ("seam_ratio", "psnr", "ssim", "tof")]


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv"])
def test_a_list_names_files_from_its_own_folder_on(place: Path, kind: str) -> None:
    rows = [
        {"video": "walk.mp4", "pose": "walk.npz", "detected": "walk.npz", "block": 1, "reference_video": "walk.mp4"},
        {"video": str(place / "beside.mp4"), "pose": "walk.npz", "detected": "beside.npz"},
    ]
    table = place / f"cases.{kind}"
    if kind == "jsonl":
        table.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    elif kind == "json":
        table.write_text(json.dumps(rows))
    else:
        with table.open("w", newline="") as file:
            writer = csv.DictWriter(file, [*rows[0]])
            writer.writeheader()
            writer.writerows(rows)
    report = report_of(place, "--list", str(table))
    assert [clip["values"]["akd"] for clip in report["clips"]] == [0, pytest.approx(8, abs=1)]
    assert [clip["block"] for clip in report["clips"]] == [1, None]
    assert report["summary"]["psnr"]["count"] == 1


def test_a_folder_is_its_videos_with_the_poses_beside_them(place: Path, tmp_path: Path) -> None:
    for name in ("walk.mp4", "walk.npz", "beside.mp4", "beside.npz"):
        (tmp_path / name).write_bytes((place / name).read_bytes())
    report = report_of(place, str(tmp_path))
    assert [Path(clip["video"]).name for clip in report["clips"]] == ["beside.mp4", "walk.mp4"]
    assert report["summary"]["akd"]["mean"] == pytest.approx(0, abs=1e-6)


def test_without_poses_steadiness_is_measured_alone(place: Path) -> None:
    report = report_of(place, "{}/walk.mp4", "--no-pose")
    assert not set(POSE_METRICS) & set(report["summary"])
    assert "detector_sha256" not in report["provenance"]["record"]


@pytest.mark.parametrize(
    ("blocks", "frames", "starts"),
    [
        (FrameBlocks(size=3), 81, (0, 9, 21, 33, 45, 57, 69)),
        (FrameBlocks(size=3, first_alone=True), 37, (0, 1, 13, 25)),
        (FrameBlocks(size=1), 9, (0, 1, 5)),
        (FrameBlocks(size=1), 1, (0,)),
        (FrameBlocks(size=1), 10, (0, 1, 5, 9)),
    ],
)
def test_blocks_of_latent_frames_begin_at_every_fourth_frame(
    blocks: FrameBlocks, frames: int, starts: tuple[int, ...]
) -> None:
    assert block_starts(blocks, frames) == starts


@pytest.mark.parametrize(
    ("said", "block"),
    [({"size": 1}, 1), ({"size": 3, "first_alone": True}, 3), ({"size": 0}, None), ({"size": "3"}, None), ([3], None)],
)
def test_blocks_are_those_of_the_video_s_record(place: Path, tmp_path: Path, said: Any, block: int | None) -> None:
    video = tmp_path / "video.mp4"
    write_video([black()] * 5, video, fps=12, provenance=Provenance(preset="tiny-sfu", settings={"blocks": said}))
    clip = report_of(place, str(video), "--no-pose")["clips"][0]
    assert clip["block"] == block
    assert ("seam_ratio" in clip["values"]) == (block is not None)
    assert report_of(place, str(video), "--no-pose", "--block", "2")["clips"][0]["block"] == 2


def test_a_causal_video_says_its_blocks(tmp_path: Path, place: Path) -> None:
    video = tmp_path / "video.mp4"
    words = ["--prompt", "a red circle", "--frame-num", "5", "--sample-steps", "1", "--output", str(video), "--quiet"]
    assert CliRunner().invoke(COMMANDS["infer"].load(), words).exit_code == 0
    assert read_provenance(video).settings["blocks"] == {"size": 1, "first_alone": False}
    assert report_of(place, str(video), "--no-pose")["clips"][0]["block"] == 1
    shown = CliRunner().invoke(wan, ["show", str(video)])
    assert "--blocks" not in shown.output


def test_a_motion_of_another_length_or_name_is_told(place: Path, tmp_path: Path) -> None:
    video = tmp_path / "video.mp4"
    write_video([dot(90)] * 4, video, fps=12, provenance=Provenance(preset="sfu-1.3B", settings={"pose": "run.npz"}))
    output = run(place, str(video), "--pose", "{}/walk.npz", quiet=False).stderr
    assert "says that it was driven by run.npz, and is compared with" in output
    assert "walk.npz has 5 poses, the first 4 are compared" in output
    short = run(place, "{}/walk.mp4", "--pose", "{}/short.npz", quiet=False).stderr
    assert "short.npz has 3 poses for 5 frames; its last one stays to the end" in short


BAD = [
    ([], 2, "there is nothing to evaluate"),
    (["{}/walk.mp4"], 2, "has no pose to be compared with; give --pose"),
    (["{}/none.mp4", "--pose", "{}/walk.npz"], 2, "none.mp4 does not exist"),
    (["{}/text.mp4", "--pose", "{}/walk.npz"], 4, "text.mp4"),
    (["{}/walk.mp4", "--pose", "{}/none.npz"], 2, "none.npz does not exist"),
    (["{}/walk.mp4", "--pose", "{}/damaged.npz"], 4, "is no pose file or damaged"),
    (["{}/walk.mp4", "--pose", "{}/walk.mp4"], 2, "drawn skeletons have no coordinates"),
    (["{}/walk.mp4", "--pose", "{}/detectors"], 2, "is a folder"),
    (["{}/walk.mp4", "--pose", "{}/walk.npz", "--detected", "{}/short.npz"], 2, "short.npz has 3 poses and"),
    (["{}/walk.mp4", "--pose", "{}/walk.npz", "--detected", "{}/aligned.npz"], 2, "were aligned to a reference"),
    (["{}/walk.mp4", "--pose", "{}/walk.npz", "--target", "{}/short.mp4"], 2, "3 frames of 192x256 and"),
    (["{}/walk.mp4", "--pose", "{}/walk.npz", "--target", "{}/narrow.mp4"], 2, "is of 128x256 and"),
    (
        ["{}/walk.mp4", "{}/beside.mp4", "--pose", "{}/walk.npz", "--target", "{}/walk.mp4"],
        2,
        "2 videos and 1 of --targ",
    ),
    (["{}/walk.mp4", "--pose", "{}/walk.npz", "--pose", "{}/walk.npz"], 2, "1 videos and 2 of --pose"),
    (["{}/walk.mp4", "--pose", "{}/walk.npz", "--no-pose"], 2, "or --no-pose, not both"),
    (["{}/walk.mp4", "--pose", "{}/walk.npz", "--block", "0"], 2, "0 is not in the range"),
    (["{}/walk.mp4", "--pose", "{}/walk.npz", "--out", "report.txt"], 2, "--out ends in .json"),
    (["{}/walk.mp4", "--pose", "{}/walk.npz", "--flow", "horn"], 2, "'horn' is not one of"),
    (["{}/walk.mp4", "--pose", "{}/walk.npz", "--flow", "raft"], 2, "--flow raft needs --raft-weights FILE"),
    (["{}/walk.mp4", "--pose", "{}/walk.npz", "--raft-weights", "{}/walk.npz"], 2, "are for --flow raft"),
    (["{}/walk.mp4", "--pose", "{}/walk.npz", "--detector-dir", "nowhere"], 3, "sfu download --only detectors"),
    (["{}/detectors"], 2, "holds no video"),
    (["{}/walk.mp4", "--list", "{}/cases.jsonl"], 2, "--list names videos and poses; give it alone"),
    (["--list", "{}/none.jsonl"], 2, "cannot read"),
    (["{}/walk.mp4", "{}/none.mp4", "{}/text.mp4", "--pose", "{}/walk.npz"], 2, "2 of 3 clips cannot be evaluated"),
    (["{}/text.mp4", "--pose", "{}/walk.npz", "--skip-bad"], 4, "text.mp4"),
]


@pytest.mark.parametrize(("words", "code", "message"), BAD)
def test_bad_input_is_one_sentence_and_leaves_nothing(
    place: Path, tmp_path: Path, words: list[str], code: int, message: str
) -> None:
    result = run(place, "--out", str(tmp_path / "report.json"), *words)
    assert (result.exit_code, "Traceback" in result.output) == (code, False), result.output
    assert message in result.output
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "lists no clip"),
        (["no json"], "line 1"),
        (["[1]"], "line 1: each line must be one JSON object"),
        (['{"pose": "walk.npz"}'], "line 1: video is missing"),
        (['{"video": "walk.mp4", "skeleton": "walk.npz"}'], "unknown column 'skeleton'; columns are video, pose,"),
        (['{"video": "walk.mp4", "file": "walk.mp4"}'], "is a second column for video"),
        (['{"video": 7}'], "video must be the name of a file, got 7"),
        (['{"video": "walk.mp4", "pose": "walk.npz", "block": "three"}'], "block must be a whole number"),
        (['{"video": "walk.mp4", "pose": "walk.npz", "block": true}'], "block must be a whole number"),
    ],
)
def test_bad_lines_of_a_list_are_named(place: Path, tmp_path: Path, lines: list[str], message: str) -> None:
    table = tmp_path / "cases.jsonl"
    table.write_text("\n".join(lines))
    result = run(place, "--list", str(table))
    assert (result.exit_code, "Traceback" in result.output) == (2, False), result.output
    assert message in result.output


def test_bad_clips_are_left_out_when_asked(place: Path, tmp_path: Path) -> None:
    table = place / "mixed.jsonl"
    known = {"pose": "walk.npz", "detected": "walk.npz"}
    rows = [{"video": name, **known} for name in ("walk.mp4", "none.mp4", "short.mp4")]
    table.write_text("\n".join([*map(json.dumps, rows), '{"clip": 1}']))
    assert "2 of 4 clips cannot be evaluated" in run(place, "--list", str(table)).output
    result = run(place, "--list", str(table), "--skip-bad", "--out", str(tmp_path / "report.json"))
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "report.json").read_text())
    assert [Path(clip["video"]).name for clip in report["clips"]] == ["walk.mp4"]
    assert len(report["left_out"]) == 3
    assert "left out 3 clips that cannot be evaluated" in result.stderr
    for reason in ("none.mp4 does not exist", "line 4: unknown column 'clip'", "has 5 poses and"):
        assert reason in result.stderr


def test_an_interruption_leaves_nothing(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr("selfforcing_unianimate.detection.PoseDetector.points", interrupted)
    result = run(place, "{}/walk.mp4", "--pose", "{}/walk.npz", "--out", str(tmp_path / "report.json"))
    assert result.exit_code == 130
    assert list(tmp_path.iterdir()) == []


class Halves(nn.Module):
    """A stand-in for torchvision's RAFT of the same calls: the flow is its one weight, and grows with the frames."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((size,), 0.5))

    def forward(self, first: Tensor, second: Tensor) -> list[Tensor]:
        assert first.shape[2] % 8 == first.shape[3] % 8 == 0
        assert min(first.shape[2:]) >= 128
        step = (first - second).abs().amax() * self.weight[0]
        return [torch.zeros(1, 2, *first.shape[2:]), step.expand(1, 2, *first.shape[2:])]


@pytest.fixture
def raft(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    module = SimpleNamespace(raft_small=lambda: Halves(1), raft_large=lambda: Halves(2))
    real = optional_packages.import_module
    monkeypatch.setattr(
        optional_packages, "import_module", lambda name: module if "torchvision" in name else real(name)
    )
    return lambda name: getattr(module, name)()


@pytest.mark.parametrize("name", ["raft_small", "raft_large"])
def test_raft_is_told_by_its_weights(name: str, raft: Callable[[str], Any], tmp_path: Path) -> None:
    torch.save(raft(name).state_dict(), tmp_path / "raft.pth")
    network = Raft(tmp_path / "raft.pth")
    assert network.name == name
    dark, light = np.zeros((70, 90, 3), dtype=np.uint8), np.full((70, 90, 3), 255, dtype=np.uint8)
    flow = network(dark, light)
    assert (flow.shape, flow.dtype) == ((70, 90, 2), np.float32)
    assert (flow == 1).all()
    assert not network(dark, dark).any()


def test_the_report_names_raft_and_other_weights_are_refused(
    place: Path, raft: Callable[[str], Any], tmp_path: Path
) -> None:
    torch.save(raft("raft_small").state_dict(), tmp_path / "raft.pth")
    words = ["{}/walk.mp4", "--no-pose", "--flow", "raft", "--raft-weights"]
    made = report_of(place, *words, str(tmp_path / "raft.pth"))["provenance"]
    assert made["record"]["flow_network"] == "raft_small"
    assert made["record"]["flow_sha256"] == sha256(tmp_path / "raft.pth")
    torch.save({"weight": torch.zeros(5)}, tmp_path / "other.pth")
    result = run(place, *words, str(tmp_path / "other.pth"))
    assert result.exit_code == 3
    assert "holds no weights of torchvision's raft_small or raft_large" in result.output


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--flow", "raft", "--raft-weights", "{}/walk.npz"], "selfforcing-unianimate[raft]"),
        ([], "selfforcing-unianimate[evaluate]"),
    ],
)
def test_a_missing_package_is_named_with_its_extra(
    place: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], message: str
) -> None:
    def absent(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(optional_packages, "import_module", absent)
    result = run(place, "{}/walk.mp4", "--no-pose", *words)
    assert result.exit_code == 5, result.output
    assert message in result.output
