"""Requests of every task with media that hold nothing: grey images and videos, silence, empty states."""

import wave
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import save_file

from tools.simulated_inputs import STATES
from wan_core import media
from wan_core.errors import RequestError
from wan_core.presets import Preset
from wan_core.tasks import TaskInputs

_IMAGES = ("image", "first_frame", "last_frame")
_RATE = 16_000  # of silence, samples a second


def planned(
    preset: Preset, settings: Mapping[str, Any], folder: Path, *, with_image: bool = False, clips: int = 2
) -> TaskInputs[Any]:
    """A request at these settings, of so many clips where a task makes several; what it reads is put into ``folder``.

    Images are given where the task wants them, or with ``with_image`` where it takes them; poses are not. Raises
    RequestError.
    """
    names = {each.name for each in fields(preset.task.request_type)}
    image = folder / "grey.png"
    Image.new("RGB", _size(preset, settings), (128, 128, 128)).save(image)
    given = {"prompt": "simulated", **settings, **_media(preset, settings, folder, names, clips)}
    if "images" in names:
        given["images"] = (image,)
    shown = {name: image for name in _IMAGES if name in names}
    if shown and not with_image:
        with suppress(RequestError):  # an image is needed
            return preset.plan(preset.task.request_type(**given))
    return preset.plan(preset.task.request_type(**given, **shown))


def _media(
    preset: Preset, settings: Mapping[str, Any], folder: Path, names: Collection[str], clips: int
) -> dict[str, Any]:
    """What requests with fields of these names need besides images, and no size where what is read says it."""
    task, given = preset.task, dict[str, Any]()
    if "pose_mode" in names:
        given["pose_mode"] = "off"
    if "hidden_states" in names:
        given |= dict.fromkeys(("hidden_states", "hidden_states_negative"), _states(preset, folder))
    if "infer_frames" in names:
        given |= {"audio": _silence(folder, clips * task.infer_frames / task.fps), "num_clip": clips}
    if "src_root_path" in names:
        given |= {"src_root_path": _driving(preset, settings, folder, clips), "width": None, "height": None}
    return given


def _size(preset: Preset, settings: Mapping[str, Any]) -> tuple[int, int]:
    return settings.get("width") or preset.sampling.width, settings.get("height") or preset.sampling.height


def _states(preset: Preset, folder: Path) -> Path:
    config: Any = preset.dit
    path = folder / "states.safetensors"
    save_file({"hidden_states": torch.zeros(1, STATES, config.mllm_dim or config.text_dim)}, path)
    return path


def _silence(folder: Path, seconds: float) -> Path:
    path = folder / "silence.wav"
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, _RATE, 0, "NONE", "not compressed"))
        file.writeframes(bytes(2 * round(_RATE * seconds)))
    return path


def _driving(preset: Preset, settings: Mapping[str, Any], folder: Path, clips: int) -> Path:
    """What 'wan prepare-animate' would write of a grey video that is so many segments long."""
    config: Any = preset.dit
    frames = settings.get("num_frames") or preset.sampling.num_frames
    total = 1 + clips * (frames - 1)  # segments share a frame
    side, size = config.face_size, _size(preset, settings)
    for name, (width, height) in (("src_pose.mp4", size), ("src_face.mp4", (side, side))):
        grey = torch.zeros(3, 1, height, width)
        media.write_video((grey for _ in range(total)), folder / name, fps=preset.sampling.fps)
    Image.new("RGB", size, (128, 128, 128)).save(folder / "src_ref.png")
    return folder
