"""``bindweave infer`` on tiny files in the real layouts: one video, many, and what can go wrong."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result
from safetensors.torch import save_file

from bindweave.cli.convert import convert
from bindweave.cli.infer import infer
from bindweave.dit import TextProjector
from bindweave.presets import BINDWEAVE_14B
from bindweave.request import SubjectRequest
from wan_core.cli import wan
from wan_core.loading import RuntimeOptions, load_pipeline

Run = Callable[..., Result]


def without(flags: list[str], *names: str) -> list[str]:
    """The flags without these options and their values."""
    kept: list[str] = []
    words = iter(flags)
    for word in words:
        if word in names:
            next(words)
        else:
            kept.append(word)
    return kept


def changed(flags: list[str], name: str, value: str | Path) -> list[str]:
    """The flags with another value of an option."""
    return [*without(flags, name), name, str(value)]


@pytest.mark.slow
def test_the_release_mm_and_native_weights_give_one_video(run: Run, files: Path, flags: list[str]) -> None:
    for source, target, layers in (
        ("release", "mm", None),
        ("release", "vpp", "[[1],[1]]"),
        ("release", "pp", "[1,1]"),
    ):
        words = ["--source_path", files / source, "--target_path", target]
        done = run(convert, *words, *(["--pp_vpp_layers", layers] if layers else []))
        assert done.exit_code == 0, done.output
    for place in (files / "release", Path("mm"), Path("vpp"), Path("pp")):
        done = run(infer, *changed(flags, "--dit", place), "--output", f"{place.name}.mp4", "--no-metadata")
        assert done.exit_code == 0, done.output
    videos = {Path(f"{name}.mp4").read_bytes() for name in ("release", "mm", "vpp", "pp")}
    assert len(videos) == 1


def test_wan_generate_makes_the_same_video(run: Run, flags: list[str]) -> None:
    words = [f"--part=dit={flags[3]}" if word == "--dit" else word for word in flags if word != flags[3]]
    first = run(infer, *flags, "--output", "one.mp4", "--no-metadata")
    other = run(wan, "generate", "bindweave-14B", *words, "--output", "two.mp4", "--no-metadata")
    assert (first.exit_code, other.exit_code) == (0, 0), other.output
    assert Path("one.mp4").read_bytes() == Path("two.mp4").read_bytes()


def test_a_folder_of_diffusers_does_too(run: Run, files: Path, flags: list[str]) -> None:
    done = run(wan, "convert", files / "wan", "base", "--to", "diffusers", "--quiet")
    assert done.exit_code == 0, done.output
    for folder, name in ((files / "wan", "one.mp4"), (Path("base"), "two.mp4")):
        done = run(infer, *changed(flags, "--ckpt-dir", folder), "--output", name, "--no-metadata")
        assert done.exit_code == 0, done.output
    assert Path("one.mp4").read_bytes() == Path("two.mp4").read_bytes()


@pytest.mark.slow
def test_pictures_their_order_and_states_change_the_video(run: Run, files: Path, flags: list[str]) -> None:
    save_file({"hidden_states": torch.ones(1, 7, 48)}, "other.safetensors")
    one_picture = [*without(flags, "--image"), "--image", str(files / "a.png")]
    swapped = [*without(flags, "--image"), "--image", str(files / "b.png"), str(files / "a.png")]
    variants = {
        "both": flags,
        "one": one_picture,
        "swapped": swapped,
        "states": changed(flags, "--hidden-states", "other.safetensors"),
        "branch": [*flags, "--all-in-branch"],
        "schedule": [*flags, "--schedule", "diffusers"],
    }
    for name, words in variants.items():
        done = run(infer, *words, "--output", f"{name}.gif", "--no-metadata")
        assert done.exit_code == 0, done.output
    assert len({Path(f"{name}.gif").read_bytes() for name in variants}) == len(variants)


def test_a_fifth_picture_is_left_out_with_a_note(run: Run, files: Path, flags: list[str]) -> None:
    words = [word for word in flags if word != "--quiet"]
    done = run(infer, *words, "--image", *[str(files / "b.png")] * 3, "--dry-run")
    assert done.exit_code == 0, done.output
    assert "4 pictures are used; left out: b.png" in done.stderr


def test_what_does_not_depend_on_time_is_computed_once(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    forward = TextProjector.forward

    def counted(self: TextProjector, states: torch.Tensor) -> torch.Tensor:
        calls.append(states.shape[1])
        return forward(self, states)

    monkeypatch.setattr(TextProjector, "forward", counted)
    options = RuntimeOptions(device="cpu", parts={"dit": files / "release"})
    pipeline = load_pipeline(BINDWEAVE_14B, files / "wan", options)
    vae, clip = pipeline.components.vae, pipeline.components.part("image_encoder")
    encoded: list[str] = []
    for name, part in (("vae", vae), ("clip", clip)):
        active = part.active

        def watched(name: str = name, active: Any = active) -> Any:
            encoded.append(name)
            return active()

        monkeypatch.setattr(part, "active", watched)
    request = SubjectRequest(
        prompt="a cat", images=(files / "a.png",), hidden_states=files / "p.safetensors",
        hidden_states_negative=files / "n.pt", width=32, height=48, num_frames=5, num_inference_steps=4,
    )  # fmt: skip
    pipeline.generate(request)
    assert calls == [7, 9]  # both branches once, in four steps
    assert encoded == ["clip", "vae", "vae", "vae"]  # references, the blank video, and decoding
    pipeline.generate(request)
    assert encoded[4:] == ["vae"]  # another video of these pictures and this size


def sample_file(folder: Path, files: Path, count: int = 2) -> Path:
    """A sample JSON of this many samples, and the original's config of it."""
    sample = {
        "img_paths": ["a.png", "b.png"],
        "prompt": "a cat",
        "class_label": ["cat", "hat"],
        "hidden_states_path": str(files / "p.safetensors"),
        "hidden_states_path_negative": str(files / "n.pt"),
    }
    (folder / "samples.json").write_text(json.dumps({f"singleobj_{i}": sample for i in range(count)}, indent=4))
    config = {
        "META_PATH": "samples.json", "BASE_IMG_DIR": str(files), "OUT_DIR": "results", "save_path": "grid",
        "pipeline_config": {"input_size": [5, 48, 32], "cpu_offload": True}, "fps": 16, "frame_interval": 2,
        "dtype": "fp32", "device": "npu", "ae": {"model_id": "wanvae"}, "prompt": "", "image": "",
        "predictor": {"from_pretrained": str(files / "release")},
        "diffusion": {"model_id": "UniPC", "num_inference_steps": 2, "guidance_scale": 5.0, "flow_shift": 3.0},
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    return folder / "config.json"


def test_the_originals_config_makes_every_sample_and_goes_on(run: Run, files: Path, tmp_path: Path) -> None:
    config = sample_file(tmp_path, files)
    words = ["--config", str(config), "--ckpt-dir", str(files / "wan"), "--seed", "1", "--device", "cpu"]
    done = run(infer, *words)
    assert done.exit_code == 0, done.output
    results = tmp_path / "results"
    assert sorted(path.name for path in results.iterdir()) == ["manifest.json", "singleobj_0.mp4", "singleobj_1.mp4"]
    manifest = json.loads((results / "manifest.json").read_text())
    assert manifest["singleobj_1"] == {
        "video": "singleobj_1.mp4", "prompt": "a cat", "references": ["a.png", "b.png"],
    }  # fmt: skip
    kept = (results / "singleobj_0.mp4").stat().st_mtime_ns
    (results / "singleobj_1.mp4").unlink()
    again = run(infer, *words)
    assert again.exit_code == 0, again.output
    assert "1 of 2 videos were there already" in again.stderr
    assert (results / "singleobj_0.mp4").stat().st_mtime_ns == kept
    assert (results / "singleobj_1.mp4").is_file()
    assert run(infer, *words).exit_code == 0  # nothing left to do


def test_only_the_videos_of_what_changed_are_made_again(run: Run, files: Path, tmp_path: Path) -> None:
    config = sample_file(tmp_path, files, 3)
    shutil.copy(files / "a.png", tmp_path / "own.png")
    samples = json.loads((tmp_path / "samples.json").read_text())
    samples["singleobj_1"]["img_paths"] = [str(tmp_path / "own.png")]
    (tmp_path / "samples.json").write_text(json.dumps(samples))
    words = ["--config", str(config), "--ckpt-dir", str(files / "wan"), "--device", "cpu"]

    def made() -> dict[str, int]:
        return {path.stem: path.stat().st_mtime_ns for path in (tmp_path / "results").glob("*.mp4")}

    assert run(infer, *words).exit_code == 0
    first = made()
    samples["singleobj_0"]["prompt"] = "another cat"
    (tmp_path / "samples.json").write_text(json.dumps(samples))
    shutil.copy(files / "b.png", tmp_path / "own.png")
    done = run(infer, *words)
    assert done.exit_code == 0, done.output
    assert "singleobj_0.mp4 is made again: prompt changed" in done.stderr
    assert "singleobj_1.mp4 is made again: images changed" in done.stderr
    second = made()
    assert [name for name in first if first[name] == second[name]] == ["singleobj_2"]
    (tmp_path / "results/singleobj_2.mp4").write_bytes(b"a video of somebody else")
    done = run(infer, *words)
    assert "It stays; remove it to make it again" in done.stderr
    assert (tmp_path / "results/singleobj_2.mp4").read_bytes() == b"a video of somebody else"


def test_processes_share_the_videos(run: Run, files: Path, tmp_path: Path) -> None:
    config = sample_file(tmp_path, files, 3)
    words = ["--config", str(config), "--ckpt-dir", str(files / "wan"), "--device", "cpu"]
    assert run(infer, *words, "--shard", "2/2").exit_code == 0
    assert list(json.loads((tmp_path / "results/manifest.json").read_text())) == ["singleobj_1"]
    assert run(infer, *words, "--shard", "1/2").exit_code == 0
    names = [f"singleobj_{number}" for number in range(3)]
    assert list(json.loads((tmp_path / "results/manifest.json").read_text())) == names
    assert {path.name for path in (tmp_path / "results").iterdir()} == {f"{name}.mp4" for name in names} | {
        "manifest.json"
    }


def test_a_sample_of_damaged_states_is_left_out(run: Run, files: Path, tmp_path: Path) -> None:
    config = sample_file(tmp_path, files)
    (tmp_path / "bad.safetensors").write_bytes(b"damaged")
    samples = json.loads((tmp_path / "samples.json").read_text())
    samples["singleobj_0"]["hidden_states_path"] = "bad.safetensors"
    (tmp_path / "samples.json").write_text(json.dumps(samples))
    done = run(infer, "--config", config, "--ckpt-dir", files / "wan", "--device", "cpu")
    assert done.exit_code == 2
    assert "left out: singleobj_0: " in done.stderr
    assert (tmp_path / "results/singleobj_1.mp4").is_file()


def test_a_sample_that_cannot_be_made_does_not_stop_the_others(run: Run, files: Path, tmp_path: Path) -> None:
    config = sample_file(tmp_path, files, 3)
    samples = json.loads((tmp_path / "samples.json").read_text())
    samples["singleobj_0"]["img_paths"] = ["gone.png"]
    samples["singleobj_2"]["img_paths"] = ["a.png", "gone.png"]
    (tmp_path / "samples.json").write_text(json.dumps(samples))
    done = run(infer, "--config", config, "--ckpt-dir", files / "wan", "--seed", "1", "--device", "cpu")
    assert done.exit_code == 2
    assert "1 of the samples could not be made: singleobj_0" in done.stderr
    assert "singleobj_2: a picture is left out" in done.stderr
    assert {path.name for path in (tmp_path / "results").iterdir()} == {
        "manifest.json", "singleobj_1.mp4", "singleobj_2.mp4",
    }  # fmt: skip


BAD_FLAGS: dict[str, tuple[str, str | None, int, str]] = {
    "no picture": ("--image", None, 2, "a picture of the subject is needed"),
    "no states": ("--hidden-states", None, 2, "bindweave extract"),
    "no negative states": ("--hidden-states-negative", None, 2, "--sample-guide-scale 1"),
    "states not there": ("--hidden-states", "gone.pt", 2, "there is no file gone.pt"),
    "a picture that is none": ("--image", "text.png", 4, "no picture"),
    "a picture that is not there": ("--image", "gone.png", 2, "gone.png"),
    "a thin picture": ("--image", "thin.png", 2, "too long and narrow"),
    "states of another model": ("--hidden-states", "wide.safetensors", 3, "width 50"),
    "states without tokens": ("--hidden-states", "empty.safetensors", 3, "no hidden states"),
    "states that are not finite": ("--hidden-states", "nan.safetensors", 3, "not finite"),
    "states that run code": ("--hidden-states", "evil.pt", 3, "could run code"),
    "several tensors": ("--hidden-states", "two.safetensors", 3, "2 tensors"),
    "a size between patches": ("--size", "32*50", 2, "multiple of 16"),
    "frames": ("--frame-num", "6", 2, "4n+1"),
    "a schedule": ("--schedule", "cosine", 2, "schedule must be wan or diffusers"),
    "weights of plain Wan": ("--dit", "{wan}", 3, "text_projector"),
    "no weights": ("--dit", "gone", 3, "does not exist"),
}


@pytest.fixture
def bad_files(tmp_path: Path) -> None:
    from PIL import Image

    (tmp_path / "text.png").write_text("no picture at all")
    Image.new("RGB", (4000, 2)).save(tmp_path / "thin.png")
    save_file({"hidden_states": torch.zeros(1, 3, 50)}, tmp_path / "wide.safetensors")
    save_file({"hidden_states": torch.zeros(1, 0, 48)}, tmp_path / "empty.safetensors")
    save_file({"hidden_states": torch.full((1, 3, 48), torch.nan)}, tmp_path / "nan.safetensors")
    save_file({"a": torch.zeros(1, 3, 48), "b": torch.zeros(1, 3, 48)}, tmp_path / "two.safetensors")
    torch.save({"x": Path("y")}, tmp_path / "evil.pt")


@pytest.mark.usefixtures("bad_files")
@pytest.mark.parametrize("kind", BAD_FLAGS)
def test_bad_input_is_one_sentence_and_leaves_nothing(run: Run, files: Path, flags: list[str], kind: str) -> None:
    name, value, code, words = BAD_FLAGS[kind]
    given = without(flags, name) if value is None else changed(flags, name, value.format(wan=files / "wan"))
    done = run(infer, *given, "--output", "out.mp4")
    assert done.exit_code == code, done.output
    assert words in done.stderr
    assert "Traceback" not in done.output
    assert not Path("out.mp4").exists()


BAD_CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "a step out in META_PATH": ({"META_PATH": "../samples.json"}, "META_PATH is '../samples.json'"),
    "a step out in OUT_DIR": ({"OUT_DIR": "results/../../x"}, "paths with .. are refused"),
    "no picture folder": ({"BASE_IMG_DIR": None}, "BASE_IMG_DIR must be a path"),
    "a size of two": ({"pipeline_config": {"input_size": [5, 48]}}, "[frames, height, width]"),
    "steps": ({"diffusion": {"num_inference_steps": "many"}}, "num_inference_steps must be a number"),
    "another method": ({"diffusion": {"model_id": "ddpm"}}, "the diffusion is UniPC"),
    "offload": ({"pipeline_config": {"cpu_offload": "yes"}}, "cpu_offload must be true or false"),
    "a number that is none": ({"fps": float("nan")}, "is no JSON"),
    "a number without end": ({"fps": 10**400}, "fps must be a number"),
    "shift without end": ({"diffusion": {"flow_shift": 1e300}}, "flow_shift must be a number"),
    "a section": ({"ae": "vae"}, "ae must be an object"),
}


