"""Going on from a given video, and times of one's own for the few steps of each block."""

from collections.abc import Callable
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image
from torch import Tensor

from selfforcing_unianimate.causal_request import CausalRequest
from selfforcing_unianimate.cli.infer import infer
from selfforcing_unianimate.continuation import seen_latents
from selfforcing_unianimate.frame_blocks import FrameBlocks
from selfforcing_unianimate.presets import SFU_1_3B, TINY_SFU
from selfforcing_unianimate.task import CausalVideo
from wan_core import RequestError
from wan_core.loading import RuntimeOptions, load_pipeline
from wan_core.media import read_video, write_video
from wan_core.pipeline import Pipeline

TINY = Path(str(files("wan_core") / "weights" / "tiny"))
PRESET = replace(
    TINY_SFU,
    task=CausalVideo(FrameBlocks(size=2, window=8)),
    sampling=replace(TINY_SFU.sampling, num_inference_steps=2, solver="renoise", guidance_scale=1.0),
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A video of 20 frames of 48x32, one of 4, and a picture."""
    folder = tmp_path_factory.mktemp("given")
    frames = torch.full((3, 20, 32, 48), -1.0)
    for index in range(20):
        frames[0, index, 8:24, 8 + index : 20 + index] = 1
    write_video([frames], folder / "given.mp4", fps=10)
    write_video([frames[:, :4]], folder / "short.mp4", fps=8)
    Image.new("RGB", (48, 32), (0, 200, 0)).save(folder / "who.png")
    return folder


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    options = RuntimeOptions(device="cpu", dtype="float32", offload=False, parts={"dit": TINY / "t2v"})
    return load_pipeline(PRESET, options=options)


def request(place: Path, **values: Any) -> CausalRequest:
    given = {"prompt": "a red square", "num_frames": 9, "width": 48, "height": 32, "continue_from": place / "given.mp4"}
    return CausalRequest(**{**given, **values})


def made(pipeline: Pipeline, wanted: CausalRequest) -> tuple[list[Tensor], Tensor]:
    """The latents of each block, and the frames."""
    latents: list[Tensor] = []
    chunks = list(pipeline.stream(pipeline.plan(wanted), on_latents=latents.append))
    return latents, torch.cat(chunks, dim=1)


def test_the_new_frames_come_behind_the_given_ones(pipeline: Pipeline, place: Path) -> None:
    """Of 20 frames the last 13 make two blocks; 9 frames from the last of them on are 8 new ones."""
    inputs = pipeline.plan(request(place))
    video = inputs.video  # type: ignore[attr-defined]
    assert video.shape == (1, 3, 13, 32, 48)
    latents, frames = made(pipeline, request(place))
    assert [block.shape[2] for block in latents] == [2, 2, 2]
    assert frames.shape == (3, 8, 32, 48)
    with pipeline.components.vae.active() as vae, torch.no_grad():
        torch.testing.assert_close(torch.cat(latents[:2], dim=2), vae.encode(video), rtol=1e-4, atol=1e-4)
        whole = vae.decode(torch.cat(latents, dim=2))[0]
    torch.testing.assert_close(frames, whole[:, 13:], rtol=1e-4, atol=1e-4)
    last = read_video(place / "given.mp4", as_float=True).frames[-13:].transpose(0, 1)
    torch.testing.assert_close(video[0], last, rtol=0, atol=0.02)


def test_given_frames_are_remembered_as_they_are_at_timestep_zero(
    pipeline: Pipeline, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, seen = pipeline.components.networks[0].module(), []

    def watch(module: Any, given: tuple[Tensor, Tensor, Any]) -> None:
        seen.append((given[2].start, given[1].flatten().tolist()))

    handle = network.register_forward_pre_hook(watch)
    try:
        made(pipeline, request(place))
    finally:
        handle.remove()
    assert seen[:2] == [(0, [0, 0]), (2, [0, 0])]
    assert {start for start, _ in seen[2:]} == {4}
    assert seen[2][1] == [1000]


def test_what_was_given_matters(pipeline: Pipeline, place: Path, tmp_path: Path) -> None:
    write_video([torch.ones(3, 20, 32, 48)], tmp_path / "white.mp4", fps=10)
    one, other = (
        made(pipeline, request(place, continue_from=path))[0] for path in (place / "given.mp4", tmp_path / "white.mp4")
    )
    assert not torch.allclose(one[2], other[2], atol=1e-2)


@pytest.mark.parametrize(
    ("blocks", "available", "seen"),
    [
        (FrameBlocks(size=3, window=21), 50, 18),
        (FrameBlocks(size=3, window=21), 7, 6),
        (FrameBlocks(size=3, window=21), 2, 0),
        (FrameBlocks(size=3, window=5), 50, 0),
        (FrameBlocks(size=3, first_alone=True, window=21), 50, 16),
        (FrameBlocks(size=3, first_alone=True), 1, 1),
        (FrameBlocks(size=1, window=5, sink=2), 50, 4),
        (FrameBlocks(size=2), 9, 8),
    ],
)
def test_whole_blocks_that_the_next_one_sees_are_taken(blocks: FrameBlocks, available: int, seen: int) -> None:
    assert seen_latents(blocks, available) == seen


def test_the_picture_of_who_moves_may_be_given_too_where_it_is_in_channels(pipeline: Pipeline, place: Path) -> None:
    wanted = request(place, image=place / "who.png")
    with pytest.raises(RequestError, match="give --image or --continue"):
        pipeline.check(pipeline.plan(wanted))
    options = RuntimeOptions(device="cpu", dtype="float32", parts={"dit": TINY / "i2v"})
    wide = load_pipeline(PRESET, options=options)
    latents, frames = made(wide, wanted)
    assert [block.shape[2] for block in latents] == [2, 2, 2]
    assert frames.shape == (3, 8, 32, 48)
    assert not torch.allclose(latents[2], made(wide, request(place))[0][2], atol=1e-3)


def test_poses_cover_the_given_frames(place: Path, tmp_path: Path) -> None:
    (tmp_path / "poses").mkdir()
    for index in range(21):
        Image.new("RGB", (48, 32)).save(tmp_path / "poses" / f"{index}.png")
    inputs = PRESET.plan(request(place, pose=tmp_path / "poses"))
    assert inputs.motion.chosen == tuple(range(21))  # type: ignore[attr-defined]


def test_new_frames_come_at_the_rate_of_the_given_ones(place: Path) -> None:
    inputs = PRESET.plan(request(place))
    assert inputs.settings.fps == 10
    assert len(inputs.notes) == 1
    assert "given.mp4 the last 13 of 20 frames are seen" in inputs.notes[0]
    slow = PRESET.plan(request(place, fps=5))
    assert "has 10 frames a second and the new frames come at 5" in slow.notes[1]
    assert "0.5 times as fast" in slow.notes[1]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    monkeypatch.chdir(tmp_path)
    base = ["--prompt", "a red circle", "--size", "32*32", "--frame-num", 9, "--sample-steps", 1, "--base-seed", 1]

    def invoke(*words: object) -> Result:
        return CliRunner().invoke(infer, [str(word) for word in (*base, *words)], catch_exceptions=False)

    return invoke


def test_the_command_writes_the_new_frames(run: Callable[..., Result], place: Path) -> None:
    result = run("--continue", place / "given.mp4", "--output", "next.mp4")
    assert result.exit_code == 0, result.output
    assert "the last 13 of 20 frames are seen" in result.stderr
    video = read_video("next.mp4")
    assert video.frames.shape[0] == 8
    assert video.fps == 10
    rows = run("--continue", place / "given.mp4", "--dry-run").stdout.strip().splitlines()
    plan = dict(row.split(maxsplit=1) for row in rows)
    assert (plan["given_frames"], plan["num_frames"]) == ("9", "8")  # three latent frames are a block of sfu-1.3B


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--continue", "{place}/given.mp4", "--window", 1], 2, "has no room for two of 1"),
        (["--continue", "{place}/given.mp4", "--frame-num", 1], 2, "so 1 adds nothing"),
        (["--continue", "none.mp4"], 2, "none.mp4 does not exist"),
        (["--continue", "{place}/who.png"], 4, "who.png"),
        (["--continue", ""], 2, "it is empty"),
        (["--timesteps", "1000,abc"], 2, "times are numbers with commas between"),
        (["--timesteps", "1000,500"], 2, "2 timesteps are as many steps, and 1 are asked for"),
        (
            ["--timesteps", "500", "--sample-solver", "unipc"],
            2,
            "those of --sample-solver renoise, and the solver is unipc",
        ),
        (["--timesteps", "1500"], 2, "--timesteps fall from at most 1000 and end above 0, got 1500"),
        (["--timesteps", "500,750"], 2, "end above 0, got 500, 750"),
        (["--timesteps", "500,nan"], 2, "end above 0, got 500, nan"),
        (["--timesteps", "0"], 2, "end above 0, got 0"),
        (["--unwarped"], 2, "--unwarped says what --timesteps are"),
    ],
)
def test_what_cannot_be_is_a_sentence(
    run: Callable[..., Result], place: Path, words: list[object], code: int, said: str
) -> None:
    result = run(*(str(word).format(place=place) for word in words))
    assert result.exit_code == code, result.output
    assert said in result.stderr
    assert not list(Path().iterdir())


def test_too_few_frames_are_told(place: Path) -> None:
    with pytest.raises(RequestError, match=r"short\.mp4 has 4 frames, and going on from a video needs 9 at least"):
        SFU_1_3B.plan(CausalRequest(prompt="p", continue_from=place / "short.mp4"))


def times(pipeline: Pipeline, wanted: CausalRequest) -> list[float]:
    """The timesteps that the first block is made at."""
    network, seen = pipeline.components.networks[0].module(), list[float]()
    handle = network.register_forward_pre_hook(lambda module, given: seen.append(given[1].flatten().tolist()[0]))
    try:
        next(pipeline.stream(pipeline.plan(wanted)))
    finally:
        handle.remove()
    return seen


def test_own_times_are_shifted_as_the_usual_ones_or_not(pipeline: Pipeline, place: Path) -> None:
    """Self-Forcing's denoising_step_list, warped at shift 5 or not; behind the steps comes the look at the result."""
    wanted = request(place, continue_from=None, flow_shift=5.0, timesteps=(1000.0, 750.0, 500.0, 250.0))
    assert times(pipeline, wanted) == pytest.approx([1000, 937.5, 833.333, 625, 0], abs=1e-3)
    assert times(pipeline, replace(wanted, unwarped=True)) == pytest.approx([1000, 750, 500, 250, 0])
    usual = replace(wanted, timesteps=None, num_inference_steps=4)
    for one, other in zip(made(pipeline, wanted), made(pipeline, usual), strict=True):
        assert all(torch.equal(*pair) for pair in zip(one, other, strict=True))
    assert pipeline.plan(wanted).record()["num_inference_steps"] == 4
    assert pipeline.plan(wanted).record()["timesteps"] == [1000, 750, 500, 250]
