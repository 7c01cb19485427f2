"""The teacher: what reaches the network, its windows, and its commands on tiny files in the published layout."""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image
from safetensors.torch import load_file, save_file

from selfforcing_unianimate.cli import sfu
from selfforcing_unianimate.picture import with_reference
from selfforcing_unianimate.pose_weights import CHECKPOINT
from selfforcing_unianimate.teacher import PoseRequest, PoseToVideo
from selfforcing_unianimate.teacher_preset import UNIANIMATE_14B
from selfforcing_unianimate.windows import WindowPlan, window_spans
from tools.make_checkpoint import make_checkpoint
from wan_core import CheckpointError, ConfigError
from wan_core.files import hash_file
from wan_core.loading import RuntimeOptions, load_pipeline
from wan_core.media import read_video
from wan_core.pipeline import Pipeline, SamplingOptions
from wan_core.tasks import Clip, Conditioning

SIZE = {"width": 48, "height": 64}
FAST = ["--size", "48*64", "--frame-num", "5", "--sample-steps", "2", "--seed", "1", "--quiet"]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, a picture, and a folder of six poses with the picture's."""
    folder = tmp_path_factory.mktemp("teacher")
    make_checkpoint("unianimate-14B", folder / "model")
    Image.new("RGB", (30, 50), (200, 30, 60)).save(folder / "who.png")
    (folder / "poses").mkdir()
    for index in range(6):
        pose = Image.new("RGB", (40, 60))
        pose.paste((255, 85, 0), (5 * index, 10, 5 * index + 10, 50))
        pose.save(folder / "poses" / f"{index}.png")
    Image.new("RGB", (40, 60), (0, 0, 255)).save(folder / "poses" / "pose.png")
    (folder / "bare").mkdir()
    Image.new("RGB", (40, 60), (0, 0, 255)).save(folder / "bare" / "0.png")
    return folder


@pytest.fixture(scope="module")
def pipeline(files: Path) -> Pipeline:
    return load_pipeline(UNIANIMATE_14B, files / "model", RuntimeOptions(device="cpu", offload=False))


@pytest.fixture
def run(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Result]]:
    monkeypatch.chdir(tmp_path)

    def invoke(*words: object) -> Result:
        return CliRunner().invoke(sfu, [str(word).format(f=files) for word in words], catch_exceptions=False)

    return invoke


def request(files: Path, **values: Any) -> PoseRequest:
    given = {"prompt": "p", "image": files / "who.png", "pose": files / "poses", "num_frames": 5, **SIZE, **values}
    return PoseRequest(**given)


def conditioned(pipeline: Pipeline, wanted: PoseRequest) -> Conditioning:
    with torch.no_grad():
        return PoseToVideo().condition(pipeline.plan(wanted), pipeline.components, Clip())


def test_the_motion_is_in_the_positive_branch_and_the_pictures_skeleton_in_both(
    pipeline: Pipeline, files: Path
) -> None:
    made = conditioned(pipeline, request(files))
    assert made.positive.add_condition is not None
    assert made.positive.add_condition.shape == (1, 2, 12, 64)
    assert made.negative is not None
    assert made.negative.add_condition is None
    assert made.negative.channel_concat is made.positive.channel_concat
    assert made.windows == ()
    bare = conditioned(pipeline, request(files, pose_mode="off"))
    assert bare.positive.add_condition is None
    difference = made.positive.channel_concat - bare.positive.channel_concat  # type: ignore[operator]
    assert difference.abs().amax(dim=(0, 2, 3, 4)).min() > 0  # all 20 channels, the mask's too
    assert torch.allclose(difference[:, :, 0], difference[:, :, 1], atol=1e-6)


def test_both_branches_take_the_motion_where_that_is_asked_for(pipeline: Pipeline, files: Path) -> None:
    made = conditioned(pipeline, request(files, pose_branch="both"))
    assert made.negative is not None
    assert made.negative.add_condition is made.positive.add_condition


