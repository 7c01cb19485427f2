"""Training the teacher: which poses go with a clip, what a batch makes of them, and a run of `wan train`."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image
from safetensors.torch import load_file

from selfforcing_unianimate.drawing import model_picture
from selfforcing_unianimate.packed_pixels import pack_pixels, unpack_pixels
from selfforcing_unianimate.pose_file import PoseFile, write_pose_file
from selfforcing_unianimate.pose_training import MOTION, REFERENCE, clip_poses, pose_companion, with_poses
from selfforcing_unianimate.pose_weights import CHECKPOINT
from selfforcing_unianimate.teacher import PoseToVideo
from selfforcing_unianimate.teacher_preset import UNIANIMATE_14B
from tools.make_checkpoint import make_checkpoint
from wan_core import CheckpointError, MediaError, RequestError
from wan_core.cli import wan
from wan_core.loading import RuntimeOptions, load_pipeline
from wan_core.media import write_video
from wan_core.models import DiTInputs
from wan_core.pipeline import Pipeline
from wan_core.tasks import DROPPED, ExampleFiles, TrainingClip
from wan_core.training import (
    Cache,
    ExampleEncoder,
    LoopSettings,
    RunOptions,
    TrainSettings,
    data_folders,
    find_examples,
    look_into,
    plan_training,
)
from wan_core.training.folders import DataFolder

from .people import person

SIZE = (64, 80)
FRAMES = 5


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint("unianimate-14B", tmp_path_factory.mktemp("teacher") / "model")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Three clips with captions and poses."""
    return make_data(tmp_path / "data")


def make_data(folder: Path) -> Path:
    folder.mkdir()
    for number in range(3):
        clip(folder / f"{number}.mp4", seed=number)
        (folder / f"{number}.txt").write_text(f"person {number}")
        poses(folder / f"{number}.pose.npz")
    return folder


