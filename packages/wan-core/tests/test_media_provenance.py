"""How a file was made: kept in every kind of file, cleaned of what does not belong there, turned into a command."""

import json
import shlex
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from wan_core.cli.command_line import command_line
from wan_core.errors import MediaError, RequestError
from wan_core.media import Provenance, load_image, plain_text, read_provenance, read_video, write_video

from .media_clips import smooth_clip

KINDS = ["a.mp4", "a.gif", "a.webp", "frames/%03d.png"]
NASTY = {
    "quotes": 'it\'s a "cat" \\ `id` $(id) $HOME !! & ; | > * ?',
    "newlines": "one\ntwo\r\nthree\ttabs",
    "terminal": "\x1b[31mred\x1b[0m \x07 \x9b31m \x00 end",
    "direction": "abc\u202etxt.exe\u2066",
    "emoji": "a \U0001f469\u200d\U0001f680 on \u706b\u661f",
    "surrogate": "broken \ud83d half",
    "long": "a very long prompt " * 1100,
    "markup": "<x:xmpmeta>&amp;]]> %04d {} \\u0041",
    "option": "--save-file=/etc/passwd",
}


def record(prompt: str = "a cat", **settings: object) -> Provenance:
    return Provenance.of(preset="tiny-t2v", settings={"prompt": prompt, "seed": 7, **settings})


# -- in files


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prompt", NASTY.values(), ids=NASTY.keys())
def test_any_prompt_survives_in_any_file(tmp_path: Path, kind: str, prompt: str) -> None:
    provenance = record(prompt, negative_prompt=prompt[::-1])
    write_video([smooth_clip(2, 16, 16)], tmp_path / kind, fps=8, provenance=provenance)
    assert read_provenance(tmp_path / kind) == provenance
    if "%" in kind:
        assert read_provenance(tmp_path / "frames/001.png") == provenance


@pytest.mark.parametrize("name", ["a.webp", "a.png", "a.gif", "a.mp4"])
@pytest.mark.parametrize("size", [(16, 16), (17, 15)])
def test_a_single_frame_carries_it_too(tmp_path: Path, name: str, size: tuple[int, int]) -> None:
    write_video([smooth_clip(1, *size)], tmp_path / name, fps=8, provenance=record())
    assert read_provenance(tmp_path / name) == record()
    if name != "a.mp4":
        assert load_image(tmp_path / name).size == size[::-1]


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.mp4"])
def test_the_record_does_not_touch_the_picture(tmp_path: Path, name: str) -> None:
    clip = smooth_clip(4, 24, 24)
    write_video([clip], tmp_path / name, fps=8)
    write_video([clip], tmp_path / f"with_{name}", fps=8, provenance=record(NASTY["long"]))
    if name == "a.mp4":
        assert torch.equal(read_video(tmp_path / name).frames, read_video(tmp_path / f"with_{name}").frames)
        return
    with Image.open(tmp_path / name) as plain, Image.open(tmp_path / f"with_{name}") as told:
        for index in range(4):
            plain.seek(index)
            told.seek(index)
            assert plain.convert("RGB").tobytes() == told.convert("RGB").tobytes()


def test_the_mp4_record_survives_copying_the_streams(tmp_path: Path) -> None:
    import av

    write_video([smooth_clip(4)], tmp_path / "a.mp4", fps=8, provenance=record())
    with av.open(str(tmp_path / "a.mp4")) as source, av.open(str(tmp_path / "b.mp4"), "w") as copy:
        copy.metadata.update(source.metadata)
        stream = copy.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(source.streams.video[0]):
            if packet.dts is not None:
                packet.stream = stream
                copy.mux(packet)
    assert read_provenance(tmp_path / "b.mp4") == record()


@pytest.mark.parametrize("name", ["a.mp4", "a.gif", "a.webp", "a.png"])
def test_without_a_record_that_is_said(tmp_path: Path, name: str) -> None:
    write_video([smooth_clip(1)], tmp_path / name, fps=8)
    with pytest.raises(MediaError, match="does not say how it was made"):
        read_provenance(tmp_path / name)


def test_files_of_other_tools_have_no_record(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.jpg")
    with pytest.raises(MediaError, match="does not say"):
        read_provenance(tmp_path / "a.jpg")
    (tmp_path / "a.txt").write_text("hello")
    with pytest.raises(MediaError):
        read_provenance(tmp_path / "a.txt")
    with pytest.raises(RequestError, match="does not exist"):
        read_provenance(tmp_path / "none.mp4")
    with pytest.raises(RequestError, match="does not exist"):
        read_provenance(tmp_path / "%04d.png")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no json",
        "[]",
        "{}",
        '{"format": "wan-core/1"}',
        '{"format": "wan-core/1", "preset": 3, "settings": {}}',
        '{"format": "wan-core/1", "preset": "x", "settings": []}',
        '{"format": "wan-core/9", "preset": "x", "settings": {}}',
        "[" * 100_000,
    ],
)
def test_foreign_texts_are_no_record(text: str) -> None:
    with pytest.raises(ValueError):
        Provenance.from_json(text)


# -- what is kept


def test_settings_and_versions_come_back_from_json() -> None:
    provenance = record(width=64, height=64, guidance_scale={"high": 4.0, "low": 3.0}, flags=[True, None, 1.5])
    again = Provenance.from_json(provenance.to_json())
    assert again == provenance
    assert again.to_json() == provenance.to_json()
    assert (again.settings["prompt"], again.settings["seed"]) == ("a cat", 7)
    assert again.record["torch"].split(".")[0].isdigit()
    assert again.tool_version not in ("", "unknown")


