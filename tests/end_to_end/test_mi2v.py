"""``mi2v`` and ``wan generate mi2v-5B``: the seed's command line, every source of pictures, and bad input."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from click.testing import Result
from PIL import Image

import wan_core.loading
from wan_core.media import read_video, write_video
from wan_mi2v.cli import SCRIPT_5B, mi2v

Run = Callable[..., Result]
DATA = Path(__file__).resolve().parents[1] / "data" / "moving_circle"
THREE = [DATA / name for name in ("00.png", "04.png", "08.png")]
FAST = ["--sample_steps", 2, "--seed", 3]


@pytest.fixture
def run_mi2v(run: Run) -> Run:
    """Run ``mi2v`` in an empty folder."""
    return partial(run, command=mi2v)


def shape_of(path: Path) -> tuple[int, ...]:
    """(frames, channels, height, width) of a video file."""
    return tuple(read_video(path).frames.shape)


def test_the_seeds_command_line_makes_a_video(
    run_mi2v: Run, checkpoint: Callable[[str], Path], picture: Path, tmp_path: Path
) -> None:
    result = run_mi2v(
        "--ckpt_dir", checkpoint("ti2v-5B"), "--images", picture, *THREE, "--prompt", "a cat walking in the garden",
        "--size", "64*96", "--frame_num", 17, "--sample_steps", 2, "--sample_shift", 5.0, "--sample_solver", "unipc",
        "--sample_guide_scale", 5.0, "--seed", 1, "--offload_model", True, "--save_file", tmp_path / "v.mp4",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert shape_of(tmp_path / "v.mp4") == (17, 3, 64, 96)


def test_wan_generate_takes_the_task_and_its_pictures(
    run: Run, checkpoint: Callable[[str], Path], picture: Path, tmp_path: Path
) -> None:
    out = tmp_path / "v.mp4"
    result = run(
        "generate", "--task", "mi2v-5B", "--ckpt_dir", checkpoint("ti2v-5B"), "--images", picture, picture, picture,
        "--frame_num", 9, "--sample_steps", 2, "--size", "96*64", "--t5_cpu", "--prompt", "p", "--save_file", out,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert shape_of(out) == (9, 3, 64, 96)
    assert "nothing is generated" in result.output


def test_the_scripts_defaults_are_those_of_the_seed(run_mi2v: Run, checkpoint: Callable[[str], Path]) -> None:
    result = run_mi2v(
        "--ckpt_dir", checkpoint("ti2v-5B"), "--images", *THREE, "--prompt", "p", "--dry-run", "--json", "--quiet"
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    plan = json.loads(result.stdout)[0]
    expected = {
        "num_frames": 81,
        "num_inference_steps": 40,
        "flow_shift": 5.0,
        "solver": "unipc",
        "guidance_scale": 5.0,
    }
    assert {name: plan[name] for name in expected} == expected
    assert (SCRIPT_5B.sampling.width, SCRIPT_5B.sampling.height) == (704, 1280)
    assert (plan["width"], plan["height"]) == (960, 928)  # a square picture within that area
    assert plan["preset"] == "mi2v-5B"
    assert "mi2v-5B_960x928_p_" in plan["output"]


def test_without_weights_the_tiny_model_runs(run_mi2v: Run, tmp_path: Path) -> None:
    result = run_mi2v("--images", *THREE, "--prompt", "p", *FAST, "--save_file", "v.mp4", "--preview", "s.png")
    assert result.exit_code == 0, result.output
    assert "bundled tiny model" in result.output
    assert shape_of(tmp_path / "v.mp4") == (17, 3, 64, 64)
    assert "04.png at latent frame 1" in result.output
    assert Image.open(tmp_path / "s.png").size == (5 * 100 + 4, 3 * 116 + 4)


def test_the_first_frame_shows_the_first_picture(run_mi2v: Run, tmp_path: Path) -> None:
    result = run_mi2v("--images", *THREE, "--prompt", "p", *FAST, "--save_file", "f/%04d.png", "--preview", "s.png")
    assert result.exit_code == 0, result.output
    decibels = [float(line.split(": ")[1].split(" dB")[0]) for line in result.output.splitlines() if " dB in" in line]
    assert len(decibels) == 3
    assert decibels[0] >= 30
    assert min(decibels[1:]) >= 25


@pytest.mark.parametrize(
    ("options", "latent_frames"),
    [
        (["--images", DATA, "--joint"], [0, 1, 2, 3]),
        (["--images", THREE[0], THREE[1], "--at", "0,4"], [0, 4]),
        (["--clip", "in.mp4", "--frames", "0:9", "--joint"], [0, 1, 2]),
        (["--clip", "in.mp4", "--frames", "0:9:4"], [0, 1, 2]),
        (["--clip", "in.mp4", "--frames", "3:4", "--at", "2"], [2]),
    ],
)
def test_pictures_come_from_folders_and_clips(
    options: list[object], latent_frames: list[int], run_mi2v: Run, tmp_path: Path
) -> None:
    from wan_core.media import image_to_tensor, load_image

    frames = [image_to_tensor(load_image(path)) for path in sorted(DATA.iterdir())]
    write_video((frame.unsqueeze(1) for frame in frames), tmp_path / "in.mp4", fps=8)
    result = run_mi2v(*options, "--prompt", "p", "--dry-run", "--json", "--quiet")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)[0]["anchored_latent_frames"] == latent_frames


def test_several_videos_have_a_sheet_each_and_a_command_that_makes_them_again(run_mi2v: Run, run: Run) -> None:
    result = run_mi2v(
        "--images", *THREE[:2], "--at", "0,3", "--prompt", "p", "--frame_num", 13, *FAST, "--num-videos", 2,
        "--save_file", "v.mp4", "--preview", "s.png",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in Path().iterdir()) == ["s-0000.png", "s-0001.png", "v-0000.mp4", "v-0001.mp4"]
    command = json.loads(run("show", "v-0001.mp4", "--json").stdout)["command"]
    assert command.startswith("wan generate tiny-mi2v --prompt p")
    assert "--images 00.png 04.png --at 0,3" in command
    assert "--seed 4" in command
    assert "preview" not in command


def test_both_commands_are_listed(run: Run, run_mi2v: Run) -> None:
    assert "mi2v-5B" in run("presets").output
    assert "tiny-mi2v" in run("generate", "--help").output
    assert "--images PATH..." in run_mi2v("--help").output
    assert run_mi2v("--version").output.startswith("mi2v ")


PROMPT = ["--prompt", "p"]
GOOD = [*PROMPT, "--images", "{tmp}/a.png"]

# name: (arguments after `mi2v`, exit code, words that the message must have). {tmp} is a folder of test files.
BAD: dict[str, tuple[list[str], int, tuple[str, ...]]] = {
    "no pictures": (PROMPT, 2, ("--images", "--clip")),
    "no prompt": (GOOD[2:], 2, ("--prompt",)),
    "list without values": ([*PROMPT, "--images"], 2, ("--images", "one value or more")),
    "list before an option": (["--images", *PROMPT], 2, ("--images", "one value or more")),
    "empty name": ([*PROMPT, "--images", ""], 2, ("--images", "empty")),
    "missing picture": ([*PROMPT, "--images", "{tmp}/a.png", "{tmp}/none.png"], 2, ("none.png", "does not exist")),
    "picture that is text": ([*PROMPT, "--images", "{tmp}/text.png"], 4, ("text.png", "PNG")),
    "cut picture": ([*GOOD, "{tmp}/cut.png"], 4, ("cut.png",)),
    "folder without pictures": ([*PROMPT, "--images", "{tmp}/empty"], 2, ("empty", "no pictures")),
    "prompt among the pictures": (["--images", "{tmp}/a.png", "a cat"], 2, ("--prompt",)),
    "too many pictures": ([*GOOD, *["{tmp}/a.png"] * 5], 2, ("6 pictures", "5 latent frames", "--frame-num 21")),
    "more positions than pictures": ([*GOOD, "--at", "0,1"], 2, ("--at", "1 pictures", "2 numbers")),
    "position outside": ([*GOOD, "--at", "5"], 2, ("--at 5", "0 to 4", "--frame-num 21")),
    "position twice": ([*GOOD, "{tmp}/a.png", "--at", "1,1"], 2, ("--at", "twice", "1,1")),
    "positions that are no numbers": ([*GOOD, "--at", "start"], 2, ("--at", "0,8,20", "start")),
    "negative position": ([*GOOD, "--at", "-1"], 2, ("--at", "-1")),
    "four joint pictures": ([*GOOD, *["{tmp}/a.png"] * 3, "--joint"], 2, ("4n+1", "got 4", "1 and 5")),
    "too many joint pictures": (
        [*GOOD, *["{tmp}/a.png"] * 20, "--joint"],
        2,
        ("21 pictures", "17 frames", "--frame-num 21"),
    ),
    "joint with positions": ([*GOOD, "--joint", "--at", "0"], 2, ("--joint", "--at")),
    "frames without a clip": ([*GOOD, "--frames", "0:5"], 2, ("--frames 0:5", "--clip")),
    "pictures and a clip": ([*GOOD, "--clip", "{tmp}/in.mp4"], 2, ("images and clip",)),
    "backward frames": ([*PROMPT, "--clip", "{tmp}/in.mp4", "--frames", "5:2"], 2, ("START:STOP", "5:2")),
    "frames beyond the clip": ([*PROMPT, "--clip", "{tmp}/in.mp4", "--frames", "6:9"], 2, ("in.mp4", "8 frames")),
    "whole clip": ([*PROMPT, "--clip", "{tmp}/in.mp4"], 2, ("more than 5 pictures", "--frame-num")),
    "missing clip": ([*PROMPT, "--clip", "{tmp}/none.mp4"], 2, ("none.mp4", "does not exist")),
    "clip that is a picture of text": ([*PROMPT, "--clip", "{tmp}/text.png", "--frames", "0:2"], 4, ("text.png",)),
    "preview of another kind": ([*GOOD, "--preview", "{tmp}/s.jpg"], 2, ("s.jpg",)),
    "preview as a video": ([*GOOD, "--preview", "{tmp}/s.mp4"], 2, ("--preview", ".png")),
    "preview is a folder": ([*GOOD, "--preview", "{tmp}/empty"], 4, ("empty", "folder")),
    "frames not 4n+1": ([*GOOD, "--frame_num", "80"], 2, ("80", "77 and 81")),
    "endless picture": ([*PROMPT, "--images", "{tmp}/long.png"], 2, ("20000x10", "extreme")),
    "narrow second picture": ([*GOOD, "{tmp}/long.png"], 2, ("long and narrow",)),
    "size that is no multiple": ([*GOOD, "--ckpt_dir", "{tmp}", "--size", "1280*720"], 2, ("720", "704 and 736")),
    "missing weights": ([*GOOD, "--ckpt_dir", "{tmp}/none"], 3, ("none", "mi2v-5B")),
    "empty weights": ([*GOOD, "--ckpt_dir", "{tmp}/empty"], 3, ("mi2v-5B",)),
    "unknown solver": ([*GOOD, "--sample_solver", "heun"], 2, ("heun", "unipc")),
    "unknown option": ([*GOOD, "--image", "{tmp}/a.png"], 2, ("--image",)),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch

    folder = tmp_path_factory.mktemp("bad")
    (folder / "empty").mkdir()
    (folder / "text.png").write_text("I am no picture.\n" * 50)
    Image.effect_noise((64, 64), 50).save(folder / "a.png")
    (folder / "cut.png").write_bytes((folder / "a.png").read_bytes()[:1500])
    Image.new("RGB", (20_000, 10)).save(folder / "long.png")
    write_video([torch.zeros(3, 8, 32, 32)], folder / "in.mp4", fps=8)
    return folder


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_clear_sentence(
    name: str, run_mi2v: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments, exit_code, words = BAD[name]

    def no_weights(*args: object, **kwargs: object) -> None:
        raise AssertionError("weights were read before the request was checked")

    monkeypatch.setattr(wan_core.loading, "load_model", no_weights)
    before = sorted(folder.rglob("*"))
    result = run_mi2v("--quiet", *(word.format(tmp=folder) for word in arguments))
    assert result.exit_code == exit_code, result.output
    text = " ".join(result.output.split())
    assert "Traceback" not in text
    assert all(word in text for word in words), text
    assert sorted(folder.rglob("*")) == before
    assert not list(Path().iterdir())
