"""Pictures in the channels of a causal network, and as CLIP states where it has the branch."""

import contextlib
import shutil
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from selfforcing_unianimate.causal_request import CausalRequest
from selfforcing_unianimate.cli.infer import infer
from selfforcing_unianimate.frame_blocks import FrameBlocks
from selfforcing_unianimate.picture import SETTLED, channels_at
from selfforcing_unianimate.pose_config import PoseConfig
from selfforcing_unianimate.pose_encoder import PoseEncoder
from selfforcing_unianimate.presets import SFU_1_3B, TINY_SFU
from selfforcing_unianimate.task import CausalConditioning, CausalVideo
from selfforcing_unianimate.widening import widened
from tools.make_checkpoint import CLIP_FILE, make_checkpoint
from wan_core import CheckpointError, RequestError
from wan_core.checkpoints import MemorySource, official_config, write_file, write_json
from wan_core.loading import RuntimeOptions, load_pipeline
from wan_core.media import read_video
from wan_core.models import VAEConfig, VideoVAE
from wan_core.pipeline import Pipeline
from wan_core.tasks import Clip, I2VRequest, encode_channels, first_frame_mask, first_frame_video

TINY = Path(str(files("wan_core") / "weights" / "tiny"))
PRESET = replace(TINY_SFU, task=CausalVideo(FrameBlocks(size=2, window=4)))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A picture, poses with its skeleton and without, and a pose encoder for the tiny network with channels."""
    folder = tmp_path_factory.mktemp("pictures")
    picture = Image.new("RGB", (32, 32), (200, 30, 60))
    picture.paste((0, 255, 0), (8, 8, 20, 30))
    picture.save(folder / "who.png")
    for name in ("poses", "bare"):
        (folder / name).mkdir()
        for index in range(9):
            skeleton = Image.new("RGB", (32, 32))
            skeleton.paste((255, 85, 0), (3 * index, 4, 3 * index + 6, 28))
            skeleton.save(folder / name / f"{index}.png")
    Image.new("RGB", (32, 32), (0, 0, 255)).save(folder / "poses" / "pose.png")
    torch.manual_seed(0)
    for channels in (28, 20):
        encoder = PoseEncoder(PoseConfig(hidden=4, token_dim=5120, reference_channels=channels))
        save_file(encoder.state_dict(), folder / f"pose{channels}.safetensors")
    return folder


def loaded(place: Path, *, encoder: str = "pose28.safetensors", dit: str = "i2v") -> Pipeline:
    parts = {"dit": TINY / dit, "pose_encoder": place / encoder}
    return load_pipeline(PRESET, options=RuntimeOptions(device="cpu", dtype="float32", offload=False, parts=parts))


@pytest.fixture(scope="module")
def pipeline(place: Path) -> Pipeline:
    return loaded(place)


def request(place: Path, **values: Any) -> CausalRequest:
    given = {"prompt": "a red circle", "num_frames": 9, "width": 32, "height": 32, "num_inference_steps": 2}
    return CausalRequest(**{**given, "image": place / "who.png", **values})


def conditioned(pipeline: Pipeline, wanted: CausalRequest) -> list[CausalConditioning]:
    """The conditions of every block."""
    inputs, clip, found = pipeline.check(pipeline.plan(wanted)), Clip(), []
    with torch.no_grad():
        for index in range(pipeline.preset.task.num_clips(inputs)):
            found.append(pipeline.preset.task.condition(inputs, pipeline.components, replace(clip, index=index)))
            clip = Clip(previous=found[-1])
    return found


def latents(pipeline: Pipeline, wanted: CausalRequest) -> list[Tensor]:
    blocks: list[Tensor] = []
    for _ in pipeline.stream(pipeline.plan(wanted), on_latents=blocks.append):
        pass
    return blocks


def test_a_picture_is_in_the_channels_of_each_block(pipeline: Pipeline, place: Path) -> None:
    inputs = pipeline.plan(request(place))
    video, mask = first_frame_video(inputs.image[0], inputs.geometry), first_frame_mask(inputs.geometry)  # type: ignore[attr-defined]
    with torch.no_grad():
        whole = encode_channels(video, mask, pipeline.components)
    found = conditioned(pipeline, request(place, guidance_scale=2.0))
    assert [each.positive.channel_concat.shape[2] for each in found] == [2, 1]  # type: ignore[union-attr]
    for each, (start, stop) in zip(found, [(0, 2), (2, 3)], strict=True):
        assert torch.equal(each.positive.channel_concat, whole[:, :, start:stop])  # type: ignore[arg-type]
        assert each.negative is not None
        assert torch.equal(each.negative.channel_concat, whole[:, :, start:stop])  # type: ignore[arg-type]
        assert each.anchors is None


def test_one_block_is_the_video_of_the_plain_network(pipeline: Pipeline, place: Path) -> None:
    settings: dict[str, Any] = {"solver": "unipc", "guidance_scale": 3.0, "num_frames": 5}
    causal = pipeline.generate(request(place, **settings))
    plain = load_pipeline("tiny-i2v", options=RuntimeOptions(device="cpu", dtype="float32"))
    settings |= {"prompt": "a red circle", "width": 32, "height": 32, "num_inference_steps": 2}
    same = plain.generate(I2VRequest(image=place / "who.png", **settings))
    torch.testing.assert_close(causal.frames, same.frames, rtol=1e-3, atol=1e-3)


def test_without_a_picture_the_channels_are_zero(pipeline: Pipeline, place: Path) -> None:
    for each in conditioned(pipeline, request(place, image=None)):
        channels = each.positive.channel_concat
        assert channels is not None
        assert channels.shape[:2] == (1, 28)
        assert not channels.any()
    without, pictured = latents(pipeline, request(place, image=None)), latents(pipeline, request(place))
    assert not torch.allclose(without[1], pictured[1], atol=1e-2)


def test_a_network_without_channels_gets_the_picture_as_its_first_frame(place: Path) -> None:
    plain = loaded(place, dit="t2v")
    assert [block.shape[2] for block in latents(plain, request(place))] == [1, 2]


def test_channels_of_a_long_video_are_those_of_all_its_frames_and_take_no_more_memory(
    pipeline: Pipeline, place: Path
) -> None:
    wanted = request(place, num_frames=4 * 34 + 1)
    inputs, found = pipeline.plan(wanted), conditioned(pipeline, wanted)
    video, mask = first_frame_video(inputs.image[0], inputs.geometry), first_frame_mask(inputs.geometry)  # type: ignore[attr-defined]
    with torch.no_grad():
        whole = encode_channels(video, mask, pipeline.components)
    made = torch.cat([each.positive.channel_concat for each in found], dim=2)  # type: ignore[misc]
    torch.testing.assert_close(made, whole, rtol=0, atol=1e-6)
    assert found[-1].channels is not None
    assert found[-1].channels.shape[2] == SETTLED
    assert channels_at(torch.arange(3).view(1, 1, 3, 1, 1), 1, 5).flatten().tolist() == [1, 2, 2, 2]


def test_grey_has_settled_in_the_encoder_of_wan() -> None:
    torch.manual_seed(0)
    vae, video = VideoVAE(VAEConfig(dim=4, z_dim=4)).eval(), torch.zeros(1, 3, 4 * 33 + 1, 16, 16)
    video[:, :, 0] = 1
    with torch.no_grad():
        encoded = vae.encode(video)
    assert torch.equal(encoded[:, :, SETTLED - 1 :], encoded[:, :, -1:].expand(-1, -1, 35 - SETTLED, -1, -1))
    assert not torch.equal(encoded[:, :, 20], encoded[:, :, -1])


def test_the_skeleton_of_the_picture_is_added_to_the_channels(pipeline: Pipeline, place: Path) -> None:
    both = conditioned(pipeline, request(place, pose=place / "poses"))
    alone = conditioned(pipeline, request(place, pose=place / "poses", pose_mode="pose_only"))
    without = conditioned(pipeline, request(place))
    for each, single, bare in zip(both, alone, without, strict=True):
        assert torch.equal(single.positive.channel_concat, bare.positive.channel_concat)  # type: ignore[arg-type]
        difference = each.positive.channel_concat - bare.positive.channel_concat  # type: ignore[operator]
        assert difference.abs().amax(dim=(0, 2, 3, 4)).min() > 0  # the mask's channels, too
        assert torch.equal(each.positive.add_condition, single.positive.add_condition)  # type: ignore[arg-type]
    first, second = (each.positive.channel_concat - bare.positive.channel_concat  # type: ignore[operator]
                     for each, bare in zip(both, without, strict=True))  # fmt: skip
    torch.testing.assert_close(first[:, :, :1], second)


def notes(pipeline: Pipeline, wanted: CausalRequest) -> str:
    return " ".join(pipeline.check(pipeline.plan(wanted)).notes)


def test_what_of_the_poses_takes_part_is_told(pipeline: Pipeline, place: Path) -> None:
    posed = request(place, pose=place / "poses")
    assert notes(pipeline, posed) == ""
    assert "not related to the picture" in notes(pipeline, replace(posed, pose_mode="pose_only"))
    assert "without --image" in notes(pipeline, replace(posed, pose_mode="both", image=None))
    assert notes(pipeline, replace(posed, image=None)) == ""


def test_a_motion_without_the_pictures_skeleton_is_refused(pipeline: Pipeline, place: Path) -> None:
    wanted = request(place, pose=place / "bare")
    with pytest.raises(RequestError, match="no skeleton of the picture; make it with 'sfu pose VIDEO --reference"):
        pipeline.check(pipeline.plan(wanted))
    pipeline.check(pipeline.plan(replace(wanted, pose_mode="pose_only")))
    pipeline.check(pipeline.plan(replace(wanted, image=None)))


def test_a_pose_encoder_for_other_channels_is_refused(place: Path) -> None:
    other = loaded(place, encoder="pose20.safetensors")
    wanted = request(place, pose=place / "poses")
    with pytest.raises(CheckpointError, match="20 channels, this network takes 5120 and 28"):
        other.check(other.plan(wanted))
    other.check(other.plan(replace(wanted, pose_mode="pose_only")))


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in the layout of Wan2.1 I2V with an image branch."""
    return make_checkpoint("i2v-14B-480P", tmp_path_factory.mktemp("wide") / "model")


