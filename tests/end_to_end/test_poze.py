"""``poze-infer`` and ``poze-download``: the seed's command lines, files besides the video, and bad input."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import Result
from PIL import Image
from safetensors import safe_open

import poze.task
import wan_core.loading
from pi3.checkpoints import bundled_weights
from poze import Pi3FeatureAdapter, save_adapter
from poze.cli import poze as poze_command
from poze.cli.download import download
from poze.cli.infer import infer
from wan_core.checkpoints import Family
from wan_core.media import read_video

Run = Callable[..., Result]
PI3_WIDTH = 192  # twice the width of the bundled Pi3


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A picture, an adapter for the tiny checkpoint of TI2V-5B, and things that are none."""
    folder = tmp_path_factory.mktemp("poze")
    image = Image.new("RGB", (96, 64), (40, 75, 215))
    image.paste((225, 35, 40), (10, 20, 40, 50))
    image.save(folder / "frame0.png")
    (folder / "text.png").write_text("no picture")
    (folder / "text.safetensors").write_text("no weights")
    (folder / "file").write_text("a file")
    (folder / "empty").mkdir()
    return folder


def make_adapter(path: Path, width: int, in_dim: int = PI3_WIDTH) -> Path:
    adapter = Pi3FeatureAdapter(in_dim, width, 16)
    torch.manual_seed(0)
    torch.nn.init.normal_(adapter.proj[3].weight)
    return save_adapter(adapter, path)


def width_of(folder: Path) -> int:
    return int(json.loads((folder / "config.json").read_text())["dim"])


def test_the_seeds_command_line_makes_a_video(
    run: Run, checkpoint: Callable[[str], Path], files: Path, tmp_path: Path
) -> None:
    folder = checkpoint("ti2v-5B")
    common = [
        "--wan-ckpt-dir", folder, "--image", files / "frame0.png", "--prompt", "A drone flythrough of a canyon",
        "--pi3-checkpoint", bundled_weights(), "--device", "cpu", "--offload-model", "true", "--frame-num", 5,
        "--sample-steps", 2, "--size", "96*64", "--seed", 1,
    ]  # fmt: skip
    plain = run(*common, "--adapter-tokens", 64, "--output", "outputs/plain.mp4", command=infer)
    assert plain.exit_code == 0, plain.output
    assert "no trained adapter was given" in plain.output
    adapter = make_adapter(tmp_path / "adapter.safetensors", width_of(folder))
    more = ["--save-latents", "l.safetensors", "--save-pi3", "clouds"]
    guided = run(*common, "--adapter", adapter, "--output", "outputs/canyon.mp4", *more, command=infer)
    assert guided.exit_code == 0, guided.output
    assert "no trained adapter" not in guided.output
    videos = [read_video(tmp_path / f"outputs/{name}.mp4").frames for name in ("plain", "canyon")]
    assert videos[0].shape == videos[1].shape == (5, 3, 64, 96)
    assert not torch.equal(*videos)
    with safe_open(tmp_path / "l.safetensors", "pt") as file:
        assert {"decoder_hidden", "point_tokens", "camera_tokens", "hw"} <= set(file.keys())
    arrays = np.load(tmp_path / "clouds/frame0.npz")
    assert {"points", "depth", "rgb", "camera_poses"} <= set(arrays)
    assert (tmp_path / "clouds/frame0_0000.ply").stat().st_size > 1000


def test_wan_generate_takes_the_task(run: Run, checkpoint: Callable[[str], Path], files: Path, tmp_path: Path) -> None:
    result = run(
        "generate", "--task", "poze-5B", "--ckpt_dir", checkpoint("ti2v-5B"), "--image", files / "frame0.png",
        "--pi3-checkpoint", bundled_weights(), "--frame_num", 5, "--sample_steps", 1, "--size", "96*64",
        "--prompt", "p", "--save_file", tmp_path / "v.mp4",
    )  # fmt: skip
    assert result.exit_code == 0, result.output


