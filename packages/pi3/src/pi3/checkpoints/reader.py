"""Weight files, read tensor by tensor: safetensors, and pickles of plain tensors only."""

import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from wan_core.errors import CheckpointError

_WRAPPERS = ("state_dict", "model")
PICKLE_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt")


@dataclass(frozen=True)
class WeightsFile:
    """An open weight file: ``shapes`` and ``dtypes`` by name, ``metadata`` of its header, ``read`` for one tensor."""

    path: Path
    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, str]
    metadata: Mapping[str, str]
    read: Callable[[str], Tensor]


def open_weights(path: Path) -> WeightsFile:
    """Open a ``.safetensors`` file, or a pickle (``.pt``, ``.pth``, ``.bin``, ``.ckpt``) that holds only tensors.

    Raises CheckpointError for a file that is missing, damaged, of another kind, or would run code when read.
    """
    if not path.is_file():
        raise CheckpointError(f"weights {path} do not exist; check the name, or run `pi3 download`")
    if path.suffix == ".safetensors":
        return _open_safetensors(path)
    if path.suffix in PICKLE_SUFFIXES:
        return _open_pickle(path)
    raise CheckpointError(f"weights {path} must end in .safetensors or {', '.join(PICKLE_SUFFIXES)}")


def _open_safetensors(path: Path) -> WeightsFile:
    try:
        file: Any = safe_open(path, framework="pt")
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - safe_open is no mapping
        shapes = {name: tuple(one.get_shape()) for name, one in slices.items()}
        dtypes = {name: one.get_dtype() for name, one in slices.items()}
        metadata = file.metadata() or {}
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} is no whole safetensors file ({error}); download it again") from error

    def read(name: str) -> Tensor:
        try:
            tensor: Tensor = file.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path} is damaged at {name} ({error}); download it again") from error
        return tensor

    return WeightsFile(path, shapes, dtypes, metadata, read)


def _open_pickle(path: Path) -> WeightsFile:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} holds more than plain tensors and could run code when read; save its state_dict as .safetensors"
        ) from error
    except (RuntimeError, OSError, EOFError, ValueError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{path} is no whole PyTorch file ({str(error)[:100]}); download it again") from error
    for wrapper in _WRAPPERS:
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError(f"{path} is no state_dict of tensors; save the model's state_dict as .safetensors")
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    dtypes = {name: str(tensor.dtype).removeprefix("torch.") for name, tensor in state.items()}
    return WeightsFile(path, shapes, dtypes, {}, state.__getitem__)
