"""Finished parts of long work, kept beside what it makes until that is whole: a stopped run goes on after them.

Of a video's clips what is kept is small: the denoised latents. Their frames are decoded again, which takes a fraction
of the time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from wan_core.drafts import remove_folder
from wan_core.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

_LATENTS = "latents"
_LONGEST = 80  # of the video's name, in the folder's


class KeptParts:
    """Numbered parts of some work in a hidden folder, each of tensors by name, whole or not at all."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def count(self) -> int:
        """How many parts from the first on are there."""
        index = 0
        while self._file(index).is_file():
            index += 1
        return index

    def read(self, index: int, shapes: Mapping[str, tuple[int, ...] | None]) -> dict[str, Tensor] | None:
        """The tensors of a part; None where they are not there, damaged, or of other ``shapes`` (None is any)."""
        from wan_core.checkpoints import read_weights

        with contextlib.suppress(CheckpointError, KeyError):
            if self._file(index).is_file():
                source = read_weights(self._file(index), mmap=False)
                tensors = {name: source.read(name) for name in shapes}
                wanted = {name: shape for name, shape in shapes.items() if shape is not None}
                is_whole = all(tuple(tensors[name].shape) == tuple(shape) for name, shape in wanted.items())
                return tensors if is_whole else None
        return None

    def write(self, index: int, tensors: Mapping[str, Tensor]) -> None:
        """Keep a part. Raises ``MediaError`` when the disk refuses."""
        from wan_core.checkpoints import MemorySource, write_file

        write_file(
            MemorySource({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}), self._file(index)
        )

    def remove(self) -> None:
        """The work is whole: nothing has to be kept."""
        if self.folder.is_dir():
            remove_folder(self.folder)

    def _file(self, index: int) -> Path:
        return self.folder / f"{index:04d}.safetensors"


class KeptClips(KeptParts):
    """The clips of one video in a folder beside ``output``; ``fingerprint`` names all that decides on them."""

    def __init__(self, output: Path, fingerprint: str) -> None:
        super().__init__(output.with_name(f".{output.name[:_LONGEST]}.{fingerprint[:12]}.clips"))

    def get(self, index: int) -> Tensor | None:
        """The latents of a clip, of any shape; None where they are not there, or damaged."""
        found = self.read(index, {_LATENTS: None})
        return None if found is None else found[_LATENTS]

    def put(self, index: int, latents: Tensor) -> None:
        """Keep the latents of a clip, whole or not at all. Raises ``MediaError`` when the disk refuses."""
        self.write(index, {_LATENTS: latents.float()})
