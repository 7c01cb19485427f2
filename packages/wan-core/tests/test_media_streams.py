"""Videos that are read while they are written."""

import io
import os
import resource
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from wan_core.errors import MediaError, RequestError
from wan_core.media import check_stream, is_pipe, read_video, write_stream


def chunks(count: int = 3) -> Iterator[Tensor]:
    for index in range(count):
        yield torch.full((3, 2, 16, 32), index / count)


def test_frames_can_be_read_before_the_stream_ends(tmp_path: Path) -> None:
    target, seen = tmp_path / "live.mp4", []

    def watched() -> Iterator[Tensor]:
        for index, chunk in enumerate(chunks()):
            if index == 2:
                (tmp_path / "now.mp4").write_bytes(target.read_bytes())
                seen.append(read_video(tmp_path / "now.mp4").frames.shape[0])
            yield chunk

    assert write_stream(watched(), str(target), fps=8) == target
    assert seen == [3]  # a fragment is whole when the next frame tells how long its own is shown
    assert read_video(target).frames.shape == (6, 3, 16, 32)


def test_a_pipe_gets_an_mp4(tmp_path: Path) -> None:
    pipe, copy = tmp_path / "pipe", tmp_path / "copy.mp4"
    os.mkfifo(pipe)
    assert is_pipe(str(pipe))
    reader = threading.Thread(target=lambda: copy.write_bytes(pipe.read_bytes()))
    reader.start()
    write_stream(chunks(), str(pipe), fps=8)
    reader.join()
    assert read_video(copy).frames.shape == (6, 3, 16, 32)


def test_standard_output_gets_raw_rgb(monkeypatch: pytest.MonkeyPatch) -> None:
    output = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", SimpleNamespace(buffer=output))
    write_stream(iter([torch.ones(3, 2, 16, 32)]), "-", fps=8)
    assert output.getvalue() == b"\xff" * (2 * 16 * 32 * 3)


def test_a_reader_that_went_away_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def write(content: bytes) -> None:
        raise BrokenPipeError

    monkeypatch.setattr(sys, "stdout", SimpleNamespace(buffer=SimpleNamespace(write=write, flush=lambda: None)))
    with pytest.raises(MediaError, match="nobody reads the stream - any more"):
        write_stream(chunks(), "-", fps=8)


def test_a_folder_that_is_not_there_is_made_and_one_that_cannot_be_is_told(tmp_path: Path) -> None:
    assert write_stream(chunks(), str(tmp_path / "new" / "a.mp4"), fps=8).is_file()
    with pytest.raises(MediaError, match="cannot write the stream"):
        write_stream(chunks(), str(tmp_path / "new" / "a.mp4" / "b.mp4"), fps=8)


@pytest.mark.parametrize("room", [12_000, 20_000, 27_000])
def test_of_a_stream_that_a_full_disk_ends_the_whole_fragments_stay(tmp_path: Path, room: int) -> None:
    noise = torch.rand(3, 12, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        with pytest.raises(MediaError, match="choose another place or a smaller video"):
            write_stream(noise.split(1, dim=1), str(tmp_path / "live.mp4"), fps=8)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert 1 <= read_video(tmp_path / "live.mp4").frames.shape[0] < 12


@pytest.mark.parametrize("target", ["a.gif", "", "folder/", "folder.mp4/"])
def test_other_targets_are_refused(target: str) -> None:
    with pytest.raises(RequestError, match=r"ending in \.mp4"):
        check_stream(target)


def test_no_frames_are_no_stream(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match="no frames came"):
        write_stream(iter([]), str(tmp_path / "a.mp4"), fps=8)