def test_both_branches_as_one_batch_give_the_same_video(pipeline: Pipeline, files: Path) -> None:
    made, found = conditioned(pipeline, request(files)), []
    for batched in (False, True):
        model = Pipeline(
            pipeline.preset,
            pipeline.components,
            latent_spec=pipeline.latent_spec,
            options=SamplingOptions(batched_guidance=batched),
        )
        settings = pipeline.plan(request(files, num_inference_steps=2)).settings
        with torch.no_grad():
            found.append(model.denoise(made, settings, 1))
    assert torch.allclose(*found, atol=1e-4)


def test_level_1_8_pose_only_the_motion_alone_leaves_the_channels_and_says_so(pipeline: Pipeline, files: Path) -> None:
    wanted = request(files, pose_mode="pose_only", pose=files / "bare")
    made, bare = conditioned(pipeline, wanted), conditioned(pipeline, request(files, pose_mode="off"))
    assert made.positive.add_condition is not None
    assert torch.equal(made.positive.channel_concat, bare.positive.channel_concat)  # type: ignore[arg-type]
    notes = " ".join(pipeline.plan(wanted).notes)
    assert "not related to the picture" in notes
    assert "has 1 poses for 5 frames" in notes


def test_the_picture_is_stretched_not_cropped(pipeline: Pipeline, files: Path, tmp_path: Path) -> None:
    wide = Image.new("RGB", (90, 30), (0, 0, 0))
    wide.paste((255, 255, 255), (0, 0, 45, 30))
    wide.save(tmp_path / "wide.png")
    image = pipeline.plan(request(files, image=tmp_path / "wide.png")).image  # type: ignore[attr-defined]
    assert image.shape == (3, 64, 48)
    assert image[:, :, :20].min() > 0.95
    assert image[:, :, 28:].max() < -0.95


def test_the_mask_marks_the_first_latent_frame(pipeline: Pipeline, files: Path) -> None:
    channels = conditioned(pipeline, request(files, pose_mode="off")).positive.channel_concat
    assert channels is not None
    assert channels.shape == (1, 20, 2, 8, 6)
    assert torch.equal(channels[0, :4, 0], torch.ones(4, 8, 6))
    assert torch.equal(channels[0, :4, 1], torch.zeros(4, 8, 6))


def test_a_reference_is_added_to_every_frame() -> None:
    channels, reference = torch.zeros(1, 2, 3, 1, 1), torch.tensor([1.0, 2.0]).view(1, 2, 1, 1, 1)
    assert with_reference(channels, reference)[0, :, :, 0, 0].tolist() == [[1, 1, 1], [2, 2, 2]]


def test_windows_overlap_and_end_with_the_video() -> None:
    assert [span.start for span in window_spans(39)] == [0, 17, 18]
    assert window_spans(21) == (range(21),)
    assert window_spans(3) == (range(3),)
    with pytest.raises(ConfigError, match="overlap by 0 to 20, got 21"):
        window_spans(30, 21, 21)


@pytest.mark.parametrize("latent_frames", [21, 22, 39, 55])
def test_every_sampled_frame_is_in_a_window_and_every_beginning_in_one_only(latent_frames: int) -> None:
    plan = WindowPlan(latent_frames)
    seen = [frame for frames in plan.frames for frame in frames]
    assert set(seen) == set(range(plan.extra_frames + latent_frames))
    assert all(seen.count(frame) == 1 for frame in range(plan.extra_frames))
    assert plan.frames[0] == tuple(range(plan.extra_frames, plan.extra_frames + len(plan.spans[0])))
    for frames, span in zip(plan.frames[1:], plan.spans[1:], strict=True):
        assert [frame - plan.extra_frames for frame in frames[2:]] == [*span][2:]


