"""``poze-finetune``: the seed's command line on a tiny checkpoint in the real layout, and what it refuses."""

import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import Result
from PIL import Image
from safetensors.torch import load_file, save_file

import wan_core.loading
import wan_core.training
from pi3.checkpoints import bundled_weights
from poze import Pi3FeatureAdapter, save_adapter
from poze.cli.finetune import finetune
from poze.cli.infer import infer
from wan_core.loading import load_pipeline
from wan_core.media import write_video
from wan_core.runtime import Placed
from wan_core.training import RunResult
from wan_core.training.loop import TrainingResult

Run = Callable[..., Result]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A square picture, wanted videos and points, folders of examples, and what is wrong with each."""
    folder = tmp_path_factory.mktemp("finetune")
    generator = torch.Generator().manual_seed(0)
    Image.new("RGB", (64, 64), (40, 75, 215)).save(folder / "ref.png")
    video = torch.rand(3, 5, 64, 64, generator=generator) * 2 - 1
    points = torch.randn(1, 2, 84, 98, 3, generator=generator)
    torch.save(video, folder / "video.pt")
    save_file({"points": points}, folder / "points.safetensors")
    torch.save(points[:, :1].contiguous(), folder / "one_view.pt")
    torch.save(video * 200, folder / "bytes.pt")
    torch.save({"a": video, "b": video}, folder / "two.pt")
    torch.save(points[:, :, :70].contiguous(), folder / "low.pt")
    (folder / "text.pt").write_text("no tensor")
    save_adapter(Pi3FeatureAdapter(48, 24), folder / "adapter.safetensors")
    for name, channels in (("data", 48), ("foreign", 16)):
        make_dataset(folder / name, video, channels)
    make_dataset(folder / "uneven", video, 48)
    (folder / "plain").mkdir()
    for name in ("one", "two"):
        write_video(iter([video]), folder / f"plain/{name}.mp4", fps=24)
        (folder / f"plain/{name}.txt").write_text(f"a walk, {name}")
    (folder / "uneven/prompts.txt").write_text("a walk\n\na forest\na third one\n")
    return folder


def make_dataset(folder: Path, video: torch.Tensor, channels: int) -> None:
    """Two examples in the later original's layout, with latents of some width."""
    latents = folder / "cache/video_latent/wan-i2v/5x64x64"
    latents.mkdir(parents=True)
    (folder / "first_frames").mkdir()
    (folder / "videos").mkdir()
    (folder / "prompts.txt").write_text("a walk\n\na forest\n")
    (folder / "videos.txt").write_text("videos/one.mp4\nvideos/two.mp4\n")
    for number, name in enumerate(("one", "two")):
        write_video(iter([video]), folder / f"videos/{name}.mp4", fps=24)
        Image.new("RGB", (64, 64), (200, 40 * number, 60)).save(folder / f"first_frames/{name}.png")
        save_file({"encoded_video": torch.randn(1, channels, 2, 4, 4)}, latents / f"{name}.safetensors")


def arguments(checkpoint: Callable[[str], Path], files: Path, *more: object) -> list[object]:
    """The seed's command line."""
    return [
        "--wan-ckpt-dir", checkpoint("ti2v-5B"), "--pi3-checkpoint", bundled_weights(),
        "--prompt", "A walk through a forest", "--image", files / "ref.png",
        "--sample-steps", 2, "--steps", 2, "--lr", 1e-3, *more,
    ]  # fmt: skip


def test_the_seeds_command_line_trains_and_goes_on(
    run: Run, checkpoint: Callable[[str], Path], files: Path, tmp_path: Path
) -> None:
    words = arguments(checkpoint, files, "--gt-video", files / "video.pt", "--adapter-tokens", 64)
    words += ["--save-dir", "finetune_outputs"]
    first = run(*words, "--steps", 1, command=finetune)
    assert first.exit_code == 0, first.output
    second = run(*words, command=finetune)
    assert second.exit_code == 0, second.output
    assert "step 2:" in second.output
    assert "step 1:" not in second.output, "a second call goes on, with the seed of the first"
    folder = tmp_path / "finetune_outputs"
    trained = load_pipeline("ti2v-5B", folder / "wan_finetune_step2")
    assert isinstance(trained.components.dit, Placed)
    assert trained.components.dit.module().config.dim == 64
    assert load_file(folder / "adapter_step2.safetensors")["proj.3.bias"].abs().max() > 0