def test_a_picture_also_goes_through_clip_where_the_network_has_the_branch(wide: Path, place: Path) -> None:
    pipeline = load_pipeline(SFU_1_3B, wide, RuntimeOptions(device="cpu", offload=False))
    with_picture, without = (conditioned(pipeline, request(place, image=image)) for image in (place / "who.png", None))
    states = with_picture[0].positive.image_context
    assert states is not None
    assert states.shape == (1, 257, 160)
    assert states.abs().min() > 0
    assert with_picture[1 - 1].positive.channel_concat.shape[1] == 20  # type: ignore[union-attr]
    assert without[0].positive.image_context.shape == states.shape  # type: ignore[union-attr]
    assert not without[0].positive.image_context.any()  # type: ignore[union-attr]
    assert all(block.isfinite().all() for block in latents(pipeline, request(place, num_frames=5)))


def test_a_missing_image_encoder_is_told_before_the_work(wide: Path, place: Path, tmp_path: Path) -> None:
    shutil.copytree(wide, tmp_path / "model", ignore=shutil.ignore_patterns(CLIP_FILE))
    words = ["--ckpt-dir", tmp_path / "model", "--prompt", "p", "--size", "32*32", "--frame-num", 5, "--dry-run"]
    words = [str(word) for word in words]
    result = CliRunner().invoke(infer, [*words, "--image", str(place / "who.png")], catch_exceptions=False)
    assert result.exit_code == 2
    assert "sees a picture through CLIP, whose image encoder is not there" in result.stderr
    assert CliRunner().invoke(infer, words, catch_exceptions=False).exit_code == 0


