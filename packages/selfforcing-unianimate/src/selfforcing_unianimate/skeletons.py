"""Drawn skeletons as files: a folder of pictures, a clip, or an archive; and at the size of a video."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from wan_core import MediaError, RequestError, media
from wan_core.files import IMAGE_ENDINGS, folder_files
from wan_core.media import plain_text

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image
    from torch import Tensor

REFERENCE_STEM = "pose"
"""How the picture's skeleton is called in a folder: pose.jpg or pose.png."""


@dataclass(frozen=True)
class FittedSkeletons:
    """Skeletons at a video's size, uint8: ``video`` [1, 3, T, H, W] and, of the picture, ``reference`` [1, H, W, 3]."""

    video: Tensor
    reference: Tensor | None


@dataclass(frozen=True)
class Skeletons:
    """The skeletons of a motion, each at its own size, and that of the picture; the channels as the model takes them,
    which are the reverse of the colours that DWPose draws."""

    frames: tuple[Image.Image, ...]
    reference: Image.Image | None = None

    def fitted(self, size: tuple[int, int], num_frames: int, *, has_reference: bool) -> FittedSkeletons:
        """Stretched to ``size`` (width, height), cut to ``num_frames`` or going on with the last one."""
        import torch

        chosen = [self.frames[min(index, len(self.frames) - 1)] for index in range(num_frames)]
        video = torch.stack([_stretched(frame, size) for frame in chosen]).permute(3, 0, 1, 2)
        reference = _stretched(self.reference, size)[None] if has_reference and self.reference is not None else None
        return FittedSkeletons(video[None], reference)


def read_skeletons(path: Path) -> Skeletons:
    """The skeletons of a folder of pictures by name, ``pose.jpg`` being the picture's; of a clip; or of an ``.npz``
    with ``frames`` [T, H, W, 3] and perhaps ``reference`` [H, W, 3], both uint8.

    Raises RequestError for what is not there or has no skeletons, MediaError for what cannot be read.
    """
    if path.is_dir():
        files = folder_files(path, IMAGE_ENDINGS)
        own = [file for file in files if file.stem == REFERENCE_STEM]
        frames = [media.load_image(file) for file in files if file not in own]
        if not frames:
            raise RequestError(f"folder {plain_text(path)} has no pictures of skeletons; files like .png or .jpg count")
        return Skeletons(tuple(frames), media.load_image(own[0]) if own else None)
    if path.suffix.lower() == ".npz":
        return _read_archive(path)
    return Skeletons(tuple(media.tensor_to_image(frame) for frame in media.stream_video(path)))


def _read_archive(path: Path) -> Skeletons:
    import numpy as np
    from PIL import Image

    from wan_core.files import existing_file

    file, shown = existing_file(path, "pose file"), plain_text(path)
    try:
        with np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in ("frames", "reference") if name in archive}
    except (OSError, ValueError, zipfile.BadZipFile, EOFError, AttributeError) as error:
        raise MediaError(f"{shown} is no archive of arrays, or is damaged ({error})") from error
    frames, reference = arrays.get("frames"), arrays.get("reference")
    if frames is None or not _is_picture(frames, 4) or not len(frames):
        raise RequestError(f"{shown} has no skeletons: an array 'frames' [T, H, W, 3] of uint8 is wanted")
    if reference is not None and not _is_picture(reference, 3):
        raise RequestError(f"'reference' in {shown} must be [H, W, 3] of uint8, got {list(reference.shape)}")
    picture = None if reference is None else Image.fromarray(reference)
    return Skeletons(tuple(Image.fromarray(frame) for frame in frames), picture)


def _is_picture(array: np.ndarray, dims: int) -> bool:
    return array.ndim == dims and array.shape[-1] == 3 and array.dtype == "uint8" and 0 not in array.shape


def _stretched(picture: Image.Image, size: tuple[int, int]) -> Tensor:
    import numpy as np
    import torch
    from PIL import Image

    resized = picture.convert("RGB").resize(size, Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(resized, dtype=np.uint8))