def test_what_the_tiny_model_became_is_read_by_its_folder(run: Run, files: Path, tmp_path: Path) -> None:
    words = ["--prompt", "a walk", "--image", files / "ref.png", "--sample-steps", 1]
    taught = ["--gt-video", files / "video.pt", "--steps", 1, "--save-dir", tmp_path / "out"]
    result = run(*words, *taught, command=finetune)
    assert result.exit_code == 0, result.output
    folder = ["--wan-ckpt-dir", tmp_path / "out/wan_finetune_step1"]
    adapter = ["--adapter", tmp_path / "out/adapter_step1.safetensors"]
    shape = ["--frame-num", 5, "--size", "64*64"]
    result = run(*folder, *words, *adapter, *shape, "--output", tmp_path / "v.mp4", command=infer)
    assert result.exit_code == 0, result.output
    assert "bundled" not in result.output
    result = run(*folder, *words, *taught[:4], "--save-dir", tmp_path / "more", "--dry-run", command=finetune)
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_command_with_its_own_status(
    run: Run, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, status: int
) -> None:
    def interrupted(*args: object) -> RunResult:
        return RunResult({"": TrainingResult(3, 0.5, number)}, (), number)

    monkeypatch.setattr(wan_core.training, "carry_out", interrupted)
    words = ["--prompt", "a walk", "--image", files / "ref.png", "--gt-video", files / "video.pt"]
    result = run(*words, "--save-dir", tmp_path / "out", command=finetune)
    assert result.exit_code == status
    assert "interrupted after step 3" in result.output


def test_points_of_two_views_train_without_a_video(run: Run, checkpoint: Callable[[str], Path], files: Path) -> None:
    words = arguments(checkpoint, files, "--gt-points", files / "points.safetensors", "--frame-num", 5)
    result = run(*words, "--size", "64*64", "--train", "lora,adapter", "--steps", 1, command=finetune)
    assert result.exit_code == 0, result.output
    assert "points" in result.output


@pytest.mark.parametrize("latents", [[], ["--dataset-latents"]])
def test_flow_matching_learns_from_the_later_layout(
    run: Run, checkpoint: Callable[[str], Path], files: Path, latents: list[str]
) -> None:
    words = arguments(checkpoint, files, "--objective", "flow", "--dataset-root", files / "data", *latents)
    result = run(*words, "--frame-num", 5, "--size", "64*64", "--batch-size", 2, "--ema", 0.9, command=finetune)
    assert result.exit_code == 0, result.output
    assert "encoded 2 of 2 examples" in result.output


