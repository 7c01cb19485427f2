"""Bad requests: one clear sentence, the right exit code, no traceback, nothing left behind, nothing loaded."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from PIL import Image

import wan_core.loading
from wan_core.cli import wan

Run = Callable[..., Result]
GOOD = ["--prompt", "a red circle"]

# name: (arguments after `wan generate`, exit code, words that the message must have). {tmp} is an empty folder.
CASES: dict[str, tuple[list[str], int, tuple[str, ...]]] = {
    "unknown task": (["t2v-15B", *GOOD], 2, ("t2v-15B", "t2v-A14B")),
    "unknown task by flag": (["--task", "t2v-15B", *GOOD], 2, ("t2v-15B", "t2v-A14B")),
    "folder without task": (["--ckpt_dir", "{tmp}", *GOOD], 2, ("--ckpt-dir", "task")),
    "real task without folder": (["t2v-A14B", *GOOD], 2, ("--ckpt-dir", "wan download t2v-A14B")),
    "no prompt": ([], 0, ("Tasks",)),
    "task without prompt": (["tiny-t2v"], 2, ("--prompt",)),
    "empty prompt": (["--prompt", "  "], 2, ("prompt is empty",)),
    "output without a name": ([*GOOD, "--output", ""], 2, ("--output", "it is empty")),
    "folder without a name": (["t2v-A14B", *GOOD, "--ckpt-dir", ""], 2, ("--ckpt-dir", "it is empty")),
    "prompt and prompt file": ([*GOOD, "--prompt-file", "{tmp}/p.txt"], 2, ("not both",)),
    "missing prompt file": (["--prompt-file", "{tmp}/none.txt"], 2, ("none.txt",)),
    "prompt file without prompts": (["--prompt-file", "{tmp}/empty.txt"], 2, ("empty.txt", "no prompt")),
    "prompt file that is no text": (["--prompt-file", "{tmp}/binary.txt"], 2, ("binary.txt, line 2", "UTF-8")),
    "frames not 4n+1": ([*GOOD, "--frame-num", "80"], 2, ("num_frames", "80", "77", "81")),
    "no frames": ([*GOOD, "--frame-num", "0"], 2, ("num_frames", "0")),
    "size of one number": ([*GOOD, "--size", "1280"], 2, ("1280", "width*height")),
    "size of zero": ([*GOOD, "--size", "0*64"], 2, ("0*64",)),
    "size off the grid": (["ti2v-5B", "--ckpt-dir", "{tmp}", *GOOD, "--size", "1280*720"], 2, ("height", "704", "736")),
    "steps zero": ([*GOOD, "--sample-steps", "0"], 2, ("num_inference_steps", "0")),
    "steps no number": ([*GOOD, "--sample-steps", "many"], 2, ("many",)),
    "negative shift": ([*GOOD, "--sample-shift", "-1"], 2, ("flow_shift", "-1")),
    "unknown solver": ([*GOOD, "--sample-solver", "heun"], 2, ("heun", "unipc")),
    "guidance of three": ([*GOOD, "--sample-guide-scale", "1,2,3"], 2, ("1,2,3", "LOW,HIGH")),
    "guidance too large": ([*GOOD, "--sample-guide-scale", "1000"], 2, ("guidance_scale", "1000")),
    "two scales for one network": ([*GOOD, "--sample-guide-scale", "3,4"], 2, ("guidance_scale", "one")),
    "unknown device": ([*GOOD, "--device", "quantum"], 2, ("quantum", "cpu")),
    "absent device": ([*GOOD, "--device", "mps"], 5, ("mps", "cpu")),
    "unknown dtype": ([*GOOD, "--dtype", "int3"], 2, ("int3", "bfloat16")),
    "parts somewhere": (
        [*GOOD, "--offload_model", "sometimes"],
        2,
        ("sometimes", "True, False or blocks"),
    ),
    "step cache without numbers": (["tiny-moe", *GOOD, "--tea-cache", "0.1"], 2, ("tiny-moe", "tiny-t2v")),
    "step cache of zero": ([*GOOD, "--tea-cache", "0"], 2, ("above 0", "0")),
    "step cache no number": ([*GOOD, "--tea-cache", "much"], 2, ("much",)),
    "unknown noise device": ([*GOOD, "--noise-device", "moon"], 2, ("moon",)),
    "picture for a text task": (["tiny-t2v", *GOOD, "--image", "{tmp}/good.png"], 2, ("--image",)),
    "no picture for an image task": (["tiny-i2v", *GOOD], 2, ("--image",)),
    "missing picture": (["tiny-i2v", *GOOD, "--image", "{tmp}/none.png"], 2, ("none.png",)),
    "picture that is none": (["tiny-i2v", *GOOD, "--image", "{tmp}/binary.txt"], 4, ("binary.txt",)),
    "cut picture": (["tiny-i2v", *GOOD, "--image", "{tmp}/cut.png"], 4, ("cut.png",)),
    "picture is a folder": (["tiny-i2v", *GOOD, "--image", "{tmp}"], 2, ("folder",)),
    "endless picture": (["tiny-ti2v", *GOOD, "--image", "{tmp}/long.png"], 2, ("20000x10", "crop")),
    "unknown file type": ([*GOOD, "--output", "{tmp}/v.avi.txt"], 2, (".txt", ".mp4")),
    "output is a folder": ([*GOOD, "--output", "{tmp}/folder.mp4"], 4, ("folder.mp4",)),
    "output below a file": ([*GOOD, "--output", "{tmp}/good.png/v.mp4"], 4, ("good.png",)),
    "missing folder of weights": (["t2v-1.3B", *GOOD, "--ckpt-dir", "{tmp}/none"], 3, ("none",)),
    "empty folder of weights": (["t2v-1.3B", *GOOD, "--ckpt-dir", "{tmp}/empty"], 3, ("t2v-1.3B",)),
    "output over the picture": (
        ["tiny-ti2v", *GOOD, "--image", "{tmp}/good.png", "--frame-num", "1", "--output", "{tmp}/good.png"],
        2,
        ("good.png", "an input"),
    ),
    "fps zero": ([*GOOD, "--fps", "0"], 2, ("fps", "0")),
    "no videos": ([*GOOD, "--num-videos", "0"], 2, ("0",)),
    "unknown attention": ([*GOOD, "--attention", "magic"], 2, ("magic", "sdpa")),
    "unknown option": ([*GOOD, "--frobnicate"], 2, ("--frobnicate",)),
    "stray word": (["tiny-t2v", "hello", *GOOD], 2, ("hello",)),
    "huge seed": ([*GOOD, "--seed", str(2**64)], 2, ("seed",)),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "empty").mkdir()
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "empty.txt").write_text("\n\n")
    (tmp_path / "binary.txt").write_bytes(bytes(range(256)))
    Image.new("RGB", (32, 32)).save(tmp_path / "good.png")
    Image.new("RGB", (20_000, 10)).save(tmp_path / "long.png")
    noise = Image.frombytes("RGB", (64, 64), os.urandom(64 * 64 * 3))
    noise.save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:2000])
    return tmp_path


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_one_clear_sentence(name: str, run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments, exit_code, words = CASES[name]

    def no_weights(*args: object, **kwargs: object) -> None:
        raise AssertionError("weights were read before the request was checked")

    monkeypatch.setattr(wan_core.loading, "load_model", no_weights)
    before = sorted(folder.rglob("*"))
    result = run("generate", *(word.format(tmp=folder) for word in arguments))
    assert result.exit_code == exit_code, result.output
    assert "Traceback" not in result.output
    assert len(result.output.strip().splitlines()) <= 12 or exit_code == 0
    for word in words:
        assert word in " ".join(result.output.split()), result.output
    assert sorted(folder.rglob("*")) == before


def test_debug_shows_the_traceback(run: Run) -> None:
    with pytest.raises(wan_core.errors.RequestError):
        run("generate", "tiny-t2v", "--debug", "--prompt", "a", "--frame-num", "80")


def test_every_command_has_help(run: Run) -> None:
    for name in wan.list_commands(None):  # type: ignore[arg-type]
        result = run(name, "--help")
        assert result.exit_code == 0, result.output
        assert "Usage" in result.output
