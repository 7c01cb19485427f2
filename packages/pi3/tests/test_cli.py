"""The commands on a tiny checkpoint: what they write, and what they say to bad requests."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import av
import click
import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image
from safetensors.torch import save_file

import pi3.checkpoints.locate
from pi3 import Pi3
from pi3.cli import pi3 as pi3_command
from pi3.cli.sources import folder_images, read_views
from pi3.ply import read_ply
from wan_core import CheckpointError
from wan_core.media import probe_video, write_video

Run = Callable[..., Result]
KEEP_ALL = ["--conf", "0", "--edge-rtol", "0"]


@pytest.fixture(scope="module")
def folder(model: Pi3, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights, pictures, a short video, and files that are none of these."""
    root = tmp_path_factory.mktemp("cli")
    config = {**model.config.to_dict(), "pixel_limit": 28 * 42}
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(state, root / "w.safetensors", metadata={"config": json.dumps(config)})
    (root / "cut.safetensors").write_bytes((root / "w.safetensors").read_bytes()[:500])
    save_file({"a": torch.zeros(1)}, root / "other.safetensors")
    images = root / "pictures"
    images.mkdir()
    generator = np.random.default_rng(0)
    for index in (1, 2, 10):
        Image.fromarray(generator.integers(0, 255, (20, 30, 3), dtype=np.uint8)).save(images / f"p{index}.png")
    write_video((torch.rand(3, 5, 32, 48) * 2 - 1 for _ in range(5)), root / "clip.mp4", fps=8)
    (root / "empty").mkdir()
    (root / "colmap/images").mkdir(parents=True)
    (root / "colmap/images/holiday.jpg").write_bytes(b"photo")
    (root / "text.png").write_text("no picture")
    (root / "text.mp4").write_text("no video")
    (root / "bad.ply").write_text("no cloud")
    return root


@pytest.fixture
def run(folder: Path, tmp_path: Path) -> Run:
    def invoke(*arguments: str) -> Result:
        places = {"in": str(folder), "out": str(tmp_path)}
        return CliRunner().invoke(pi3_command, [argument.format(**places) for argument in arguments])

    return invoke


def reconstruct(run: Run, *arguments: str) -> Result:
    result = run("reconstruct", "{in}/pictures", "--ckpt", "{in}/w.safetensors", *KEEP_ALL, *arguments)
    assert result.exit_code == 0, result.output
    return result


def test_a_folder_becomes_a_cloud_with_preview_and_orbit(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pi3.cli.film.SECONDS", 1)
    result = reconstruct(
        run, "--out", "{out}/s.ply", "--preview", "{out}/s.png", "--orbit", "{out}/o.mp4", "--max-points", "100"
    )
    assert "3 views of 42x28" in result.output
    assert len(read_ply(tmp_path / "s.ply")[0]) == 100
    assert Image.open(tmp_path / "s.png").size == (640, 480)
    assert probe_video(tmp_path / "o.mp4").num_frames == 24


@pytest.mark.parametrize("name", ["s.npz", "s.glb", "model"])
def test_other_formats_are_chosen_by_the_ending(name: str, run: Run, tmp_path: Path) -> None:
    reconstruct(run, "--out", f"{{out}}/{name}", "--quiet")
    assert (tmp_path / name).exists()
    assert not list(tmp_path.glob(".pi3*"))


def test_single_images_and_intervals(run: Run, tmp_path: Path) -> None:
    weights = ["--ckpt", "{in}/w.safetensors"]
    one = run("poses", "{in}/pictures/p1.png", *weights)
    assert [view["name"] for view in json.loads(one.stdout)["views"]] == ["p1"]
    every_second = run("poses", "{in}/pictures", "--interval", "2", "-o", "{out}/p.json", *weights)
    assert every_second.exit_code == 0
    views = json.loads((tmp_path / "p.json").read_text())["views"]
    assert [view["name"] for view in views] == ["p1", "p10"]


def test_a_video_is_taken_every_tenth_frame(run: Run) -> None:
    result = run("poses", "{in}/clip.mp4", "--ckpt", "{in}/w.safetensors")
    assert [view["name"] for view in json.loads(result.stdout)["views"]] == [
        "clip_000000",
        "clip_000010",
        "clip_000020",
    ]


def test_numbers_in_names_count(folder: Path) -> None:
    assert [path.stem for path in folder_images(folder / "pictures")] == ["p1", "p2", "p10"]


def test_images_of_another_shape_are_noted(run: Run, tmp_path: Path) -> None:
    Image.new("RGB", (30, 30)).save(tmp_path / "square.png")
    result = run("poses", "{in}/pictures/p1.png", "{out}/square.png", "--ckpt", "{in}/w.safetensors")
    assert "another shape" in result.stderr


def test_depth_maps_in_two_kinds(run: Run, tmp_path: Path) -> None:
    result = run("depth", "{in}/pictures", "--out", "{out}/d", "--ckpt", "{in}/w.safetensors", *KEEP_ALL)
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in (tmp_path / "d").iterdir())[:3] == [
        "depth.json",
        "p10_colour.png",
        "p10_depth.png",
    ]
    assert Image.open(tmp_path / "d" / "p1_depth.png").mode == "I;16"


