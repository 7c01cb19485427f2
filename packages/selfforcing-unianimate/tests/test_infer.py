"""``sfu infer``: files, streams, what is told, and what is refused before anything is loaded."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from selfforcing_unianimate.cli.infer import infer
from selfforcing_unianimate.task import CausalVideo
from wan_core.media import read_video
from wan_core.tasks import Clip

BASE = ["--size", "32*32", "--frame-num", 25, "--sample-steps", 1, "--base-seed", 1]
REQUEST = ["--prompt", "a red circle", *BASE]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    monkeypatch.chdir(tmp_path)
    return lambda *words: CliRunner().invoke(infer, [str(word) for word in words], catch_exceptions=False)


def test_a_file_is_written_and_the_speed_told(run: Callable[..., Result]) -> None:
    result = run(*REQUEST, "--output", "a.mp4")
    assert result.exit_code == 0, result.output
    assert "first frame of 32x32 after" in result.stderr
    assert "which begin at zero: poses have no effect" in result.stderr
    assert "frames a second" in result.stderr
    assert read_video("a.mp4").frames.shape == (25, 3, 32, 32)


def test_a_stream_is_the_same_video(run: Callable[..., Result]) -> None:
    result = run(*REQUEST, "--stream", "live.mp4")
    assert result.exit_code == 0, result.output
    assert "H.264 in mp4 fragments at 8 frames a second to live.mp4" in result.stderr
    assert read_video("live.mp4").frames.shape == (25, 3, 32, 32)
    raw = run(*REQUEST, "--stream", "-", "--quiet")
    assert len(raw.stdout_bytes) == 25 * 32 * 32 * 3
    assert raw.stderr == ""


def test_an_interrupted_stream_stays_as_far_as_it_came(
    run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    condition = CausalVideo.condition

    def interrupted(task: CausalVideo, inputs: Any, components: Any, clip: Clip) -> Any:
        if clip.index == 3:
            raise KeyboardInterrupt
        return condition(task, inputs, components, clip)

    monkeypatch.setattr(CausalVideo, "condition", interrupted)
    result = run(*REQUEST, "--stream", "live.mp4")
    assert result.exit_code == 130
    assert "interrupted: what was streamed to live.mp4 stays and can be played" in result.stderr
    assert read_video("live.mp4").frames.shape[0] in (8, 9)  # the last frame's fragment waits for the next


@pytest.mark.slow
def test_a_dry_run_tells_blocks_and_memory(run: Callable[..., Result]) -> None:
    result = run("--prompt", "a cat", "--dry-run", "--window", 12, "--sink", 3)
    assert result.exit_code == 0, result.output
    lines = {line.split()[0]: line for line in result.stdout.splitlines() if line.strip()}
    assert "'remembered': '6.9 GB'" in lines["memory"]
    assert lines["clips"].split() == ["clips", "7"]
    assert lines["window"].split() == ["window", "12"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--stream", "a.gif"], "a stream goes to a name ending in .mp4"),
        (["--stream", "-", "--json"], "not both"),
        (["--stream", "a.mp4", "--output", "b.mp4"], "not both"),
        (["--stream", "a.mp4", "--num-videos", "2"], "a stream is one video"),
        (["--window", "3", "--sink", "3"], "has no room for 3 of the sink and a block of 1"),
        (["--sink", "6"], "has no room for 6 of the sink"),
        (["--sink", "-1"], "a sink of -1 frames"),
        (["--image", "none.png"], "does not exist"),
        (["--pose", ""], "it is empty; name a file or a folder"),
        (["--frame-num", "24"], "4n+1"),
        (["--sample-solver", "ddim"], "ddim"),
    ],
)
def test_what_cannot_be_is_a_sentence(run: Callable[..., Result], words: list[str], said: str) -> None:
    result = run(*REQUEST, *words)
    assert result.exit_code == 2
    assert said in result.stderr
    assert not list(Path().iterdir())


def test_a_folder_without_weights_is_told(run: Callable[..., Result], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert run(*REQUEST, "--ckpt-dir", "empty").exit_code == 3


def test_a_stream_makes_its_folder_and_needs_no_place_for_a_file(run: Callable[..., Result]) -> None:
    few = ["--size", "16*16", "--frame-num", 1]
    assert run(*REQUEST, *few, "--stream", "new/live.mp4").exit_code == 0
    assert read_video("new/live.mp4").frames.shape == (1, 3, 16, 16)
    Path("tiny-sfu_16x16_a_red_circle_1.mp4").mkdir()  # where a file would go
    result = run(*REQUEST, *few, "--stream", "-")
    assert result.exit_code == 0, result.stderr
    assert len(result.stdout_bytes) == 16 * 16 * 3
