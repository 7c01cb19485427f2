"""``wan show``: readable, machine-readable, and safe for a terminal whatever the file holds."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from wan_core.cli.command_line import command_line
from wan_core.cli.show import show
from wan_core.errors import MediaError, RequestError
from wan_core.media import Provenance, write_video

from .media_clips import smooth_clip


def written(path: Path, prompt: str) -> Provenance:
    provenance = Provenance.of(
        preset="tiny-t2v",
        settings={"prompt": prompt, "seed": 7, "width": 64, "height": 64, "guidance_scale": {"high": 4.0, "low": 3.0}},
        record={"device": "cpu"},
    )
    write_video([smooth_clip(2)], path, fps=8, provenance=provenance)
    return provenance


@pytest.mark.parametrize("name", ["a.mp4", "a.gif", "a.webp", "%04d.png"])
def test_show_prints_the_record_and_the_command(tmp_path: Path, name: str) -> None:
    provenance = written(tmp_path / name, "a cat's day")
    result = CliRunner().invoke(show, [str(tmp_path / name)])
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert lines[0].split() == ["preset", "tiny-t2v"]
    assert lines[1].split(maxsplit=1) == ["prompt", "a cat's day"]
    assert lines[-1] == command_line(provenance)
    assert "device               cpu" in lines


def test_show_json_is_the_record_and_the_command(tmp_path: Path) -> None:
    provenance = written(tmp_path / "a.mp4", "two\nlines \x1b[31m")
    result = CliRunner().invoke(show, [str(tmp_path / "a.mp4"), "--json"])
    found = json.loads(result.output)
    assert found.pop("command") == command_line(provenance)
    assert Provenance.from_json(json.dumps(found)) == provenance
    assert "\x1b" not in result.output


def test_show_prints_no_control_characters_and_says_so(tmp_path: Path) -> None:
    written(tmp_path / "a.mp4", "red \x1b[31m\u202e and\nnew line")
    result = CliRunner().invoke(show, [str(tmp_path / "a.mp4")])
    assert not {"\x1b", "\u202e"} & set(result.output)
    assert "the command leaves them out" in result.output


def test_show_without_a_record_or_a_file_is_one_of_our_errors(tmp_path: Path) -> None:
    write_video([smooth_clip(2)], tmp_path / "a.mp4", fps=8)
    assert CliRunner().invoke(show, [str(tmp_path / "a.mp4")]).exit_code == MediaError.exit_code
    assert CliRunner().invoke(show, [str(tmp_path / "b.mp4")]).exit_code == RequestError.exit_code


def test_the_command_names_files_without_the_folders_of_a_strangers_record() -> None:
    provenance = Provenance.of(
        preset="tiny-poze",
        settings={
            "prompt": "here/there \\ everywhere",
            "image": "/etc/passwd",
            "save_pi3": "/home/me/.bashrc",
            "output": "/x.mp4",
            "images": ["..\\..\\a.png", "../-b.png"],
        },
        record={"lora": ["high=/tmp/evil/a.safetensors:0.8", "../../b.safetensors"], "checkpoint": "/srv/Wan2.1"},
    )
    assert command_line(provenance) == (
        "wan generate tiny-poze --prompt 'here/there \\ everywhere' --image passwd --save-pi3 .bashrc "
        "--images a.png ./-b.png --ckpt-dir Wan2.1 --lora high=a.safetensors:0.8 --lora b.safetensors"
    )


@pytest.mark.parametrize("name", ["a.mp4", "a.gif", "a.webp", "%04d.png"])
def test_show_of_damaged_files_is_a_sentence(tmp_path: Path, name: str) -> None:
    written(tmp_path / name, "a cat" * 40)
    path = tmp_path / name.replace("%04d", "0000")
    whole = path.read_bytes()
    generator = random.Random(0)
    for _ in range(60):
        data = bytearray(whole)
        for _ in range(generator.choice((1, 4, 40))):
            data[generator.randrange(len(data))] = generator.randrange(256)
        path.write_bytes(data[: generator.choice((len(data), generator.randrange(len(data))))])
        result = CliRunner().invoke(show, [str(path)])
        assert result.exit_code in {0, 2, 4}, (result.output, result.exception)
        assert "\x1b" not in result.output


def test_show_reads_the_record_of_arrays_that_a_project_wrote(tmp_path: Path) -> None:
    made = Provenance.of(preset="sfu pose", settings={"video": "dance.mp4", "start": 0.5}, record={"tool": "a"})
    for write in (np.savez, np.savez_compressed):
        write(tmp_path / "pose.npz", body=np.zeros(3), provenance=np.array(made.to_json()))
        result = CliRunner().invoke(show, [str(tmp_path / "pose.npz")])
        assert result.exit_code == 0, result.output
        lines = result.output.splitlines()
        assert lines[0].split(maxsplit=1) == ["command", "sfu pose"]
        assert "video                dance.mp4" in lines
        assert "wan generate" not in result.output
    found = json.loads(CliRunner().invoke(show, [str(tmp_path / "pose.npz"), "--json"]).output)
    assert found.pop("command") is None
    assert Provenance.from_json(json.dumps(found)) == made


@pytest.mark.parametrize("value", [[1, 2], ["a"], {"a": 1}, "no"])
def test_show_trusts_no_array(tmp_path: Path, value: object) -> None:
    np.savez(tmp_path / "a.npz", provenance=np.array(value))
    np.savez(tmp_path / "b.npz", other=np.array(value))
    (tmp_path / "c.npz").write_bytes((tmp_path / "a.npz").read_bytes()[:60])
    for name in ("a.npz", "b.npz", "c.npz"):
        assert CliRunner().invoke(show, [str(tmp_path / name)]).exit_code == MediaError.exit_code
