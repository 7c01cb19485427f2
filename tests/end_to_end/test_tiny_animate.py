"""``wan generate tiny-animate``: who is in the picture moves as the driving video does, here or there."""

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from tools.tiny.actor_judge import judge
from tools.tiny.actors import EXAMPLE_FRAMES, FPS, example_scene
from wan_core.media import read_video

DRIVING = Path(__file__).resolve().parents[1] / "data" / "driving"
Run = Callable[..., Result]


@pytest.mark.slow
@pytest.mark.parametrize("replaced", [False, True])
def test_the_actor_of_the_picture_moves_as_the_driver_does(run: Run, replaced: bool) -> None:
    more = ["--replace_flag"] if replaced else []
    result = run("generate", "tiny-animate", "--src_root_path", DRIVING, "--seed", 1, *more, "--output", "v.mp4")
    assert result.exit_code == 0, result.output
    assert "has no word" not in result.output
    video = read_video("v.mp4")
    assert (video.fps, len(video.frames)) == (FPS, EXAMPLE_FRAMES)
    scores = judge(video.frames.permute(0, 2, 3, 1).numpy(), example_scene(), replaced=replaced)
    assert scores["pck_0.1"] > 0.6
    assert scores["kept"] == 100


def test_segments_are_as_long_as_the_model_was_trained_on(run: Run) -> None:
    result = run("generate", "tiny-animate", "--src_root_path", DRIVING, "--dry-run", "--output", "v.mp4")
    assert result.exit_code == 0, result.output
    assert "[1, 24, 5, 8, 8]" in result.output
    assert not Path("v.mp4").exists()