@pytest.mark.parametrize("kind", BAD_CONFIGS)
def test_a_bad_config_is_refused_by_its_key(run: Run, files: Path, tmp_path: Path, kind: str) -> None:
    changes, words = BAD_CONFIGS[kind]
    config = sample_file(tmp_path, files)
    config.write_text(json.dumps({**json.loads(config.read_text()), **changes}))
    done = run(infer, "--config", config, "--ckpt-dir", files / "wan", "--quiet")
    assert done.exit_code == 2, done.output
    assert words in done.stderr
    assert not (tmp_path / "results").exists()


def test_a_config_that_names_the_parts_needs_no_folder_besides(run: Run, files: Path, tmp_path: Path) -> None:
    config = sample_file(tmp_path, files)
    content = json.loads(config.read_text())
    config.write_text(json.dumps({**content, "ae": {"from_pretrained": "gone/vae"}}))
    done = run(infer, "--config", config, "--quiet")
    assert done.exit_code == 3, done.output
    assert "gone" in done.stderr


BAD_SAMPLES: dict[str, tuple[Any, str]] = {
    "a list": ([], "an object of samples"),
    "a step out": ({"a": {"img_paths": ["../a.png"], "prompt": "p"}}, "paths with .. are refused"),
    "an id with a slash": ({"a/b": {"img_paths": ["a.png"], "prompt": "p"}}, "no slashes"),
    "an id of two lines": ({"a\nb": {"img_paths": ["a.png"], "prompt": "p"}}, "an id names a file"),
    "a long id": ({"a" * 201: {"img_paths": ["a.png"], "prompt": "p"}}, "an id names a file"),
    "half a character": ({"a": {"img_paths": ["a.png"], "prompt": "p", "by": "\ud800"}}, "has half a character"),
    "a path with a zero": ({"a": {"img_paths": ["a\0.png"], "prompt": "p"}}, "rename the file"),
    "no pictures": ({"a": {"img_paths": [], "prompt": "p"}}, "img_paths must be a list"),
    "no prompt": ({"a": {"img_paths": ["a.png"], "prompt": " "}}, "prompt must be a text"),
    "no states": ({"a": {"img_paths": ["a.png"], "prompt": "p"}}, "bindweave extract"),
    "states outside": (
        {"a": {"img_paths": ["a.png"], "prompt": "p", "hidden_states_path": "x/../../y.pt"}},
        "paths with .. are refused",
    ),
}


@pytest.mark.parametrize("kind", BAD_SAMPLES)
def test_a_bad_sample_is_named(run: Run, files: Path, tmp_path: Path, kind: str) -> None:
    content, words = BAD_SAMPLES[kind]
    (tmp_path / "s.json").write_text(json.dumps(content))
    done = run(
        infer, "--samples", "s.json", "--base-img-dir", files, "--ckpt-dir", files / "wan", "--dit", files / "release"
    )
    assert done.exit_code == 2, done.output
    assert words in done.stderr


def test_flags_that_samples_bring_are_refused(run: Run, files: Path, flags: list[str], tmp_path: Path) -> None:
    sample_file(tmp_path, files)
    done = run(infer, *flags, "--samples", "samples.json")
    assert done.exit_code == 2
    assert "--prompt comes from the sample file" in done.stderr
    alone = run(infer, *flags, "--output-dir", "x")
    assert alone.exit_code == 2
    assert "belong to --samples" in alone.stderr
