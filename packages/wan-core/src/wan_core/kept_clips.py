"""Finished clips of a long video, kept beside it until it is whole: a run that was stopped goes on after them.

What is kept is small: the denoised latents. Their frames are decoded again, which takes a fraction of the time.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

from wan_core.drafts import remove_folder
from wan_core.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

_LATENTS = "latents"
_LONGEST = 80  # of the video's name, in the folder's


class KeptClips:
    """The clips of one video in a folder beside ``output``; ``fingerprint`` names all that decides on them."""

    def __init__(self, output: Path, fingerprint: str) -> None:
        self.folder = output.with_name(f".{output.name[:_LONGEST]}.{fingerprint[:12]}.clips")

    @property
    def count(self) -> int:
        """How many clips from the first on are there."""
        index = 0
        while self._file(index).is_file():
            index += 1
        return index

    def get(self, index: int, shape: tuple[int, ...]) -> Tensor | None:
        """The latents of a clip; None where they are not there, damaged, or of another shape."""
        from wan_core.checkpoints import read_weights

        with contextlib.suppress(CheckpointError):
            if self._file(index).is_file():
                latents = read_weights(self._file(index), mmap=False).read(_LATENTS)
                return latents if tuple(latents.shape) == tuple(shape) else None
        return None

    def put(self, index: int, latents: Tensor) -> None:
        """Keep the latents of a clip, whole or not at all. Raises ``MediaError`` when the disk refuses."""
        from wan_core.checkpoints import MemorySource, write_file

        write_file(MemorySource({_LATENTS: latents.float().cpu().contiguous()}), self._file(index))

    def remove(self) -> None:
        """The video is whole: nothing has to be kept."""
        if self.folder.is_dir():
            remove_folder(self.folder)

    def _file(self, index: int) -> Path:
        return self.folder / f"{index:04d}.safetensors"
