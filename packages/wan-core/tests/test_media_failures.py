"""What stays after a failure: nothing new, and everything old; and how little is held on the way."""

import errno
import json
import os
import subprocess
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from wan_core.errors import MediaError, RequestError, WanError
from wan_core.media import check_output, write_video

from .media_clips import files_below, smooth_clip

KINDS = ["a.mp4", "a.gif", "a.webp", "frames/%03d.png"]


class FrameError(Exception):
    """What a model raises in the middle of a clip."""


def interrupted(error: BaseException, after: int = 3) -> Iterator[Tensor]:
    yield from smooth_clip(3)[:, :after].split(1, dim=1)
    raise error


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("error", [KeyboardInterrupt(), GeneratorExit(), SystemExit(1), FrameError(), OSError("model")])
@pytest.mark.parametrize("after", [0, 3])
def test_an_interruption_leaves_nothing(tmp_path: Path, name: str, error: BaseException, after: int) -> None:
    with pytest.raises(type(error)) as caught:
        write_video(interrupted(error, after), tmp_path / "new/deep" / name, fps=8)
    assert caught.value is error  # what the model raises is not dressed up as a disk error
    assert files_below(tmp_path) == []


@pytest.mark.parametrize("name", ["a.mp4", "a.gif", "a.webp"])
def test_an_interruption_keeps_the_older_file(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"older")
    with pytest.raises(KeyboardInterrupt):
        write_video(interrupted(KeyboardInterrupt()), tmp_path / name, fps=8)
    assert files_below(tmp_path) == [name]
    assert (tmp_path / name).read_bytes() == b"older"


@pytest.mark.parametrize("name", KINDS)
def test_the_name_appears_only_when_the_file_is_whole(tmp_path: Path, name: str) -> None:
    target = check_output(tmp_path / name).path

    def frames() -> Iterator[Tensor]:
        for chunk in smooth_clip(4).split(1, dim=1):
            assert not target.exists()
            assert not target.with_name("000.png").exists()
            yield chunk

    write_video(frames(), tmp_path / name, fps=8)
    assert files_below(tmp_path) == (
        [name] if "%" not in name else ["frames", *(f"frames/00{i}.png" for i in range(4))]
    )


@pytest.mark.parametrize("name", KINDS)
def test_a_full_disk_is_one_sentence_and_leaves_nothing(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for encoder in ("Mp4Encoder", "GifEncoder", "WebpEncoder", "PngEncoder"):
        monkeypatch.setattr(f"wan_core.media.encoders.{encoder}.add", full)
    with pytest.raises(MediaError, match="the disk is full") as caught:
        write_video([smooth_clip()], tmp_path / "new" / name, fps=8)
    assert "\n" not in str(caught.value)
    assert files_below(tmp_path) == []


LIMITED = """
import json, resource, sys
from pathlib import Path
import torch
from wan_core.errors import MediaError
from wan_core.media import write_video

folder, results = Path(sys.argv[1]), []
noise = torch.rand(3, 30, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
for name in sys.argv[2:]:
    write_video([noise], folder / "whole" / name, fps=8)
    largest = max(path.stat().st_size for path in (folder / "whole").rglob("*") if path.is_file())
    for share in (0.02, 0.5, 0.97, 0.999):
        resource.setrlimit(resource.RLIMIT_FSIZE, (max(int(largest * share), 100), resource.RLIM_INFINITY))
        try:
            write_video(noise.split(5, dim=1), folder / "limited" / name, fps=8)
            message = "no error"
        except MediaError as error:
            message = str(error)
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        results.append([name, share, message, (folder / "limited").exists()])
    (folder / "whole").rename(folder / f"done{len(results)}")
sys.stdout.write(json.dumps(results))
"""


@pytest.mark.slow
def test_a_real_size_limit_is_noticed_wherever_it_strikes(tmp_path: Path) -> None:
    command = [sys.executable, "-c", LIMITED, str(tmp_path), *KINDS]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for name, share, message, leftover in json.loads(output):
        assert "cannot write" in message or "is the disk full" in message, (name, share, message)
        assert not leftover, (name, share)


@pytest.mark.parametrize("name", KINDS)
def test_no_frames_is_an_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(MediaError, match="no frames"):
        write_video([], tmp_path / "new" / name, fps=8)
    assert files_below(tmp_path) == []


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_frames_that_are_no_numbers_are_refused_by_index(tmp_path: Path, value: float) -> None:
    clip = smooth_clip(6)
    clip[1, 4, 3, 3] = value
    with pytest.raises(MediaError, match=r"frame 4 .*--dtype float32"):
        write_video(clip.split(2, dim=1), tmp_path / "a.mp4", fps=8)
    assert files_below(tmp_path) == []


@pytest.mark.parametrize("shape", [(3, 48, 64), (1, 3, 2, 8, 8), (4, 2, 8, 8)])
def test_frames_of_another_layout_are_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"\[3, t, H, W\]"):
        write_video([torch.zeros(shape)], tmp_path / "a.mp4", fps=8)


def test_frames_may_not_change_their_size(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot follow"):
        write_video([torch.zeros(3, 1, 8, 8), torch.zeros(3, 1, 8, 10)], tmp_path / "a.gif", fps=8)
    assert files_below(tmp_path) == []


@pytest.mark.parametrize("fps", [0, -1, float("nan"), 5000])
def test_impossible_rates_are_refused(tmp_path: Path, fps: float) -> None:
    with pytest.raises(RequestError, match="fps"):
        write_video([smooth_clip()], tmp_path / "a.mp4", fps=fps)


class Counted:
    """Chunks made on demand; counts how many are alive at once."""

    def __init__(self, total: int) -> None:
        self.total, self.alive, self.most = total, 0, 0

    def __iter__(self) -> Iterator[Tensor]:
        for index in range(self.total):
            chunk = torch.full((3, 4, 32, 32), index / self.total)
            self.alive += 1
            self.most = max(self.most, self.alive)
            weakref.finalize(chunk, self.gone)
            yield chunk
            del chunk

    def gone(self) -> None:
        self.alive -= 1


@pytest.mark.parametrize("name", KINDS)
def test_only_two_chunks_are_ever_held(tmp_path: Path, name: str) -> None:
    chunks = Counted(25)
    write_video(chunks, tmp_path / name, fps=24)
    assert chunks.most <= 2


def test_every_error_is_ours_or_the_callers(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    for name in ("", "a", "a.avi", "file/a.mp4", ".", "a\0.mp4", "x" * 300 + ".mp4"):
        with pytest.raises(WanError):
            write_video([smooth_clip(1)], name and f"{tmp_path}/{name}", fps=8)
