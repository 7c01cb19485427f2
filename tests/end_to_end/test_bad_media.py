"""Bad pictures, videos, sounds and outputs: the exit code, and one sentence that names the file and the remedy.

The table calls the library; ``test_bad_input.py`` asks some of the same through the command line.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from wan_core.errors import WanError
from wan_core.media import check_output, load_audio, load_image, read_provenance, read_video, write_video
from wan_core.tasks.speech import load_speech

GREY = torch.zeros(3, 4, 16, 16)


def write(path: Path) -> None:
    write_video([GREY], path, fps=8)


# name: (what is called, the name in the folder, exit code, words of the message)
CASES: dict[str, tuple[Callable[[Path], Any], str, int, tuple[str, ...]]] = {
    "missing picture": (load_image, "none.png", 2, ("none.png", "does not exist")),
    "picture below a file": (load_image, "good.png/x.png", 2, ("x.png", "does not exist")),
    "picture is a folder": (load_image, "folder.mp4", 2, ("folder.mp4", "is a folder")),
    "picture is a pipe": (load_image, "pipe.mp4", 2, ("pipe.mp4", "no regular file")),
    "endless picture name": (load_image, "x" * 300, 2, ("no valid file name",)),
    "picture of no bytes": (load_image, "nothing.png", 4, ("nothing.png", "0 bytes")),
    "picture that is text": (load_image, "text.png", 4, ("text.png", "PNG, JPEG or WebP")),
    "picture that is a video": (load_image, "good.mp4", 4, ("good.mp4", "no picture")),
    "cut picture": (load_image, "cut.png", 4, ("cut.png", "again")),
    "cut photo": (load_image, "cut.jpg", 4, ("cut.jpg", "again")),
    "huge picture": (load_image, "huge.pgm", 4, ("huge.pgm", "400000000 pixels", "100 million", "scale it")),
    "missing video": (read_video, "none.mp4", 2, ("none.mp4", "does not exist")),
    "video that is text": (read_video, "text.png", 4, ("text.png", "save it as mp4")),
    "cut video": (read_video, "cut.mp4", 4, ("cut.mp4", "is cut off", "copy it again")),
    "video that is sound": (read_video, "good.wav", 4, ("good.wav", "has no video")),
    "missing sound": (load_audio, "none.wav", 2, ("none.wav", "does not exist")),
    "sound that is text": (load_audio, "text.png", 4, ("text.png",)),
    "silent video as sound": (load_audio, "good.mp4", 4, ("good.mp4", "has no sound")),
    "sound of no samples": (load_audio, "short.wav", 4, ("short.wav", "no samples")),
    "sound of no bytes": (load_audio, "nothing.png", 4, ("nothing.png",)),
    "sound is a folder": (load_audio, "folder.mp4", 2, ("folder.mp4", "is a folder")),
    "sound is a pipe": (load_audio, "pipe.mp4", 2, ("pipe.mp4", "no regular file")),
    "sound that is a picture": (load_audio, "good.png", 4, ("good.png",)),
    "cut sound": (load_audio, "cut.wav", 4, ("cut.wav", "is cut off", "copy it again")),
    "cut FLAC": (load_audio, "cut.flac", 4, ("cut.flac", "cut off")),
    "sound of a cut video": (load_audio, "cut.mp4", 4, ("cut.mp4", "is cut off", "copy it again")),
    "sound of an unknown sample format": (load_audio, "odd.wav", 4, ("odd.wav", "save it as WAV")),
    "sound that is too short": (load_speech, "brief.wav", 4, ("0.025 s", "0.1 s", "longer")),
    "sound moved beyond its end": (lambda path: load_speech(path, align=-1), "good.wav", 2, ("1 s earlier", "nothing")),
    "impossible sample rate": (lambda path: load_audio(path, sample_rate=0), "good.wav", 2, ("sample rate", "768000")),
    "record of a missing file": (read_provenance, "none.mp4", 2, ("none.mp4", "does not exist")),
    "record of a foreign file": (read_provenance, "good.png", 4, ("good.png", "--no-metadata")),
    "output without ending": (check_output, "video", 2, ("no known ending", ".mp4")),
    "output of another kind": (check_output, "video.avi", 2, (".avi", ".mp4", "frames/%04d.png")),
    "pattern with two counters": (check_output, "%d_%d.png", 2, ("exactly one",)),
    "output is a folder": (check_output, "folder.mp4", 4, ("folder.mp4", "is a folder", "video.mp4")),
    "output below a file": (check_output, "good.png/v.mp4", 4, ("good.png", "no folder")),
    "output is a pipe": (check_output, "pipe.mp4", 4, ("pipe.mp4", "no regular file")),
    "endless output name": (check_output, "x" * 300 + ".mp4", 2, ("no valid file name",)),
    "several frames in one png": (lambda path: check_output(path, num_frames=5), "a.png", 2, ("5 frames", "%04d")),
    "sound in a gif": (lambda path: check_output(path, has_audio=True), "a.gif", 2, ("sound", ".mp4")),
    "gif at 60 fps": (lambda path: check_output(path, fps=60), "a.gif", 2, ("50", "60", ".mp4")),
    "frames over older ones": (lambda path: check_output(path, num_frames=3), "%02d.png", 2, ("07.png", "mixed")),
    "written to a folder": (write, "folder.mp4", 4, ("folder.mp4", "is a folder")),
    "frames of another kind": (write, "video.avi", 2, (".avi",)),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("media")
    (folder / "folder.mp4").mkdir()
    os.mkfifo(folder / "pipe.mp4")
    (folder / "nothing.png").touch()
    (folder / "07.png").touch()
    (folder / "text.png").write_text("I am no picture.\n" * 50)
    (folder / "huge.pgm").write_bytes(b"P5 20000 20000 255\n" + bytes(100))
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8))
    for name in ("good.png", "cut.png", "cut.jpg"):
        noise.save(folder / name)
    for name in ("good.mp4", "cut.mp4"):
        write(folder / name)
    for name in ("cut.png", "cut.jpg", "cut.mp4"):
        (folder / name).write_bytes((folder / name).read_bytes()[:1500])
    soundfile.write(folder / "good.wav", np.zeros(800), 8000)
    soundfile.write(folder / "short.wav", np.zeros(0), 8000)
    soundfile.write(folder / "brief.wav", np.zeros(200), 8000)
    for name in ("cut.wav", "cut.flac"):
        soundfile.write(folder / name, np.random.default_rng(0).uniform(-0.5, 0.5, 8000), 8000)
        (folder / name).write_bytes((folder / name).read_bytes()[:6000])
    odd = bytearray((folder / "good.wav").read_bytes())
    odd[20:22] = (0x1234).to_bytes(2, "little")  # the format tag
    (folder / "odd.wav").write_bytes(odd)
    return folder


@pytest.mark.parametrize("name", CASES)
def test_bad_media_is_one_clear_sentence(name: str, folder: Path) -> None:
    call, file, exit_code, words = CASES[name]
    before = sorted(folder.rglob("*"))
    with pytest.raises(WanError) as caught:
        call(folder / file)
    message = str(caught.value)
    assert caught.value.exit_code == exit_code, message
    assert "\n" not in message
    assert len(message) < 400 + len(str(folder))
    for word in words:
        assert word in message
    assert sorted(folder.rglob("*")) == before