def test_bfloat16_runs_on_the_cpu(run: Run) -> None:
    result = run("poses", "{in}/pictures", "--ckpt", "{in}/w.safetensors", "--dtype", "bfloat16", "--device", "cpu")
    assert result.exit_code == 0, result.output


def test_a_sequence_is_filmed_frame_by_frame(run: Run, tmp_path: Path) -> None:
    reconstruct(run, "--out", "{out}/f2.ply")
    shutil.copy(tmp_path / "f2.ply", tmp_path / "f10.ply")
    for sequence in ("{out}", "{out}/f*.ply"):
        result = run("view", sequence, "--save", "{out}/v.mp4", "--fps", "4", "--max-points", "50")
        assert result.exit_code == 0, result.output
        assert probe_video(tmp_path / "v.mp4").num_frames == 2
    assert run("view", "{out}/f2.ply", "--save", "{out}/one.mp4", "--fps", "2").exit_code == 0
    assert probe_video(tmp_path / "one.mp4").num_frames == 10


def test_inspect_checks_and_describes(run: Run) -> None:
    facts = json.loads(run("inspect", "{in}/w.safetensors", "--json").stdout)
    assert (facts["model"], facts["pixel_limit"], facts["dtypes"]) == ("Pi3", 1176, {"float32": facts["tensors"]})
    assert "decoder layers:  4" in run("inspect", "{in}/w.safetensors").stdout


def test_download_names_file_and_repository(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *a, **k: str(tmp_path / "model.safetensors"))
    result = run("download", "pi3x")
    assert result.exit_code == 0
    assert "yyfz233/Pi3X" in result.stdout


