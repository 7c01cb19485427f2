"""What finetuning learns from: tensors of one wanted video or its points, or a folder of many videos.

Folders are those of `wan_core.training.find_examples`, or of the reference project's later state: ``prompts.txt`` and
``videos.txt`` line by line, ``first_frames/NAME.png``, ``cache/video_latent/wan-i2v/FRAMESxHxW/NAME.safetensors``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from wan_core import MediaError, RequestError
from wan_core.checkpoints import read_weights
from wan_core.files import read_text
from wan_core.media import read_video
from wan_core.training import Example, find_examples

_VIDEO_ENDINGS = (".mp4", ".mkv", ".mov", ".webm", ".avi", ".gif")
_PROMPTS, _VIDEOS, _FIRST_FRAMES = "prompts.txt", "videos.txt", "first_frames"
_LATENTS = Path("cache/video_latent/wan-i2v")
_LATENTS_KEY = "encoded_video"


def read_wanted(path: Path, kind: Literal["video", "points"]) -> Tensor:
    """The tensor of ``--gt-video`` or ``--gt-points``, float32.

    Files of ``torch.save`` or safetensors hold one tensor, or one named ``video`` or ``points``; a video may be a video
    file too, with as many of its frames as fit 4n+1: [3, F, H, W] in [-1, 1]. Raises RequestError for a file that is
    not there or has another content, CheckpointError or MediaError for a damaged one.
    """
    flag = f"--gt-{kind}"
    if not path.is_file():
        raise RequestError(f"{flag}: there is no file {path}")
    if kind == "video" and path.suffix.lower() in _VIDEO_ENDINGS:
        frames = read_video(path).frames
        count = (len(frames) - 1) // 4 * 4 + 1
        return frames[:count].float().div(127.5).sub(1).transpose(0, 1).contiguous()
    source = read_weights(path)
    names = list(source)
    name = kind if kind in names else names[0]
    if len(names) > 1 and name != kind:
        raise RequestError(f"{flag}: {path} holds {len(names)} tensors, none named {kind}; it needs one")
    tensor = source.read(name)
    if not tensor.is_floating_point():
        raise RequestError(f"{flag}: {path} holds {tensor.dtype}, not floats")
    return tensor.float()


def find_dataset(folder: Path) -> list[Example]:
    """The examples of a folder of either layout.

    Raises RequestError naming the first thing that is wrong: line counts that differ, a missing video.
    """
    if not (folder / _PROMPTS).is_file() and not (folder / _VIDEOS).is_file():
        return find_examples(folder)
    prompts, videos = _lines(folder / _PROMPTS), _lines(folder / _VIDEOS)
    if len(prompts) != len(videos) or not prompts:
        raise RequestError(f"{folder}: {_PROMPTS} has {len(prompts)} lines, {_VIDEOS} {len(videos)}; they must match")
    examples = []
    for number, (prompt, name) in enumerate(zip(prompts, videos, strict=True), start=1):
        video = folder / name
        if not video.is_file():
            raise RequestError(f"{_VIDEOS}, line {number}: there is no file {video}")
        image = folder / _FIRST_FRAMES / f"{video.stem}.png"
        example = Example(file=video, caption=prompt)
        examples.append(replace(example, image=image) if image.is_file() else example)
    return examples


def with_latents(folder: Path, examples: Sequence[Example], channels: int, latent_frames: int) -> list[Example]:
    """The examples with the latents that lie in their folder, each read once here.

    Raises RequestError for a folder of another layout, a missing file and for what `read_latents` refuses.
    """
    if not (folder / _LATENTS).is_dir():
        raise RequestError(f"{folder} has no folder {_LATENTS} of latents; leave --dataset-latents out")
    made = []
    for example, path in zip(examples, _latent_files(folder, examples), strict=True):
        read_latents(path, channels, latent_frames)
        made.append(replace(example, latents=partial(read_latents, path, channels, latent_frames)))
    return made


def read_latents(path: Path, channels: int, latent_frames: int) -> Tensor:
    """The latents [C, T, h, w] in a file of the reference's cache, float32.

    Raises RequestError when they were made by another autoencoder: the reference's own come from Wan2.1's.
    """
    source = read_weights(path)
    if _LATENTS_KEY not in source:
        raise RequestError(f"{path} has no tensor {_LATENTS_KEY}")
    latents = source.read(_LATENTS_KEY).float()
    latents = latents[0] if latents.ndim == 5 and len(latents) == 1 else latents
    if latents.ndim != 4 or latents.shape[0] != channels:
        kind = " of Wan2.1's autoencoder (stride 8)" if latents.ndim == 4 and latents.shape[0] == 16 else ""
        raise RequestError(
            f"{path} holds latents {list(latents.shape)}{kind}; this model needs {channels} channels. Leave "
            "--dataset-latents out, then the videos are encoded"
        )
    if latents.shape[1] < latent_frames:
        raise RequestError(f"{path} holds {latents.shape[1]} latent frames, --frame-num needs {latent_frames}")
    if not bool(torch.isfinite(latents).all()):
        raise MediaError(f"{path} holds values that are not finite")
    return latents[:, :latent_frames]


def _lines(path: Path) -> list[str]:
    if not path.is_file():
        raise RequestError(f"there is no file {path}; this layout needs {_PROMPTS} and {_VIDEOS}")
    return [line.strip() for line in read_text(path).splitlines() if line.strip()]


def _latent_files(folder: Path, examples: Sequence[Example]) -> list[Path]:
    sizes = sorted(path for path in (folder / _LATENTS).glob("*") if path.is_dir())
    if not sizes:
        raise RequestError(f"{folder / _LATENTS} has no folder of latents")
    files = [sizes[0] / f"{example.file.stem}.safetensors" for example in examples]
    missing = [path for path in files if not path.is_file()]
    if missing:
        raise RequestError(f"there is no file {missing[0]} ({len(missing)} of {len(files)} latent files are missing)")
    return files
