"""``bindweave evaluate``: a folder of videos in, a report, a table and a sheet out, and what can go wrong."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image

from bindweave.cli.evaluate import evaluate
from bindweave.evaluation import measuring
from wan_core.media import write_video
from wan_core.runtime import optional_packages

from .encoder_folders import write_clip, write_faces

COLOURS = {"red": (230, 30, 30), "green": (30, 200, 60), "blue": (40, 40, 220)}


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoders")
    write_clip(folder / "clip", dim=6)
    write_faces(folder / "faces", points=np.array([[20, 25], [44, 24], [32, 36], [22, 48], [42, 49]], np.float32))
    torch.save({"layers.0.weight": torch.ones(1, 6), "layers.0.bias": torch.zeros(1)}, folder / "head.pth")
    return folder


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Three pictures, a video of each in ``videos`` with its manifest, and their samples."""
    (tmp_path / "videos").mkdir()
    rows = {}
    for name, colour in COLOURS.items():
        Image.new("RGB", (60, 60), colour).save(tmp_path / f"{name}.png")
        frame = torch.tensor(colour).view(3, 1, 1, 1) / 127.5 - 1
        write_video([frame.expand(3, 3, 64, 64)], tmp_path / "videos" / f"{name}.mp4", fps=8, crf=1)
        rows[name] = {"video": f"{name}.mp4", "prompt": f"a {name} wall", "references": [f"{name}.png"]}
    (tmp_path / "videos" / "manifest.json").write_text(json.dumps(rows))
    samples = {name: {"img_paths": row["references"], "prompt": row["prompt"]} for name, row in rows.items()}
    (tmp_path / "samples.json").write_text(json.dumps(samples))
    return tmp_path


def run(place: Path, *words: object, quiet: bool = True) -> Result:
    given = [str(place / "videos"), "--base-img-dir", str(place), "--device", "cpu", "--frames", "3"]
    return CliRunner().invoke(evaluate, [*given, *["--quiet"] * quiet, *map(str, words)])


def report_of(place: Path, *words: object, exit_code: int = 0) -> dict[str, Any]:
    result = run(place, *words)
    assert result.exit_code == exit_code, result.output
    loaded: dict[str, Any] = json.loads((place / "videos" / "evaluation.json").read_text())
    return loaded


def change(place: Path, **rows: dict[str, object] | None) -> None:
    """Change rows of the manifest; None takes one out."""
    path = place / "videos" / "manifest.json"
    found = json.loads(path.read_text())
    for name, row in rows.items():
        found[name] = found.get(name, {}) | (row or {})
        if row is None:
            del found[name]
    path.write_text(json.dumps(found))


def test_a_folder_with_its_manifest_is_evaluated(place: Path, encoders: Path) -> None:
    report = report_of(
        place, "--encoder", f"clip={encoders / 'clip'}", "--encoder", f"face={encoders / 'faces'}",
        "--aesthetic-head", encoders / "head.pth",
    )  # fmt: skip
    assert [*report["videos"]] == sorted(COLOURS)
    assert [*report["summary"]] == [
        "motion_amplitude", "flow_magnitude", "warp_error", "clip_consistency", "clip_subject", "clip_text",
        "aesthetic_head", "face_similarity", "face_found",
    ]  # fmt: skip
    assert report["summary"]["motion_amplitude"]["mean"] == pytest.approx(0, abs=1e-3)
    assert report["summary"]["face_similarity"]["mean"] == pytest.approx(1, abs=1e-3)
    assert report["measures"]["clip_text"]["source"] == "ours"
    assert report["measures"]["motion_amplitude"]["source"] == "OpenS2V-Eval"
    assert not list((place / "videos").glob(".*"))


def test_the_report_says_how_it_was_made(place: Path, encoders: Path) -> None:
    made = report_of(place, "--encoder", f"clip={encoders / 'clip'}")["provenance"]
    assert made["preset"] == "bindweave evaluate"
    assert made["settings"]["encoders"]["clip"]["name"] == "clip"
    assert len(made["settings"]["encoders"]["clip"]["weights"]) == 16
    assert {"frames", "seed", "domain", "opencv"} <= set(made["settings"])
    assert str(place) not in json.dumps(made)


def test_a_sample_file_names_the_videos(place: Path) -> None:
    (place / "videos" / "manifest.json").unlink()
    assert [*report_of(place, "--samples", place / "samples.json")["videos"]] == sorted(COLOURS)