def test_without_bundled_weights_the_download_is_named(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(pi3.checkpoints.locate, "files", lambda package: tmp_path)
    result = run("reconstruct", "{in}/pictures", "--out", "{out}/s.ply")
    assert (result.exit_code, "pi3 download" in result.stderr) == (3, True)


def test_help_needs_no_torch() -> None:
    assert "reconstruct" in CliRunner().invoke(pi3_command, ["--help"]).output


W = ["--ckpt", "{in}/w.safetensors"]
P = "{in}/pictures"
OUT = ["--out", "{out}/s.ply"]
# name: (arguments, exit code, words that the message must have).
CASES: dict[str, tuple[list[str], int, tuple[str, ...]]] = {
    "no pictures": (["reconstruct", *OUT], 2, ("PICTURES",)),
    "no output": (["reconstruct", P, *W], 2, ("--out",)),
    "missing picture": (["reconstruct", "{in}/none.png", *OUT, *W], 2, ("none.png", "does not exist")),
    "picture that is none": (["reconstruct", "{in}/text.png", *OUT, *W], 4, ("text.png", "PNG")),
    "video that is none": (["reconstruct", "{in}/text.mp4", *OUT, *W], 4, ("text.mp4",)),
    "empty folder": (["reconstruct", "{in}/empty", *OUT, *W], 2, ("empty", "no pictures")),
    "folder beside picture": (["reconstruct", P, "{in}/pictures/p1.png", *OUT, *W], 2, ("must come alone",)),
    "unknown ending": (["reconstruct", P, "--out", "{out}/s.obj", *W], 2, (".obj", ".ply")),
    "interval of zero": (["reconstruct", P, *OUT, *W, "--interval", "0"], 2, ("--interval", "0")),
    "confidence of two": (["reconstruct", P, *OUT, *W, "--conf", "2"], 2, ("--conf", "0 to 1")),
    "negative edge": (["reconstruct", P, *OUT, *W, "--edge-rtol", "-1"], 2, ("--edge-rtol", "-1")),
    "no points": (["reconstruct", P, *OUT, *W, "--max-points", "0"], 2, ("--max-points", "0")),
    "few pixels": (["reconstruct", P, *OUT, *W, "--pixel-limit", "10"], 2, ("--pixel-limit", "196")),
    "unknown device": (["reconstruct", P, *OUT, *W, "--device", "moon"], 2, ("moon", "cpu")),
    "absent device": (["reconstruct", P, *OUT, *W, "--device", "mps"], 5, ("mps", "--device cpu")),
    "unknown dtype": (["reconstruct", P, *OUT, *W, "--dtype", "int3"], 2, ("int3", "bfloat16")),
    "missing weights": (["reconstruct", P, *OUT, "--ckpt", "{in}/none.safetensors"], 3, ("none.safetensors", "pi3x")),
    "cut weights": (["reconstruct", P, *OUT, "--ckpt", "{in}/cut.safetensors"], 3, ("cut.safetensors", "again")),
    "other weights": (["reconstruct", P, *OUT, "--ckpt", "{in}/other.safetensors"], 3, ("is no Pi3",)),
    "preview as video": (["reconstruct", P, *OUT, *W, "--preview", "{out}/p.bmp"], 2, (".bmp",)),
    "orbit as picture": (["reconstruct", P, *OUT, *W, "--orbit", "{out}/o.xyz"], 2, (".xyz", ".mp4")),
    "output below a file": (["reconstruct", P, "--out", "{in}/text.png/s.ply", *W], 4, ("text.png",)),
    "depth into a file": (["depth", P, "--out", "{out}/d.png", *W], 2, ("folder", "d.png")),
    "poses of an unknown kind": (["poses", P, "--out", "{out}/p.csv", *W], 2, ("p.csv", "TUM")),
    "no clouds": (["view", "{in}/empty", "--save", "{out}/v.mp4"], 2, ("empty", ".ply")),
    "cloud that is none": (["view", "{in}/bad.ply", "--save", "{out}/v.mp4"], 4, ("bad.ply", "PLY")),
    "no frames per second": (["view", "{in}/bad.ply", "--save", "{out}/v.mp4", "--fps", "0"], 2, ("fps", "0")),
    "inspect nothing": (["inspect", "{in}/none"], 3, ("none", "hub id")),
    "output that is an input": (
        ["reconstruct", P, *OUT, *W, "--preview", "{in}/pictures/p2.png"],
        2,
        ("p2.png", "input"),
    ),
    "one output twice": (
        ["reconstruct", P, "-o", "{out}/a.ply", *W, "--preview", "{out}/b.png", "--orbit", "{out}/b.png"],
        2,
        ("place",),
    ),
    "somebody's images": (["reconstruct", P, *W, "--out", "{in}/colmap"], 2, ("holiday.jpg", "another folder")),
    "depth over a picture": (
        ["depth", "{in}/a.png", "{in}/a_depth.png", "-o", "{in}", *W],
        2,
        ("a_depth.png", "input"),
    ),
    "no number": (["reconstruct", P, *OUT, *W, "--conf", "nan"], 2, ("--conf", "finite")),
    "no finite frames": (["view", "{in}/bad.ply", "--save", "{out}/v.mp4", "--fps", "nan"], 2, ("fps", "finite")),
    "unknown command": (["refine"], 2, ("refine",)),
}


@pytest.mark.parametrize("name", CASES)
def test_bad_requests_get_one_sentence_and_leave_nothing(name: str, run: Run, tmp_path: Path) -> None:
    arguments, code, words = CASES[name]
    result = run(*arguments)
    assert result.exit_code == code, result.output
    assert all(word in result.stderr for word in words), result.stderr
    assert "Traceback" not in result.output
    assert list(tmp_path.iterdir()) == []


def test_debug_lets_the_error_through(run: Run) -> None:
    result = run("inspect", "{in}/cut.safetensors", "--debug")
    assert isinstance(result.exception, CheckpointError)


def test_every_command_has_help() -> None:
    for name in pi3_command.list_commands(click.Context(pi3_command)):
        assert CliRunner().invoke(pi3_command, [name, "--help"]).exit_code == 0


@pytest.mark.parametrize("name", ["camera_head.fc_rot.weight", "conf_decoder.projects.weight"])
def test_weights_that_give_no_numbers_are_said(run: Run, folder: Path, tmp_path: Path, model: Pi3, name: str) -> None:
    state = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    state[name][:] = float("nan")
    config = {**model.config.to_dict(), "pixel_limit": 28 * 42}
    save_file(state, tmp_path / "nan.safetensors", metadata={"config": json.dumps(config)})
    result = run("reconstruct", "{in}/pictures", "--ckpt", "{out}/nan.safetensors", "--out", "{out}/s.ply")
    assert result.exit_code == CheckpointError.exit_code
    assert "Pi3 gave no numbers" in result.output
    assert not (tmp_path / "s.ply").exists()


def test_how_a_video_is_read_is_noted_once(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        stream = container.add_stream("ffv1", rate=8)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for index in range(3):
            frame = av.VideoFrame(64, 48, "yuv420p")
            frame.pts = index
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    notes: list[str] = []
    read_views([tmp_path / "a.mkv"], interval=1, pixel_limit=10_000, patch_size=14, warn=notes.append)
    (note,) = notes
    assert note.startswith(f"{tmp_path / 'a.mkv'} does not say its colour matrix; BT.601 is taken")


def test_names_that_some_disk_or_text_would_confuse_are_numbered(tmp_path: Path) -> None:
    plain = [tmp_path / name for name in ("a.png", "b c.png", "x\ny.png", "z" * 250 + ".png")]
    alike = [tmp_path / name for name in ("A.png", "a.png")]
    for path in {*plain, *alike}:
        Image.new("RGB", (28, 28)).save(path)

    def names(paths: list[Path]) -> tuple[str, ...]:
        return read_views(paths, interval=None, pixel_limit=784, patch_size=14, warn=lambda text: None).names

    assert names(plain) == ("a", "b c", "x y", "z" * 200)
    assert names(alike) == ("0000_A", "0001_a")