def test_pi3_is_read_once_and_looks_once_for_many_videos(
    run: Run, files: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    loaded, looks = list[str](), list[int]()
    load, see = wan_core.loading.load_model, poze.task.look

    def count_load(*arguments: Any, family: Family, **more: Any) -> Any:
        loaded.append(family.name)
        return load(*arguments, family=family, **more)

    def count_look(*arguments: Any) -> Any:
        looks.append(1)
        return see(*arguments)

    monkeypatch.setattr(wan_core.loading, "load_model", count_load)
    monkeypatch.setattr(poze.task, "look", count_look)
    words = ["--image", files / "frame0.png", "--sample-steps", 1, "--frame-num", 5, "--num-videos", 3]
    result = run(*words, "--output", "v.mp4", command=infer)
    assert result.exit_code == 0, result.output
    assert len(list(tmp_path.glob("v-*.mp4"))) == 3
    assert loaded.count("pi3") == 1
    assert len(looks) == 1


def test_pi3_as_folder_and_as_pickle_is_read(run: Run, files: Path, tmp_path: Path) -> None:
    with safe_open(bundled_weights(), "pt") as file:
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - safe_open is no mapping
    (tmp_path / "ckpt").mkdir()
    (tmp_path / "ckpt/model.safetensors").symlink_to(bundled_weights())
    torch.save(weights, tmp_path / "pi3.pt")  # no metadata: taken for the published network, which it is not
    words = ["--image", files / "frame0.png", "--sample-steps", 1, "--frame-num", 5, "--output", "v.mp4"]
    folder = run(*words, "--pi3-checkpoint", "ckpt", "--save-latents", "l.pt", command=infer)
    assert folder.exit_code == 0, folder.output
    saved = torch.load(tmp_path / "l.pt", weights_only=True)
    assert saved["decoder_hidden"].shape[-1] == PI3_WIDTH
    (tmp_path / "v.mp4").unlink()
    pickle = run(*words, "--pi3-checkpoint", "pi3.pt", command=infer)
    assert pickle.exit_code == 3
    assert "pi3.pt does not fit Pi3" in pickle.output


@pytest.mark.slow
def test_tokens_may_stand_among_the_text_or_in_one_branch(run: Run, files: Path, tmp_path: Path) -> None:
    text = Pi3FeatureAdapter(PI3_WIDTH, 96, 4, context_space="text", seed=0, zero_last=False)
    dit = Pi3FeatureAdapter(PI3_WIDTH, 128, 4, seed=0, zero_last=False)
    paths = [save_adapter(one, tmp_path / f"{one.context_space}.safetensors") for one in (text, dit)]
    words = ["--image", files / "frame0.png", "--sample-steps", 2, "--frame-num", 5, "--seed", 1, "--no-metadata"]
    ways = {
        "text": ["--adapter", paths[0]],
        "both": ["--adapter", paths[1]],
        "one": ["--adapter", paths[1], "--drop-in-negative"],
    }
    for name, more in ways.items():
        result = run(*words, *more, "--output", f"{name}.mp4", command=infer)
        assert result.exit_code == 0, result.output
    assert len({(tmp_path / f"{name}.mp4").read_bytes() for name in ways}) == 3
    plan = run(*words, *ways["both"], "--dry-run", "--json", "--quiet", command=infer)
    assert json.loads(plan.stdout)[0]["guidance_tokens"] == 4


def test_without_pi3_it_is_plain_ti2v(run: Run, checkpoint: Callable[[str], Path], files: Path, tmp_path: Path) -> None:
    words = ["--image", files / "frame0.png", "--prompt", "p", "--seed", 3, "--sample-steps", 1, "--frame-num", 5]
    words += ["--size", "96*64", "--ckpt-dir", checkpoint("ti2v-5B")]
    assert run(*words, "--use-pi3", "false", "--output", "a.mp4", "--no-metadata", command=infer).exit_code == 0
    assert run("generate", "ti2v-5B", *words, "--output", "b.mp4", "--no-metadata").exit_code == 0
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()


def test_the_group_has_the_seeds_four_commands(run: Run) -> None:
    for name in ("infer", "finetune", "download", "view"):
        assert run(name, "--help", command=poze_command).exit_code == 0


def test_download_fetches_both_models_at_their_revisions(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[object, ...]] = []

    def fetch(model: str, folder: Path, **options: object) -> None:
        calls.append((model, folder, options["revision"], options["token"], options.get("include")))

    monkeypatch.setattr("poze.cli.download.fetch_model", fetch)
    result = run(
        "--pi3-dir", "./pi3_ckpt", "--wan-dir", "./Wan2.2-TI2V-5B", "--token", "t", "--revision", "main",
        "--pi3-revision", "v1", command=download,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert calls == [
        ("yyfz233/Pi3", Path("pi3_ckpt"), "v1", "t", ("model.safetensors",)),
        ("ti2v-5B", Path("Wan2.2-TI2V-5B"), "main", "t", None),
    ]


GIVEN = ["--image", "{in}/frame0.png"]
# name: (arguments, exit code, words that the message must have). {in} holds the files, {tmp} is empty.
CASES: dict[str, tuple[list[str], int, tuple[str, ...]]] = {
    "no picture": ([], 2, ("--image",)),
    "missing picture": (["--image", "{in}/none.png"], 2, ("none.png",)),
    "picture that is none": (["--image", "{in}/text.png"], 4, ("text.png",)),
    "no tokens": ([*GIVEN, "--adapter-tokens", "0"], 2, ("--adapter-tokens", "0")),
    "missing adapter": ([*GIVEN, "--adapter", "{in}/none.safetensors"], 2, ("--adapter", "none.safetensors")),
    "adapter that is none": ([*GIVEN, "--adapter", "{in}/text.safetensors"], 3, ("text.safetensors",)),
    "missing pi3": ([*GIVEN, "--pi3-checkpoint", "{in}/none.pt"], 2, ("--pi3-checkpoint", "none.pt")),
    "folder without pi3": ([*GIVEN, "--pi3-checkpoint", "{in}/empty", "--sample-steps", "1"], 3, ("empty",)),
    "unknown space": ([*GIVEN, "--context-space", "latent"], 2, ("latent", "dit")),
    "switch of another word": ([*GIVEN, "--use-pi3", "maybe"], 2, ("maybe", "true")),
    "clouds without pi3": ([*GIVEN, "--use-pi3", "false", "--save-pi3", "{tmp}/c"], 2, ("--save-pi3",)),
    "latents of another kind": ([*GIVEN, "--save-latents", "{tmp}/l.npy"], 2, ("l.npy", ".safetensors")),
    "clouds of another kind": ([*GIVEN, "--save-pi3", "{tmp}/c.obj"], 2, ("c.obj", ".ply")),
    "clouds over a file": ([*GIVEN, "--save-pi3", "{in}/file"], 2, ("file",)),
    "damaged pi3": ([*GIVEN, "--pi3-checkpoint", "{in}/text.safetensors"], 3, ("text.safetensors",)),
    "latents below a file": ([*GIVEN, "--save-latents", "{in}/text.png/l.pt"], 4, ("text.png",)),
    "unknown config": ([*GIVEN, "--wan-config", "t2v-A14B"], 2, ("t2v-A14B", "ti2v-5B")),
    "folder without weights": ([*GIVEN, "--wan-ckpt-dir", "{in}/empty"], 3, ("empty",)),
    "frames not 4n+1": ([*GIVEN, "--frame-num", "6"], 2, ("6", "5", "9")),
    "absent device": ([*GIVEN, "--device", "mps"], 5, ("mps",)),
}


@pytest.mark.parametrize("name", CASES)
def test_bad_requests_get_one_sentence_and_leave_nothing(name: str, run: Run, files: Path, tmp_path: Path) -> None:
    arguments, code, words = CASES[name]
    places = {"in": str(files), "tmp": str(tmp_path)}
    filled = [word.format_map(places) for word in arguments]
    result = run(*filled, "--quiet", command=infer)
    assert result.exit_code == code, result.output
    assert all(word in result.output for word in words), result.output
    assert "Traceback" not in result.output
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--pi3-dir", "a", "--wan-dir", "a"], ("same folder",)),
        (["--wan-id", "Wan2.2"], ("--wan-id", "OWNER/NAME")),
    ],
)
def test_downloads_that_cannot_be_are_refused(arguments: list[str], words: tuple[str, ...], run: Run) -> None:
    result = run(*arguments, command=download)
    assert result.exit_code == 2
    assert all(word in result.output for word in words)


def test_an_adapter_for_another_network_is_refused(run: Run, files: Path, tmp_path: Path) -> None:
    adapter = make_adapter(tmp_path / "a.safetensors", width=32)
    result = run("--image", files / "frame0.png", "--adapter", adapter, "--quiet", command=infer)
    assert result.exit_code == 2
    assert "extra_context" in result.output
    adapter = make_adapter(tmp_path / "b.safetensors", width=128, in_dim=64)
    result = run("--image", files / "frame0.png", "--adapter", adapter, "--quiet", command=infer)
    assert result.exit_code == 2
    assert "trained for another" in result.output
