"""Poses in the causal loop: drawn skeletons into every block, on a tiny network that knows poses."""

from collections.abc import Iterator
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from selfforcing_unianimate import pose_source
from selfforcing_unianimate.causal_request import CausalRequest
from selfforcing_unianimate.frame_blocks import FrameBlocks
from selfforcing_unianimate.motion import read_motion
from selfforcing_unianimate.pose_config import PoseConfig
from selfforcing_unianimate.pose_encoder import PoseEncoder
from selfforcing_unianimate.pose_source import SkeletonWindow, frame_indices, open_pose, skeletons
from selfforcing_unianimate.pose_weights import POSE_ENCODER, POSE_PART
from selfforcing_unianimate.presets import TINY_SFU
from selfforcing_unianimate.task import CausalVideo
from wan_core import CheckpointError, RequestError, loading
from wan_core.loading import RuntimeOptions, load_pipeline
from wan_core.media import write_video
from wan_core.pipeline import Pipeline

FRAMES = 9
PRESET = replace(
    TINY_SFU.with_part(POSE_PART.name, file=POSE_PART.file),  # none is bundled then
    task=CausalVideo(FrameBlocks(size=2, window=4)),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Skeletons, a network with a projection of poses, and two pose encoders, of which one is of another width."""
    place = tmp_path_factory.mktemp("poses")
    random = np.random.default_rng(0)
    for index in range(FRAMES):
        (place / "motion").mkdir(exist_ok=True)
        pixels = random.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(place / "motion" / f"{index:02d}.png")
    torch.manual_seed(0)
    tensors = load_file(Path(str(files("wan_core") / "weights" / "tiny" / "t2v" / "model.safetensors")))
    tensors |= {"pose_proj.weight": torch.randn(128, 24), "pose_proj.bias": torch.zeros(128)}
    save_file(tensors, place / "dit.safetensors")
    for width in (24, 25):
        encoder = PoseEncoder(PoseConfig(hidden=4, token_dim=width))
        torch.nn.init.normal_(encoder.dwpose_embedding[12].weight)
        save_file(encoder.state_dict(), place / f"pose{width}.safetensors")
    stack = {f"dwpose_embedding.{name}": tensor for name, tensor in encoder.dwpose_embedding.state_dict().items()}
    others = {name: tensor for name, tensor in encoder.state_dict().items() if name not in stack}
    save_file(others, place / "reference.safetensors")
    return place


@pytest.fixture(scope="module")
def pipeline(folder: Path) -> Pipeline:
    return loaded(folder)


def loaded(folder: Path, *, encoder: str | None = "pose24.safetensors", offload: bool = False) -> Pipeline:
    parts = {"dit": folder / "dit.safetensors", **({} if encoder is None else {"pose_encoder": folder / encoder})}
    return load_pipeline(PRESET, options=RuntimeOptions(device="cpu", dtype="float32", offload=offload, parts=parts))


@pytest.fixture
def request_(folder: Path) -> CausalRequest:
    return CausalRequest(
        prompt="a red circle",
        num_frames=FRAMES,
        width=32,
        height=32,
        num_inference_steps=2,
        guidance_scale=2.0,
        pose=folder / "motion",
    )


def latents(pipeline: Pipeline, request: CausalRequest) -> Tensor:
    blocks: list[Tensor] = []
    for _ in pipeline.stream(pipeline.plan(request), on_latents=blocks.append):
        pass
    return torch.cat(blocks, dim=2)


def test_level_2_minimal_the_motion_matters_in_both_branches_and_in_one(
    pipeline: Pipeline, request_: CausalRequest
) -> None:
    videos = [
        latents(pipeline, replace(request_, **changes))
        for changes in (
            {},
            {"pose_branch": "positive"},
            {"pose_mode": "off"},
            {"pose": None},
        )
    ]
    both, positive, off, without = videos
    assert torch.equal(off, without)
    assert not torch.allclose(both, off, atol=1e-2)
    assert not torch.allclose(both, positive, atol=1e-2)


def test_tokens_of_a_block_are_those_of_the_whole_motion(pipeline: Pipeline, request_: CausalRequest) -> None:
    motion, notes = read_motion(request_, pipeline.plan(request_).geometry, 8)
    assert motion is not None
    assert notes == ()
    whole = motion.tokens(pipeline.components, motion.window(), 0, 3)
    assert whole.shape == (1, 3, 16, 24)
    later = motion.tokens(pipeline.components, motion.window(), 2, 3)
    torch.testing.assert_close(later, whole[:, 2:], rtol=1e-5, atol=1e-5)


def test_skeletons_are_read_block_by_block_and_forgotten(
    pipeline: Pipeline, request_: CausalRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A block of 2 latent frames depends on 2 before it and 1 behind, of 4 skeletons each."""
    for index in range(41):
        Image.new("RGB", (32, 32), (6 * index, 0, 0)).save(tmp_path / f"{index}.png")
    read, held, windows = list[int](), list[int](), list[tuple[int, int]]()
    pictures, frames = pose_source._Folder.pictures, SkeletonWindow.frames

    def counted(self: Any, indices: Any, width: int, height: int) -> Iterator[Tensor]:
        for index, picture in zip(indices, pictures(self, indices, width, height), strict=True):
            read.append(index)
            yield picture

    def watched(self: SkeletonWindow, start: int, stop: int) -> Tensor:
        found = frames(self, start, stop)
        windows.append((start, stop))
        held.append(self.num_held)
        return found

    inputs = pipeline.plan(replace(request_, num_frames=41, pose=tmp_path, num_inference_steps=1))
    monkeypatch.setattr(pose_source._Folder, "pictures", counted)
    monkeypatch.setattr(SkeletonWindow, "frames", watched)
    stream = pipeline.stream(inputs)
    next(stream)
    assert windows == [(0, 9)]
    assert read == list(range(9))
    for _ in stream:
        pass
    assert windows[-1] == (29, 41)
    assert read == list(range(41))
    assert max(held) == 20


def test_frames_of_a_window_are_those_of_the_whole_motion(request_: CausalRequest) -> None:
    assert request_.pose is not None
    source, chosen = open_pose(request_.pose), frame_indices(FRAMES, 13)
    whole = skeletons(source, 16, 16, 13).frames
    window = SkeletonWindow(source, chosen, 16, 16)
    for start, stop in ((0, 5), (1, 9), (5, 12), (12, 13)):
        assert torch.equal(window.frames(start, stop), whole[:, start:stop])
    with pytest.raises(ValueError, match="frames before 12 are forgotten"):
        window.frames(3, 13)


def test_level_4_5_lazy_load_the_encoder_is_read_when_a_motion_needs_it_and_once(
    request_: CausalRequest, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, load = [], loading.load_model
    monkeypatch.setattr(loading, "load_model", lambda *a, **k: read.append(k["family"].name) or load(*a, **k))
    fresh = loaded(folder, offload=True)
    latents(fresh, replace(request_, pose_mode="off"))
    assert POSE_ENCODER.name not in read
    latents(fresh, request_)  # two blocks
    assert read.count(POSE_ENCODER.name) == 1


def test_level_1_8_pose_only_what_takes_part_is_told(pipeline: Pipeline, request_: CausalRequest) -> None:
    geometry = pipeline.plan(request_).geometry
    assert read_motion(replace(request_, pose_mode="pose_only"), geometry, 8)[1] == ()
    both = pipeline.check(pipeline.plan(replace(request_, pose_mode="both")))
    assert "no channels for the skeleton of a picture; the motion alone takes part" in both.notes[0]
    assert pipeline.check(both) == both
    assert "has no effect" in read_motion(replace(request_, pose_mode="off"), geometry, 8)[1][0]
    idle = replace(request_, pose=None, pose_weights_path=Path("any.ckpt"))
    assert "--pose-weights-path has no effect" in read_motion(idle, geometry, 8)[1][0]
    longer = pipeline.plan(replace(request_, num_frames=13))
    assert "its last one stays to the end" in longer.notes[0]


def test_a_motion_of_another_speed_is_told(pipeline: Pipeline, request_: CausalRequest, tmp_path: Path) -> None:
    write_video([torch.zeros(3, FRAMES, 16, 16)], tmp_path / "fast.mp4", fps=16)
    (note,) = pipeline.plan(replace(request_, pose=tmp_path / "fast.mp4")).notes
    assert "has 16 poses a second and the video 8 frames" in note
    assert "0.5 times as fast" in note
    assert not pipeline.plan(replace(request_, pose=tmp_path / "fast.mp4", fps=16)).notes


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"pose": None}, "a motion is needed"),
        ({"pose": None, "pose_mode": None, "pose_branch": "both"}, "a motion is needed"),
        ({"pose": Path("none.npz")}, "none.npz"),
        ({"pose": Path("motion.txt")}, "must be an .npz"),
    ],
)
def test_what_is_missing_is_told_before_a_model_is_there(
    request_: CausalRequest, changes: dict[str, object], said: str
) -> None:
    with pytest.raises(RequestError, match=said):
        PRESET.plan(
            replace(request_, pose_mode="pose_only", **changes)
            if "pose_mode" not in changes
            else replace(request_, **changes)
        )