def test_no_total_stands_under_the_benchmarks_name_unless_all_seven_are_there(place: Path) -> None:
    found = report_of(place)["opens2v_eval"]
    assert found["total"] is None
    assert found["measured"] == ["motion_amplitude"]
    assert found["weighted_mean"] == found["scores"]["motion_amplitude"]
    assert "GPT-4o" in found["not_measured"]["natural_score"]
    assert "TotalScore" in run(place).output
    assert "no TotalScore" in run(place).output


def test_scores_made_elsewhere_complete_the_total(place: Path) -> None:
    raw = {
        "aes_score": 5.5, "motion_smoothness": 0.9, "motion_fb": -0.5, "cur_score": 0.5, "gme_score": 0.5,
        "nexus_score": 0.025, "natural_score": 3,
    }  # fmt: skip
    (place / "scores.json").write_text(json.dumps({name: raw for name in COLOURS}))
    report = report_of(place, "--scores", place / "scores.json")
    assert report["opens2v_eval"]["total"] == pytest.approx(50 + 0.06 * 40)
    assert report["summary"]["motion_amplitude"]["mean"] == 0.5  # what is given goes before what is measured
    assert report["videos"]["red"]["values"]["motion_amplitude"] < 0.1
    (place / "videos" / "red.mp4").unlink()
    assert report_of(place, "--scores", place / "scores.json", exit_code=2)["opens2v_eval"]["total"] is None