def clip(path: Path, frames: int = FRAMES, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    still = torch.rand(3, 1, SIZE[1], SIZE[0], generator=generator) * 2 - 1
    write_video(iter([still.expand(-1, frames, -1, -1)]), path, fps=15)


def poses(path: Path, frames: int = FRAMES, **values: Any) -> PoseFile:
    given = {"reference": person(), "size": SIZE, "fps": 15.0, "alignment": "none", **values}
    file = PoseFile(driving=person(frames), **given)
    write_pose_file(file, path)
    return file


def training_clip(beside: ExampleFiles | None, frames: int = FRAMES) -> TrainingClip:
    shown = torch.linspace(-1, 1, frames).view(1, frames, 1, 1).expand(3, -1, SIZE[1], SIZE[0])
    return TrainingClip(frames=shown, image=torch.full((3, SIZE[1], SIZE[0]), 0.25), beside=beside)


def beside(path: Path, **values: Any) -> ExampleFiles:
    return ExampleFiles(paths={"pose": path}, **{"start": 0.0, "fps": 15.0, **values})


def train(*words: object) -> Result:
    return CliRunner().invoke(wan, ["train", *map(str, words), "--quiet"], catch_exceptions=False)


def test_without_a_picture_of_its_own_a_clip_gives_one_of_its_frames_and_that_frames_skeleton(tmp_path: Path) -> None:
    file = poses(tmp_path / "a.npz")
    image, found = clip_poses(training_clip(beside(tmp_path / "a.npz")))
    index = round(float(image[0, 0, 0] + 1) / 2 * (FRAMES - 1))
    assert found.reference is not None
    assert torch.equal(found.reference, found.frames[:, index].permute(1, 2, 0))
    for frame in range(FRAMES):
        drawn = torch.from_numpy(model_picture(file.driving[frame : frame + 1], *SIZE))
        assert torch.equal(found.frames[:, frame], drawn.permute(2, 0, 1))
    again, _ = clip_poses(training_clip(beside(tmp_path / "a.npz")))
    assert torch.equal(image, again)


def test_a_picture_of_its_own_comes_with_its_skeleton_cut_as_the_picture_is(tmp_path: Path) -> None:
    file = poses(tmp_path / "a.npz")
    image, found = clip_poses(training_clip(beside(tmp_path / "a.npz", picture=(640, 800))))
    assert float(image.mean()) == 0.25
    assert file.reference is not None
    assert torch.equal(found.reference, torch.from_numpy(model_picture(file.reference, *SIZE)))  # type: ignore[arg-type]
    _, wide = clip_poses(training_clip(beside(tmp_path / "a.npz", picture=(960, 800))))
    drawn = torch.from_numpy(model_picture(file.reference, 96, 80))
    assert torch.equal(wide.reference, drawn[:, 16:80])  # type: ignore[arg-type]


def test_poses_of_a_wider_video_are_cut_as_its_frames_are(tmp_path: Path) -> None:
    file = poses(tmp_path / "a.npz", size=(96, 80))
    _, found = clip_poses(training_clip(beside(tmp_path / "a.npz")))
    drawn = torch.from_numpy(model_picture(file.driving[2:3], 96, 80)).permute(2, 0, 1)
    assert torch.equal(found.frames[:, 2], drawn[:, :, 16:80])


@pytest.mark.parametrize(
    ("start", "fps", "wanted"),
    [
        (0.0, 15.0, [0, 1, 2, 3, 4]),
        (0.2, 15.0, [3, 4, 5, 6, 7]),
        (0.0, 7.5, [0, 2, 4, 6, 8]),
        (0.0, 30.0, [0, 0, 1, 1, 2]),
    ],
)
def test_each_frame_has_the_pose_nearest_in_time(start: float, fps: float, wanted: list[int], tmp_path: Path) -> None:
    file = poses(tmp_path / "a.npz", 9)
    _, found = clip_poses(training_clip(beside(tmp_path / "a.npz", start=start, fps=fps)))
    drawn = [torch.from_numpy(model_picture(file.driving[i : i + 1], *SIZE)).permute(2, 0, 1) for i in wanted]
    assert torch.equal(found.frames, torch.stack(drawn, dim=1))


def test_packed_pixels_are_small_and_come_back_as_they_were() -> None:
    picture = torch.from_numpy(np.array(model_picture(person(), 480, 832)))
    packed = pack_pixels(picture)
    assert len(packed) < picture.numel() / 50
    assert torch.equal(unpack_pixels(packed), picture)


def test_damaged_pixels_are_refused() -> None:
    packed = pack_pixels(torch.zeros(3, 4, 5, dtype=torch.uint8))
    large = packed.clone()
    large[:4] = 255
    small = packed.clone()
    small[0] = 2
    for bad in (packed[:-3], packed[:10], packed.float(), large, small, torch.cat([packed[:16], packed[17:]])):
        with pytest.raises(CheckpointError, match="packed pixels"):
            unpack_pixels(bad)


@pytest.fixture(scope="module")
def pipeline(model: Path) -> Pipeline:
    return load_pipeline(UNIANIMATE_14B, model, RuntimeOptions(device="cpu", offload=False))


def test_the_companion_is_the_models_encoder_or_a_new_one_that_adds_nothing(pipeline: Pipeline) -> None:
    components = pipeline.components
    known, own = pose_companion(components).network.state_dict(), pose_companion(components).network.state_dict()
    with components.part("pose_encoder").active() as used:
        assert all(torch.equal(tensor, used.state_dict()[name]) for name, tensor in known.items())
        for tensor in own.values():
            tensor.zero_()  # not the file's
        assert all(torch.equal(tensor, used.state_dict()[name]) for name, tensor in known.items())
    parts = {name: part for name, part in components.parts.items() if name != "pose_encoder"}
    new = pose_companion(replace(components, parts=parts)).network
    batch = {MOTION: torch.full((1, 3, 5, 64, 48), 255), REFERENCE: torch.full((1, 64, 48, 3), 255)}
    plain = DiTInputs(context=torch.zeros(1, 2, 4), channel_concat=torch.ones(1, 20, 2, 8, 6))
    found = with_poses(plain, batch, new)
    assert float(found.add_condition.detach().abs().max()) == 0  # type: ignore[union-attr]
    assert torch.equal(found.channel_concat, plain.channel_concat)  # type: ignore[arg-type]
    found.add_condition.square().mean().backward()  # type: ignore[union-attr, no-untyped-call]


def test_a_dropped_sample_has_no_tokens_and_no_skeleton_in_its_channels(pipeline: Pipeline) -> None:
    generator = torch.Generator().manual_seed(0)
    encoder = pose_companion(pipeline.components).network
    batch = {
        "channels": torch.randn(2, 20, 2, 8, 6, generator=generator),
        MOTION: torch.randint(256, (2, 3, 5, 64, 48), generator=generator, dtype=torch.uint8),
        REFERENCE: torch.randint(256, (2, 64, 48, 3), generator=generator, dtype=torch.uint8),
    }
    networks, task = {"pose_encoder": encoder}, PoseToVideo()
    whole = task.training_inputs(batch, torch.zeros(2, 3, 4), networks)
    half = task.training_inputs({**batch, DROPPED: torch.tensor([True, False])}, torch.zeros(2, 3, 4), networks)
    for inputs in (whole, half):
        assert inputs.add_condition is not None
        assert inputs.add_condition.shape == (2, 2, 12, 64)
    assert float(half.add_condition[0].detach().abs().max()) == 0  # type: ignore[index]
    assert torch.equal(half.channel_concat[0], batch["channels"][0])  # type: ignore[index]
    assert torch.equal(half.add_condition[1], whole.add_condition[1])  # type: ignore[index]
    assert torch.equal(half.channel_concat[1], whole.channel_concat[1])  # type: ignore[index]
    reference = encoder.embed_reference(batch[REFERENCE])  # type: ignore[operator]
    assert torch.allclose(whole.channel_concat, batch["channels"] + reference)  # type: ignore[arg-type]


def test_the_encoder_computes_in_float32_whatever_the_rest_does(pipeline: Pipeline) -> None:
    encoder = pose_companion(pipeline.components).network
    batch = {MOTION: torch.randint(256, (1, 3, 5, 64, 48), dtype=torch.uint8)}
    plain = DiTInputs(context=torch.zeros(1, 2, 4))
    exact = with_poses(plain, batch, encoder).add_condition
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(with_poses(plain, batch, encoder).add_condition, exact)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def trained(model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[object]:
    """The words of a run of two steps, which is done."""
    folder = tmp_path_factory.mktemp("trained")
    words = ["--model", "unianimate-14B", "--ckpt-dir", model, "--data", make_data(folder / "data"), "--size", "64*80"]
    words += ["--frame-num", FRAMES, "--steps", 2, "--lora-rank", 2, "--held-out", 1, "--lr", "0.01", "--warmup", 0]
    words += ["-o", folder / "out"]
    result = train(*words)
    assert result.exit_code == 0, result.output
    return words


@pytest.mark.slow
def test_wan_train_teaches_a_lora_and_the_pose_encoder_beside_it(model: Path, trained: list[Any]) -> None:
    out = trained[-1]
    before = {k: v for k, v in torch.load(model / CHECKPOINT, weights_only=True).items() if "pose" in k}
    after = load_file(out / "pose_encoder.safetensors")
    assert set(after) == set(before)
    assert not torch.equal(after["dwpose_embedding.0.weight"], before["dwpose_embedding.0.weight"].float())
    assert any(name.endswith("lora_B.weight") for name in load_file(out / "lora.safetensors"))
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert any("validation_loss" in line for line in lines)


@pytest.mark.slow
def test_a_cache_holds_skeletons_in_few_bytes_and_is_refused_when_poses_change(trained: list[Any]) -> None:
    cache = Cache(trained[-1] / "cache")
    assert cache.settings["conditions"] == "unianimate"
    row = PoseToVideo().unpack_example(cache[0])
    assert row[MOTION].shape == (3, FRAMES, 80, 64)
    assert row[REFERENCE].shape == (80, 64, 3)
    assert cache[0][MOTION].numel() < row[MOTION].numel() / 10
    poses(trained[5] / "1.pose.npz", FRAMES + 1)
    again = train(*trained)
    assert again.exit_code == 2
    assert "examples was" in again.output


def test_poses_may_be_folders_and_clips_of_skeletons(model: Path, data: Path, tmp_path: Path) -> None:
    for number in (1, 2):
        (data / f"{number}.pose.npz").unlink()
    clip(data / "1.pose.mp4")
    (data / "2.pose").mkdir()
    for number in range(FRAMES):
        Image.new("RGB", SIZE, (0, 0, 40 * number)).save(data / "2.pose" / f"{number}.png")
    words = ["--model", "unianimate-14B", "--ckpt-dir", model, "--data", data, "-o", tmp_path / "out"]
    result = train(*words, "--size", "64*80", "--frame-num", FRAMES, "--dry-run", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["examples"] == 3
    _, found = clip_poses(training_clip(beside(data / "2.pose", start=1 / 15), 1))
    assert found.frames.float().mean(dim=(1, 2, 3)).tolist() == [0, 0, 40]


def test_a_model_without_a_pose_encoder_gets_a_new_one_and_a_cache_knows_none(
    model: Path, data: Path, tmp_path: Path
) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(model, bare, ignore=shutil.ignore_patterns(CHECKPOINT))
    plans = []
    for folder in (bare, model):
        options = RunOptions(
            model=UNIANIMATE_14B, output=tmp_path / "out", checkpoint_dir=folder, data=data_folders([data]),
            size=SIZE, num_frames=FRAMES, device="cpu",
        )  # fmt: skip
        plans.append(plan_training(options, TrainSettings(held_out=1), LoopSettings(steps=1)))
    first, second = plans
    assert [*first.networks] == [*second.networks] == ["dit", "pose_encoder"]
    assert first.beside != second.beside
    assert first.cache_settings == second.cache_settings
    encode = ExampleEncoder(first.pipeline, first.clips)
    assert first.examples is not None
    with encode.ready():
        assert {"channels", "image", MOTION, REFERENCE} <= set(encode(first.examples[0]))


def spoil_nothing(data: Path) -> None:
    pass


def without_poses(data: Path) -> None:
    (data / "1.pose.npz").unlink()


def twice(data: Path) -> None:
    clip(data / "1.pose.mp4")


def too_short(data: Path) -> None:
    poses(data / "1.pose.npz", 3)


def aligned(data: Path) -> None:
    poses(data / "1.pose.npz", alignment="reference")


def damaged(data: Path) -> None:
    (data / "1.pose.npz").write_bytes(b"no")


def table(data: Path, row: dict[str, str]) -> None:
    (data / "metadata.json").write_text(json.dumps([{"file": "1.mp4", "caption": "c", **row}]))


def no_column(data: Path) -> None:
    table(data, {})
    (data / "1.pose.npz").unlink()


def missing_file(data: Path) -> None:
    table(data, {"pose": "none.npz"})


def another_kind(data: Path) -> None:
    table(data, {"pose": "1.txt"})


def picture_without_skeleton(data: Path) -> None:
    Image.new("RGB", SIZE).save(data / "who.png")
    poses(data / "1.pose.npz", reference=None)
    table(data, {"pose": "1.pose.npz", "image": "who.png"})


BAD: dict[str, tuple[Callable[[Path], None], list[str], int, tuple[str, ...]]] = {
    "no poses": (without_poses, [], 2, ("1.mp4 has no pose, such as 1.pose.npz",)),
    "poses twice": (twice, [], 2, ("1.pose.npz and 1.pose.mp4", "keep one")),
    "too few poses": (too_short, [], 4, ("1.pose.npz has 3 poses", "5 frames")),
    "poses of another person": (aligned, [], 2, ("1.pose.npz", "--align none")),
    "damaged poses": (damaged, [], 4, ("1.pose.npz", "sfu pose")),
    "no column": (no_column, [], 2, ("1.mp4 has no pose",)),
    "a missing file": (missing_file, [], 2, ("line 1", "none.npz")),
    "another kind of file": (another_kind, [], 2, ("1.txt", ".npz")),
    "a picture without skeleton": (picture_without_skeleton, [], 2, ("--reference PICTURE", "1.pose.npz")),
    "a validation prompt": (spoil_nothing, ["--validation-prompt", "p"], 2, ("sfu teacher", "--validation-prompt")),
    "an unknown network": (spoil_nothing, ["--network", "adapter"], 2, ("pose_encoder", "adapter")),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_data_is_one_sentence_before_long_work(name: str, model: Path, data: Path, tmp_path: Path) -> None:
    spoil, further, code, wanted = BAD[name]
    spoil(data)
    words = ["--model", "unianimate-14B", "--ckpt-dir", model, "--data", data, "-o", tmp_path / "out"]
    result = train(*words, "--size", "64*80", "--frame-num", FRAMES, "--dry-run", *further)
    assert result.exit_code == code, result.output
    assert all(word in result.output for word in wanted), result.output
    assert "Traceback" not in result.output
    assert not (tmp_path / "out").exists()


def test_the_poses_beside_clips_are_no_examples_themselves(data: Path) -> None:
    (data / "1.pose.npz").unlink()
    twice(data)
    found = look_into([DataFolder(path=data)], files=PoseToVideo.example_files)
    assert [example.files["pose"].name for example in found.examples] == ["0.pose.npz", "1.pose.mp4", "2.pose.npz"]
    with pytest.raises(RequestError, match="no caption"):
        find_examples(data)  # for a model without poses it is a clip


def test_a_clip_without_poses_and_one_that_runs_out_of_them_are_refused(tmp_path: Path) -> None:
    poses(tmp_path / "a.npz", 3)
    with pytest.raises(RequestError, match="clips with poses"):
        clip_poses(training_clip(None))
    with pytest.raises(MediaError, match="has 3 poses"):
        clip_poses(training_clip(beside(tmp_path / "a.npz")))