def test_an_image_encoder_beside_another_network_is_left_alone(wide: Path, tmp_path: Path) -> None:
    make_checkpoint("t2v-1.3B", tmp_path)
    shutil.copy(wide / CLIP_FILE, tmp_path)
    assert load_pipeline(SFU_1_3B, tmp_path).components.image_encoder is None


@pytest.mark.parametrize(
    ("dims", "serves"),
    [((24, None), True), ((52, None), True), ((52, 8), True), ((24, 8), False), ((51, None), False), ((48, 8), False)],
)
def test_networks_with_the_channels_of_a_picture_serve_too(dims: tuple[int, int | None], serves: bool) -> None:
    network = replace(PRESET.dit, in_dim=dims[0], image_dim=dims[1])
    assert PRESET.task.takes(network, PRESET.dit, PRESET.latent_spec) is serves


def test_other_channels_are_another_model(wide: Path) -> None:
    index = wide / "diffusion_pytorch_model.safetensors.index.json"
    with pytest.raises(CheckpointError, match="it has 36 input and 16 output channels with image branch"):
        load_pipeline(PRESET, options=RuntimeOptions(parts={"dit": index}))


@pytest.mark.slow
def test_a_widened_student_is_trained_weights_like_any_other(wide: Path, place: Path, tmp_path: Path) -> None:
    """Widened, written, and run by the command with a picture and poses: the video of the network that was widened."""
    make_checkpoint("t2v-1.3B", tmp_path / "model")
    shutil.copy(wide / CLIP_FILE, tmp_path / "model")
    narrow = load_pipeline(SFU_1_3B, tmp_path / "model").components.networks[0].trainable(torch.float32)
    student = widened(narrow, 20, 160)
    (tmp_path / "student").mkdir()
    write_file(MemorySource(student.state_dict()), tmp_path / "student" / "model.safetensors")
    write_json(tmp_path / "student" / "config.json", official_config(student.config))
    words = ["--ckpt-dir", "model", "--prompt", "p", "--size", "32*32", "--frame-num", "9", "--seed", "1"]
    found = []
    for more in ([], ["--part", "dit=student", "--image", place / "who.png", "--pose", place / "poses",
                      "--pose-weights-path", place / "pose20.safetensors"]):  # fmt: skip
        out = tmp_path / f"{len(found)}.mp4"
        with contextlib.chdir(tmp_path):
            result = CliRunner().invoke(infer, [str(word) for word in (*words, *more, "--output", out)])
        assert result.exit_code == 0, result.output
        found.append(read_video(out, as_float=True).frames)
    torch.testing.assert_close(*found, rtol=0, atol=0.02)