def test_a_second_run_measures_nothing_again(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = report_of(place)
    monkeypatch.setattr(measuring, "look_through", None)
    assert report_of(place)["videos"] == first["videos"]


@pytest.mark.parametrize("what", ["video", "reference", "prompt"])
def test_what_changed_is_measured_again(place: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    report_of(place)
    if what == "video":
        (place / "videos" / "red.mp4").write_bytes((place / "videos" / "blue.mp4").read_bytes())
    elif what == "reference":
        Image.new("RGB", (9, 9)).save(place / "red.png")
    else:
        change(place, red={"prompt": "another wall"})
    real, seen = measuring.look_through, []
    monkeypatch.setattr(measuring, "look_through", lambda path, wanted: seen.append(path.stem) or real(path, wanted))
    report_of(place)
    assert seen == ["red"]


def test_an_interrupted_run_goes_on(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, seen = measuring.look_through, []

    def once(path: Path, wanted: int) -> Any:
        if seen:
            raise KeyboardInterrupt
        seen.append(path.stem)
        return real(path, wanted)

    monkeypatch.setattr(measuring, "look_through", once)
    assert run(place).exit_code == 130
    assert not (place / "videos" / "evaluation.json").exists()
    monkeypatch.setattr(measuring, "look_through", lambda path, wanted: seen.append(path.stem) or real(path, wanted))
    report_of(place)
    assert seen == sorted(COLOURS)


def test_missing_videos_are_listed_and_the_others_measured(place: Path) -> None:
    (place / "videos" / "green.mp4").unlink()
    result = run(place)
    assert result.exit_code == 2
    assert "1 of 3 samples are not measured" in result.output
    assert "green: no video" in result.output
    report = json.loads((place / "videos" / "evaluation.json").read_text())
    assert report["missing"] == ["green"]
    assert [*report["videos"]] == ["blue", "red"]


def test_a_damaged_video_does_not_stop_the_others(place: Path) -> None:
    (place / "videos" / "green.mp4").write_bytes(b"no video")
    report = report_of(place, exit_code=4)
    assert "green" in report["failed"]
    assert [*report["videos"]] == ["blue", "red"]


def test_a_table_holds_the_means(place: Path, tmp_path: Path) -> None:
    report = report_of(place, "--table", tmp_path / "table.csv")
    rows = list(csv.DictReader((tmp_path / "table.csv").open()))
    assert [row["measure"] for row in rows][:-1] == [*report["summary"]]
    assert rows[0]["of"] == "OpenS2V-Eval"
    assert float(rows[1]["mean"]) == pytest.approx(report["summary"]["flow_magnitude"]["mean"], abs=1e-3)
    report_of(place, "--table", tmp_path / "table.md")
    assert (tmp_path / "table.md").read_text().splitlines()[1].startswith("| --- | --- |")


def test_a_sheet_shows_references_beside_frames(place: Path, tmp_path: Path) -> None:
    report_of(place, "--sheet", tmp_path / "sheet.png")
    sheet = np.asarray(Image.open(tmp_path / "sheet.png")).astype(int)
    width, height = 196, sheet.shape[0] // 3
    for row, name in enumerate(sorted(COLOURS)):
        for column in (1, 2):  # after the id: the reference, the first frame
            pixel = sheet[row * height + height // 2, column * width + width // 2]
            assert np.abs(pixel - COLOURS[name]).max() < 12, (name, column)


def test_the_same_seed_gives_the_same_report(place: Path) -> None:
    first = run(place, "--json", "--seed", 3).output
    assert first == run(place, "--json", "--seed", 3).output
    assert json.loads(first)["format"] == "bindweave-evaluate/1"


@pytest.mark.parametrize(
    ("words", "exit_code", "message"),
    [
        (["--encoder", "clip"], 2, "an encoder is NAME=PLACE"),
        (["--encoder", "Clip=x"], 2, "an encoder is NAME=PLACE"),
        (["--encoder", "clip={}/none"], 2, "does not exist; fetch it"),
        (["--encoder", "clip={}", "--encoder", "clip={}"], 2, "two encoders clip"),
        (["--encoder", "clip={}/red.png"], 3, "red.png"),
        (["--aesthetic-head", "{}/none.pth"], 2, "aesthetic head"),
        (["--scores", "{}/none.json"], 2, "cannot read"),
        (["--scores", "{}/red.png"], 2, "no UTF-8 text"),
        (["--samples", "{}/none.json"], 2, "cannot read"),
        (["--output", "{}/report.txt"], 2, "--output ends in .json"),
        (["--output", "{}/samples.json"], 2, "no report of 'bindweave evaluate'"),
        (["--output", "{}/samples.json", "--samples", "{}/samples.json"], 2, "take the place of an input"),
        (["--table", "{}/table.txt"], 2, "--table ends in .md or .csv"),
        (["--sheet", "{}/sheet.jpg"], 2, "--sheet ends in .png"),
        (["--table", "{}/no.md/table.md"], 4, "no.md"),
        (["--frames", "1"], 2, "Invalid value for '--frames'"),
        (["--device", "abacus"], 2, "abacus"),
    ],
)
def test_bad_requests_are_one_sentence_and_write_nothing(
    place: Path, words: list[str], exit_code: int, message: str
) -> None:
    (place / "no.md").write_text("a file")
    before = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
    result = run(place, *(word.replace("{}", str(place)) for word in words))
    assert result.exit_code == exit_code, result.output
    assert message in result.output
    assert "Traceback" not in result.output
    assert before == {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"video": 3}, "sample 'red': video must be the name of a file"),
        ({"video": "../red.mp4"}, "paths with .. are refused"),
        ({"references": ["../red.png"]}, "paths with .. are refused"),
        ({"references": []}, "references must be a list of one path or more"),
        ({"prompt": " "}, "prompt must be a text"),
    ],
)
def test_a_bad_manifest_is_refused_with_its_place(place: Path, row: dict[str, object], message: str) -> None:
    change(place, red=row)
    result = run(place)
    assert result.exit_code == 2, result.output
    assert message in result.output


def test_a_folder_without_a_manifest_asks_for_samples(place: Path) -> None:
    (place / "videos" / "manifest.json").unlink()
    result = run(place)
    assert result.exit_code == 2
    assert "name the sample file with --samples" in result.output


def test_a_folder_without_a_video_is_refused(place: Path) -> None:
    for path in (place / "videos").glob("*.mp4"):
        path.unlink()
    result = run(place)
    assert result.exit_code == 2
    assert "holds no video of 3 samples, such as blue.mp4" in result.output


def test_a_missing_reference_leaves_its_video_out(place: Path) -> None:
    (place / "red.png").unlink()
    report = report_of(place, exit_code=2)
    assert "reference" in report["failed"]["red"]


def test_where_nothing_can_be_measured_nothing_is_written(place: Path) -> None:
    for name in COLOURS:
        (place / f"{name}.png").unlink()
    result = run(place)
    assert result.exit_code == 2
    assert "none of 3 samples can be measured" in result.output
    assert not (place / "videos" / "evaluation.json").exists()


def test_scores_of_samples_without_a_video_are_noted(place: Path) -> None:
    (place / "scores.json").write_text(json.dumps({"violet": {"gme_score": 0.5}}))
    result = run(place, "--scores", place / "scores.json", quiet=False)
    assert "1 samples without a video, such as violet" in result.output


def test_without_opencv_the_extra_is_named(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> object:
        raise ImportError(name)

    monkeypatch.setattr(optional_packages, "import_module", absent)
    result = run(place)
    assert result.exit_code == 5
    assert "bindweave[evaluate]" in result.output