def test_each_window_sees_its_own_poses_and_its_beginning_is_not_decoded(
    pipeline: Pipeline, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("selfforcing_unianimate.windows.window_spans", partial(window_spans, size=3, overlap=2))
    made = conditioned(pipeline, request(files, num_frames=13))  # 4 latent frames in windows 0-2 and 1-3
    assert made.latent_shape == (1, 16, 6, 8, 6)
    assert made.decode.drop_latent_frames == 2
    assert [window.frames for window in made.windows] == [(2, 3, 4), (0, 1, 5)]
    late = made.windows[1].positive.add_condition
    assert late is not None
    alone = conditioned(pipeline, request(files, num_frames=9, pose=_from(files, 4))).positive.add_condition
    assert torch.allclose(late, alone, atol=1e-5)  # type: ignore[arg-type]
    video = pipeline.generate(request(files, num_frames=13, num_inference_steps=2))
    assert video.frames.shape == (13, 3, 64, 48)


def _from(files: Path, first: int) -> Path:
    """A folder of the poses from one on."""
    folder = files / f"from-{first}"
    folder.mkdir(exist_ok=True)
    for name in [*(f"{index}.png" for index in range(first, 6)), "pose.png"]:
        (folder / name).write_bytes((files / "poses" / name).read_bytes())
    return folder


def test_a_window_is_stepped_as_the_reference_steps_it() -> None:
    """Private beginnings, windows stepped alone and averaged: written out, against the one sampler."""
    from wan_core.sampling import WindowDenoiser, make_solver, sample

    plan = WindowPlan(30)
    torch.manual_seed(0)
    noise, weights = torch.randn(1, 2, plan.extra_frames + 30, 1, 1), torch.randn(2, 21)
    networks = [lambda x, t, w=w: x * w[None, None, :, None, None] * t / 1000 for w in weights]

    def solver() -> Any:
        return make_solver("euler", 4, flow_shift=5.0)

    found = sample(WindowDenoiser(networks, plan.frames), solver(), noise)[:, :, plan.extra_frames :]
    video, private = noise[:, :, 2:].clone(), [noise[:, :, 2:4].clone(), noise[:, :, :2].clone()]
    stepper = solver()
    sigmas = [*(stepper.timesteps / 1000).tolist(), 0.0]
    for index, timestep in enumerate(stepper.timesteps):
        total, counts = torch.zeros_like(video), torch.zeros(30)
        for number, span in enumerate(plan.spans):
            window = video[:, :, list(span)].clone()
            window[:, :, :2] = private[number]
            window = window + (sigmas[index + 1] - sigmas[index]) * networks[number](window, timestep)
            private[number] = window[:, :, :2]
            first = 0 if number == 0 else 2
            total[:, :, list(span)[first:]] += window[:, :, first:]
            counts[list(span)[first:]] += 1
        video = total / counts[:, None, None]
    assert torch.allclose(found, video, atol=1e-5)


@pytest.mark.slow
def test_sfu_teacher_makes_a_video_with_the_published_file(run: Callable[..., Result]) -> None:
    lora = f"{{f}}/model/{CHECKPOINT}"
    words = ["teacher", "--ckpt-dir", "{f}/model", "--lora", lora, "--image", "{f}/who.png", "--pose", "{f}/poses"]
    result = run(*words, *FAST, "--output", "a.mp4", "--side-by-side", "beside.mp4")
    assert result.exit_code == 0, result.output
    beside = read_video("beside.mp4").frames
    assert tuple(beside.shape) == (5, 3, 64, 144)
    assert (beside[:, 0, :, 4:40].float() - 200).abs().mean() < 30  # the picture is red
    assert tuple(read_video("a.mp4").frames.shape) == (5, 3, 64, 48)
    assert run(*words, *FAST, "--output", "b.mp4", "--pose-mode", "off").exit_code == 0
    assert not torch.equal(read_video("a.mp4").frames, read_video("b.mp4").frames)


@pytest.mark.slow
def test_what_sfu_merge_lora_writes_makes_the_same_video(run: Callable[..., Result], files: Path) -> None:
    lora = f"{{f}}/model/{CHECKPOINT}"
    result = run("merge-lora", "--base", "{f}/model", "--lora", lora, "--out", "merged", "--dtype", "float32")
    assert result.exit_code == 0, result.output
    assert "also holds UniAnimate's pose encoder (26 tensors)" in result.output
    record = json.loads(Path("merged/merge.json").read_text())
    assert (record["pairs"], record["ranks"], record["alpha"]) == (20, [4], 1.0)
    assert len(record["base"]) == 11
    assert [*record["lora"]] == [CHECKPOINT]
    words = ["--image", "{f}/who.png", "--pose", "{f}/poses", *FAST]
    assert run("teacher", "--ckpt-dir", "merged", *words, "--output", "a.mp4").exit_code == 0
    assert run("teacher", "--ckpt-dir", "{f}/model", "--lora", lora, *words, "--output", "b.mp4").exit_code == 0
    first, second = (read_video(name).frames.float() for name in ("a.mp4", "b.mp4"))
    assert (first - second).abs().mean() < 0.2  # of 255: the last bits of a sum depend on where weights lie


def test_a_merged_file_has_the_sum_and_its_record_beside_it(run: Callable[..., Result], files: Path) -> None:
    torch.manual_seed(0)
    shards = sorted((files / "model").glob("diffusion*.safetensors"))
    base = {name: tensor for path in shards for name, tensor in load_file(path).items()}
    save_file(base, "base.safetensors")
    shutil.copy(files / "model" / "config.json", ".")
    layer = "blocks.1.ffn.2"
    down, up = torch.randn(2, 128), torch.randn(64, 2)
    save_file(
        {f"pipe.dit.{layer}.lora_A.default.weight": down, f"pipe.dit.{layer}.lora_B.default.weight": up},
        "l.safetensors",
    )
    words = ["--base", "base.safetensors", "--lora", "l.safetensors", "--out", "m.safetensors", "--alpha", "0.5"]
    result = run("merge-lora", *words, "--device", "cpu", "--quiet")
    assert result.exit_code == 0, result.output
    merged = load_file("m.safetensors")
    wanted = base[f"{layer}.weight"] + 0.5 * (up @ down)
    assert torch.allclose(merged[f"{layer}.weight"], wanted, atol=1e-6)
    assert json.loads(Path("m.safetensors.merge.json").read_text())["pairs"] == 1
    changed = [name for name, tensor in merged.items() if not torch.equal(tensor, base[name])]
    assert changed == [f"{layer}.weight"]
    words = ["--lora", "l.safetensors", "--out", "again.safetensors"]
    again = run("merge-lora", "--base", "m.safetensors", *words)
    assert again.exit_code == 2
    assert "l.safetensors is merged into m.safetensors already" in again.output
    assert not Path("again.safetensors").exists()


@pytest.mark.parametrize("depth", [0, 2])
def test_a_lora_that_was_merged_is_not_added_to_it(run: Callable[..., Result], files: Path, depth: int) -> None:
    lora = files / "model" / CHECKPOINT
    record: dict[str, object] = {"lora": {"other name.ckpt": hash_file(lora)}}
    for _ in range(depth):
        record = {"lora": {"other": "0"}, "earlier": record}
    Path("merged").mkdir()
    Path("merged/merge.json").write_text(json.dumps(record))
    words = ["teacher", "--ckpt-dir", "merged", "--image", "{f}/who.png", "--pose", "{f}/poses", "--lora", lora, *FAST]
    result = run(*words, "--dry-run")
    assert result.exit_code == 2
    assert "is merged into merged already" in result.output


GOOD = ["teacher", "--image", "{f}/who.png", "--pose", "{f}/poses", "--ckpt-dir", "{f}/model"]
MERGE = ["merge-lora", "--out", "out.safetensors"]
# name: (arguments after `sfu`, exit code, words that the message must have)
CASES: dict[str, tuple[list[str], int, tuple[str, ...]]] = {
    "no picture": (["teacher", "--pose", "{f}/poses", "--ckpt-dir", "{f}/model"], 2, ("--image",)),
    "missing picture": (["teacher", "--pose", "{f}/poses", "--image", "none.png"], 2, ("none.png",)),
    "no motion": (["teacher", "--image", "{f}/who.png"], 2, ("--pose", "sfu pose")),
    "missing motion": (["teacher", "--image", "{f}/who.png", "--pose", "none.npz"], 2, ("none.npz",)),
    "motion of another kind": (
        ["teacher", "--image", "{f}/who.png", "--pose", "{f}/who.png"], 2, ("who.png", "sfu pose"),
    ),
    "motion without the picture's skeleton": (
        ["teacher", "--image", "{f}/who.png", "--pose", "{f}/bare"], 2, ("--reference", "pose_only"),
    ),
    "a second video of no kind": ([*GOOD, "--side-by-side", "both.txt"], 2, ("both.txt", ".mp4")),
    "unknown mode": ([*GOOD, "--pose-mode", "half"], 2, ("half", "pose_only")),
    "unknown branch": ([*GOOD, "--pose-branch", "none"], 2, ("none", "positive")),
    "size off the grid": ([*GOOD, "--size", "50*64"], 2, ("50", "48")),
    "frames not 4n+1": ([*GOOD, "--frame-num", "80"], 2, ("80", "81")),
    "no weights": ([*GOOD[:-2], "--lora", "{f}/model/" + CHECKPOINT], 2, ("--ckpt-dir",)),
    "pose weights that are none": (
        [*GOOD, *FAST, "--pose-weights-path", "{f}/model/Wan2.1_VAE.pth"], 3, ("pose encoder",),
    ),
    "missing pose weights": ([*GOOD, *FAST, "--pose-weights-path", "none.ckpt"], 3, ("none.ckpt",)),
    "step cache of zero": ([*GOOD, *FAST, "--tea-cache", "0"], 2, ("above 0",)),
    "nothing to merge into": ([*MERGE, "--lora", "{f}/model/" + CHECKPOINT], 2, ("--base",)),
    "missing LoRA": ([*MERGE, "--base", "{f}/model", "--lora", "none.ckpt"], 2, ("none.ckpt",)),
    "a LoRA that is none": ([*MERGE, "--base", "b", "--lora", "{f}/model/Wan2.1_VAE.pth"], 3, ("b",)),
    "merging nowhere": ([*MERGE, "--base", "b", "--lora", "{f}/who.png", "--device", "gpu"], 2, ("must be cpu",)),
    "a strength of zero": ([*MERGE, "--base", "b", "--lora", "l", "--alpha", "0"], 2, ("--alpha", "0")),
    "a whole model as one file": (
        [*MERGE, "--base", "{f}/model", "--lora", "{f}/model/" + CHECKPOINT], 2, ("out.safetensors", "folder"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_one_sentence(name: str, run: Callable[..., Result]) -> None:
    words, code, wanted = CASES[name]
    result = run(*words)
    assert result.exit_code == code, result.output
    assert all(word in result.output for word in wanted), result.output
    assert "Traceback" not in result.output
    assert not [*Path().iterdir()]


def test_a_pair_without_a_place_writes_nothing(run: Callable[..., Result], files: Path) -> None:
    pair = {f"pipe.dit.blocks.7.self_attn.q.lora_{half}.default.weight": torch.zeros(4, 4) for half in "AB"}
    save_file(pair, "l.safetensors")
    result = run("merge-lora", "--base", "{f}/model", "--lora", "l.safetensors", "--out", "out")
    assert result.exit_code == 3
    assert "without a place" in result.output
    assert not Path("out").exists()


def test_a_pose_encoder_of_another_width_is_refused(pipeline: Pipeline, files: Path) -> None:
    config = replace(pipeline.components.configs["pose_encoder"], token_dim=32)
    components = replace(pipeline.components, configs={**pipeline.components.configs, "pose_encoder": config})
    with pytest.raises(CheckpointError, match="tokens of width 32"):
        PoseToVideo().check(pipeline.plan(request(files)), components)


def test_poses_that_are_off_need_no_pose_encoder(run: Callable[..., Result], files: Path) -> None:
    shutil.copytree(files / "model", "bare", ignore=shutil.ignore_patterns(CHECKPOINT))
    words = ["teacher", "--ckpt-dir", "bare", "--image", "{f}/who.png", *FAST, "--dry-run"]
    result = run(*words, "--pose-mode", "off")
    assert result.exit_code == 0, result.output
    result = run(*words, "--pose", "{f}/poses")
    assert result.exit_code == 2
    assert "poses need UniAnimate's pose encoder: --pose-weights-path FILE" in result.output


def test_a_network_without_the_lora_is_told(run: Callable[..., Result]) -> None:
    words = [word for word in FAST if word != "--quiet"]
    result = run(*GOOD, *words, "--dry-run")
    assert result.exit_code == 0, result.output
    assert "no --lora is given" in result.output