def test_wan_train_trains_the_guided_model_and_poze_infer_uses_what_it_made(
    run: Run, checkpoint: Callable[[str], Path], files: Path, tmp_path: Path
) -> None:
    model = ["--ckpt-dir", checkpoint("ti2v-5B"), "--part", f"pi3={bundled_weights()}"]
    words = ["--data", files / "plain", "--num-frames", 5, "--size", "64*64", "--lora-rank", 2, "--lr", 0.01]
    result = run("train", "--model", "poze-5B", *model, *words, "--steps", 2, "--quiet", "--output", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert load_file(tmp_path / "out/adapter.safetensors")["proj.3.bias"].abs().max() > 0
    made = ["--lora", tmp_path / "out/lora.safetensors", "--adapter", tmp_path / "out/adapter.safetensors"]
    words = ["--prompt", "a walk", "--image", files / "ref.png", "--frame-num", 5, "--size", "64*64"]
    result = run("generate", "poze-5B", *model, *words, *made, "--sample-steps", 1, "--output", tmp_path / "v.mp4")
    assert result.exit_code == 0, result.output
    assert "--adapter FILE" not in result.output, "the adapter speaks"


def test_a_lora_of_a_network_that_is_not_trained_is_refused(run: Run, files: Path, tmp_path: Path) -> None:
    words = ["--data", files / "plain", "--output", tmp_path / "out", "--num-frames", 5, "--fps", 24]
    result = run("train", "--model", "tiny-poze", *words, "--network", "adapter", "--lora-rank", 2)
    assert result.exit_code == 2, result.output
    assert "--lora-rank" in result.output
    assert "adapter is trained alone" in result.output


SMALL = ("--frame-num", "5", "--size", "64*64")
VIDEO = ("--gt-video", "{files}/video.pt")
# name: (arguments after the good ones, exit code, words of the message); {files} is the folder of files.
CASES: dict[str, tuple[list[str], int, tuple[str, ...]]] = {
    "nothing to learn from": ([], 2, ("--gt-video", "--gt-points")),
    "missing video": (["--gt-video", "{files}/none.pt"], 2, ("--gt-video", "none.pt")),
    "video that is no tensor": (["--gt-video", "{files}/text.pt"], 3, ("text.pt",)),
    "two unnamed tensors": (["--gt-video", "{files}/two.pt"], 2, ("two.pt", "video")),
    "video of bytes": (["--gt-video", "{files}/bytes.pt"], 2, ("-1 to 1",)),
    "video of another size": ([*VIDEO, "--size", "96*96"], 2, ("--gt-video", "96")),
    "points of one view": (["--gt-points", "{files}/one_view.pt", *SMALL], 2, ("views",)),
    "points of another size": (
        ["--gt-points", "{files}/low.pt", *SMALL], 2, ("98x70", "98x84"),
    ),
    "points for flow": (
        ["--objective", "flow", "--gt-video", "{files}/video.pt", "--gt-points", "{files}/points.safetensors"],
        2, ("--gt-points", "rollout"),
    ),
    "flow without videos": (
        ["--objective", "flow", "--gt-points", "{files}/points.safetensors"], 2, ("--dataset-root",),
    ),
    "folder for a rollout": (["--dataset-root", "{files}/data"], 2, ("--dataset-root", "flow")),
    "uneven lines": (["--objective", "flow", "--dataset-root", "{files}/uneven"], 2, ("3 lines", "2")),
    "no folder": (["--objective", "flow", "--dataset-root", "{files}/none"], 2, ("none",)),
    "foreign latents": (
        ["--objective", "flow", "--dataset-root", "{files}/foreign", "--dataset-latents", "--frame-num", "5"],
        2, ("16", "48", "Wan2.1"),
    ),
    "unknown part": ([*VIDEO, "--train", "vae"], 2, ("--train", "adapter")),
    "wan and lora": ([*VIDEO, "--train", "wan,lora"], 2, ("not both",)),
    "unknown model": ([*VIDEO, "--wan-config", "ti2v-6B"], 2, ("ti2v-6B",)),
    "model without pictures": ([*VIDEO, "--wan-config", "t2v-1.3B"], 2, ("t2v-1.3B",)),
    "no such Pi3": ([*VIDEO, "--pi3-checkpoint", "{files}/none"], 2, ("--pi3-checkpoint", "none")),
    "no adapter in the file": ([*VIDEO, "--adapter", "{files}/points.safetensors"], 3, ("adapter",)),
    "adapter of others": ([*VIDEO, "--adapter", "{files}/adapter.safetensors"], 2, ("48 to 24", "192 to 64")),
    "no tokens": ([*VIDEO, "--adapter-tokens", "0"], 2, ("--adapter-tokens", "0")),
    "no rate": ([*VIDEO, "--lr", "0"], 2, ("lr", "above 0")),
    "output in the data": (
        ["--objective", "flow", "--dataset-root", "{files}/data", "--save-dir", "{files}/data/out"],
        2, ("data folder",),
    ),
    **{
        f"{name} {value}": ([*VIDEO, "--train", "lora", name, value], 2, (f"'{name}'", value))
        for name in ("--noise-shift", "--lora-alpha", "--lr", "--max-grad-norm", "--video-weight", "--sample-shift")
        for value in ("nan", "inf")
    },
    "seed of more bits": ([*VIDEO, "--seed", "2147483648"], 2, ("seed", "2147483647")),
    "alpha without a LoRA": ([*VIDEO, "--lora-alpha", "4"], 2, ("--lora-alpha", "--train lora")),
    "no steps": ([*VIDEO, "--steps", "0"], 2, ("steps", "at least 1")),
    "folder below a file": ([*VIDEO, "--save-dir", "{files}/ref.png/out"], 4, ("no folder",)),
    "missing picture": ([*VIDEO, "--image", "{files}/none.png"], 2, ("none.png",)),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_one_sentence_before_any_weight(
    name: str, run: Run, checkpoint: Callable[[str], Path], files: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(wan_core.loading, "load_model", None)  # calling it would end the test
    more, code, words = CASES[name]
    given = [word.replace("{files}", str(files)) for word in more]
    result = run(*arguments(checkpoint, files), *given, command=finetune)
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    for word in words:
        assert word in result.output, result.output
    assert not list(tmp_path.glob("**/*.safetensors"))