@pytest.mark.parametrize(
    ("file", "kind", "said"),
    [
        ("pose25.safetensors", CheckpointError, "width 25 and 20 channels, this network takes 24"),
        ("reference.safetensors", CheckpointError, "14 missing: dwpose_embedding"),
        ("dit.safetensors", CheckpointError, "holds nothing of UniAnimate's pose encoder"),
        ("none.ckpt", CheckpointError, "none.ckpt does not exist"),
        (None, RequestError, "--pose-weights-path FILE"),
    ],
)
def test_weights_that_do_not_fit_are_refused_before_any_is_read(
    request_: CausalRequest, folder: Path, file: str | None, kind: type[Exception], said: str
) -> None:
    def check(request: CausalRequest) -> None:
        pipeline = loaded(folder, encoder=file)
        pipeline.check(pipeline.plan(request))

    with pytest.raises(kind, match=said):
        check(request_)
    if file is None:
        check(replace(request_, pose_mode="off"))


def test_an_encoder_of_the_motion_alone_is_taken_with_a_note(
    request_: CausalRequest, folder: Path, pipeline: Pipeline, tmp_path: Path
) -> None:
    tensors = load_file(folder / "pose24.safetensors")
    motion = {name: tensor for name, tensor in tensors.items() if name.startswith("dwpose_embedding.")}
    save_file(motion, tmp_path / "motion.safetensors")
    alone = loaded(folder, encoder=str(tmp_path / "motion.safetensors"))
    assert "the skeleton of a picture has no effect" in " ".join(alone.notes)
    assert torch.equal(latents(alone, request_), latents(pipeline, request_))