def test_folders_homes_and_secrets_are_left_out() -> None:
    provenance = Provenance.of(
        preset="ti2v-5B",
        settings={
            "prompt": "/a/b is a path in a prompt",
            "image": Path("/home/someone/pictures/cat.png"),
            "images": (Path("a/b.png"), Path("/x/c.png")),
            "other": "~/secret place/d.png",
            "windows": r"C:\Users\someone\e.png",
            "note": f"see {Path.home()}/f",
            "hf_token": "hf_123",
            "api_key": "k",
            "nested": {"password": "p", "deep": [{"auth": "x", "kept": 1}]},
            "max_tokens": 99,
        },
        record={"checkpoint": Path("/data/weights/Wan2.2-TI2V-5B"), "tensor": torch.float32, "nan": float("nan")},
    )
    assert provenance.settings == {
        "prompt": "/a/b is a path in a prompt",
        "image": "cat.png",
        "images": ["a/b.png", "c.png"],
        "other": "d.png",
        "windows": "e.png",
        "note": "see ~/f",
        "nested": {"deep": [{"kept": 1}]},
        "max_tokens": 99,
    }
    assert provenance.record["checkpoint"] == "Wan2.2-TI2V-5B"
    assert provenance.record["tensor"] == "torch.float32"
    assert provenance.record["nan"] == "nan"
    text = provenance.to_json()
    assert not {"hf_123", "someone", str(Path.home()), "/data"} & set(text.replace('"', " ").split())
    assert text.isascii()
    assert "\n" not in text


# -- the command


def test_the_command_spells_every_setting_as_its_option() -> None:
    provenance = Provenance.of(
        preset="i2v-A14B",
        settings={
            "prompt": 'a cat\'s "day"',
            "negative_prompt": "",
            "width": 1280,
            "height": 720,
            "num_frames": 81,
            "fps": 16,
            "num_inference_steps": 40,
            "flow_shift": 5.0,
            "guidance_scale": {"high": 4.0, "low": 3.0},
            "solver": "unipc",
            "seed": 42,
            "image": "cat.png",
            "joint": True,
            "preview": False,
            "at": [0, 8, 20],
            "images": ["a.png", "-b.png"],
        },
        record={
            "checkpoint": "Wan2.2-I2V-A14B",
            "dtype": "bfloat16",
            "device": "cuda:0",
            "noise_device": "cpu",
            "tea_cache": 0.3,
        },
    )
    assert shlex.split(command_line(provenance)) == [
        *["wan", "generate", "i2v-A14B", "--prompt", 'a cat\'s "day"', "--size", "1280*720", "--negative-prompt", ""],
        *["--frame-num", "81", "--fps", "16", "--sample-steps", "40", "--sample-shift", "5.0"],
        *["--sample-guide-scale", "3.0,4.0", "--sample-solver", "unipc", "--seed", "42", "--image", "cat.png"],
        *["--joint", "--at", "0,8,20", "--images", "a.png", "./-b.png"],
        *["--ckpt-dir", "Wan2.2-I2V-A14B", "--dtype", "bfloat16", "--noise-device", "cpu", "--tea-cache", "0.3"],
    ]


@settings(max_examples=60, deadline=None)
@given(prompt=st.text(max_size=60), name=st.text(max_size=20), value=st.text(max_size=20), preset=st.text(max_size=20))
def test_a_strangers_record_cannot_break_out_of_the_command(prompt: str, name: str, value: str, preset: str) -> None:
    data = {"format": "wan-core/1", "preset": preset, "settings": {"prompt": prompt, name: value}}
    line = command_line(Provenance.from_json(json.dumps(data)))
    assert line == plain_text(line)
    words = shlex.split(line)
    assert words[:2] == ["wan", "generate"]
    assert not words[2].startswith("-")
    options = [word.split("=")[0] for word in words[3:] if word.startswith("--")]
    assert set(options) <= {"--prompt", f"--{name.replace('_', '-')}"}


@pytest.mark.parametrize(
    "name", ["save_file", "output", "task", "prompt-file", "--debug", "a b", "x=1", "UP", "-o", ""]
)
def test_output_names_and_odd_names_never_become_options(name: str) -> None:
    data = {"format": "wan-core/1", "preset": "t2v-A14B", "settings": {"prompt": "a", name: "value"}}
    assert shlex.split(command_line(Provenance.from_json(json.dumps(data)))) == [
        *["wan", "generate", "t2v-A14B", "--prompt", "a"]
    ]


@pytest.mark.parametrize(
    ("phases", "words"),
    [
        (["decode", "encode"], ["--vae-tiling", "on"]),
        (["decode"], ["--vae-tiling", "decode"]),
        ([], []),
        ("on", []),
    ],
)
def test_the_command_sets_the_autoencoder_as_it_was(phases: object, words: list[str]) -> None:
    made = Provenance.of(preset="t2v-1.3B", settings={}, record={"vae_dtype": "bfloat16", "vae_tiling": phases})
    assert shlex.split(command_line(made)) == ["wan", "generate", "t2v-1.3B", "--vae-dtype", "bfloat16", *words]


def test_a_prompt_like_an_option_stays_a_prompt() -> None:
    assert shlex.split(command_line(record("--debug")))[3] == "--prompt=--debug"


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("a\nb\tc", "a b c"),
        ("\x1b[31mred", "[31mred"),
        ("a\u202eb\u2028c", "ab c"),
        ("\ud83d.", "."),
        ("\U0001f469\u200d\U0001f680 \u706b", "\U0001f469\u200d\U0001f680 \u706b"),
    ],
)
def test_plain_text_is_one_line_without_control_characters(text: str, plain: str) -> None:
    assert plain_text(text) == plain


def test_a_machine_that_knows_no_home_makes_records(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", lambda number: (_ for _ in ()).throw(KeyError(number)))
    assert Provenance.of(preset="a", settings={"image": "/x/y.png"}).settings["image"] == "y.png"
