"""Weights into a network: names and shapes are compared first, then each tensor is placed; no weight exists twice."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache, partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from wan_core.checkpoints.convert import native_weights
from wan_core.checkpoints.families import Family, get_family, title_of
from wan_core.checkpoints.members import family_of
from wan_core.checkpoints.meta import build_on_meta, computed_buffers
from wan_core.checkpoints.readers.sources import DerivedSource, Recipe, TensorInfo, TensorSource
from wan_core.errors import CheckpointError

_SHOWN = 5
_BLOCK = re.compile(r"blocks\.(\d+)\.")

Place = Callable[[str, Tensor], Tensor]
"""Takes a weight by name from the CPU to where it is used."""


class Division(Protocol):
    """Weights of which each of several processes reads and holds a part."""

    def prepare(self, model: nn.Module) -> None:
        """Divide the weights of a network that have not been read: their dtype and device are final, values have no
        memory."""

    def part(self, weight: Tensor, stored: Tensor) -> Tensor:
        """What this process holds of a weight: a view of what is stored."""

    def joined(self, weight: Tensor, part: Tensor) -> Tensor:
        """What takes the place of the unread ``weight``."""


def load_model(
    config: Any,
    source: TensorSource,
    *,
    family: Family | str,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    place: Place | None = None,
    division: Division | None = None,
) -> Any:
    """The family's network of ``config`` with the weights of ``source``, in eval mode.

    Weights become ``dtype`` (None: the one that most of the file has), except those that the network lists in
    ``float32_modules``. On the CPU a mapped weight that needs no change stays mapped. ``place`` takes each one, by name
    and as it is used, from the CPU to ``device``, in another way than by a plain copy. Of weights under ``division``
    only this process's part is read. Raises CheckpointError, before anything is read, when names or shapes differ: all
    differences in one message.
    """
    family = get_family(family)
    build = partial(family.build, config)
    model = build_on_meta(build)
    native = _with_zeros(native_weights(source, family), family, model)
    check_fit(model, native, family)
    dtype = dtype or main_dtype(native)
    wanted = {name: _wanted_dtype(model, name, dtype) for name in native}
    if division is not None:
        _stand_in(model, wanted, torch.device(device))
        division.prepare(model)
    for name, tensor in _placed(model, native, wanted, torch.device(device), place, division):
        assign_tensor(model, name, tensor)
    _restore_buffers(model, build, torch.device(device))
    return model.eval()


def _with_zeros(native: TensorSource, family: Family, model: nn.Module) -> TensorSource:
    """Weights of the family's base with what it adds; others as they are."""
    tensors = model.state_dict()
    names = [name for name in family.begins_at_zero if name in tensors]
    if any(name in native for name in names):
        return native
    recipes = {name: Recipe((name,), native.info(name)) for name in native}
    for name in names:
        info = TensorInfo(tuple(tensors[name].shape), main_dtype(native))
        recipes[name] = Recipe((), info, partial(_zeros, info))
    return DerivedSource(native, recipes) if names else native


def _zeros(info: TensorInfo, inputs: Sequence[Tensor]) -> Tensor:
    return torch.zeros(info.shape, dtype=info.dtype)


def main_dtype(source: TensorSource) -> torch.dtype:
    """The floating-point dtype of most bytes; bfloat16 for 8-bit floats, which nothing computes in; else float32."""
    sizes: Counter[torch.dtype] = Counter()
    for name in source:
        stored = source.stored_dtype(name)
        if source.info(name).dtype.is_floating_point:
            sizes[stored if stored.is_floating_point else torch.bfloat16] += source.info(name).numel
    if not sizes:
        return torch.float32
    dtype = sizes.most_common(1)[0][0]
    return torch.bfloat16 if dtype.itemsize == 1 else dtype


def weight_bytes(config: Any, family: Family, dtype: torch.dtype) -> int:
    """The bytes that the family's network of ``config`` takes once :func:`load_model` has read it in ``dtype``."""
    return sum(_bytes_by_block(config, family, dtype).values())


def passing_bytes(config: Any, family: Family, dtype: torch.dtype, blocks: int) -> int:
    """As :func:`weight_bytes`, with no more than so many of its ``blocks`` at once, the largest ones."""
    found = _bytes_by_block(config, family, dtype)
    each = sorted(size for index, size in found.items() if index is not None)
    return found[None] + sum(each[-blocks:])


@cache
def _bytes_by_block(config: Any, family: Family, dtype: torch.dtype) -> Counter[int | None]:
    model = build_on_meta(partial(family.build, config))
    found: Counter[int | None] = Counter()
    for name, tensor in model.state_dict().items():
        wanted = _wanted_dtype(model, name, dtype) if tensor.is_floating_point() else tensor.dtype
        found[block_of(name)] += tensor.numel() * wanted.itemsize
    return found


def block_of(name: str) -> int | None:
    """The number of the block that a weight of a network belongs to, None where it is in none of its ``blocks``."""
    found = _BLOCK.match(name)
    return None if found is None else int(found[1])


def check_network(config: Any, native: TensorSource, family: Family) -> None:
    """Compare the names and shapes of a file with those of the network of its config. Raises as :func:`check_fit`."""
    model = build_on_meta(partial(family.build, config))
    check_fit(model, _with_zeros(native, family, model), family)


def check_fit(model: nn.Module, native: TensorSource, family: Family | None = None) -> None:
    """Compare names and shapes. Raises one CheckpointError with the counts and the first of each kind of difference.

    ``family`` is that of the model: the message names another one, where the file is of that.
    """
    tensors = model.state_dict()
    wanted = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    missing = [name for name in wanted if name not in native]
    unexpected = [name for name in native if name not in wanted]
    misshaped = [
        f"{name} {list(native.info(name).shape)} instead of {list(shape)}"
        for name, shape in wanted.items()
        if name in native and native.info(name).shape != shape
    ]
    whole = [name for name in wanted if name in native and _is_packed(tensors[name], native.info(name))]
    problems = {
        "missing": missing, "unexpected": unexpected, "of another shape": misshaped, "stored as whole numbers": whole,
    }  # fmt: skip
    if any(problems.values()):
        _refuse(model, native, problems, family, is_other=len(missing) == len(wanted))


def _refuse(
    model: nn.Module, native: TensorSource, problems: Mapping[str, list[str]], family: Family | None, *, is_other: bool
) -> None:
    listed = "; ".join(_listed(names, kind) for kind, names in problems.items() if names)
    found = family_of(native)
    is_other = is_other or (family is not None and found not in ("", family.name))
    hint = _what_it_is(found) if is_other else ""
    raise CheckpointError(f"{native.path} does not fit {type(model).__name__}{hint}: {listed}")


def _is_packed(wanted: Tensor, stored: TensorInfo) -> bool:
    return wanted.is_floating_point() and not (stored.dtype.is_floating_point or stored.dtype.is_complex)


def _listed(names: list[str], kind: str) -> str:
    return f"{len(names)} {kind}: {', '.join(names[:_SHOWN])}{', ...' if len(names) > _SHOWN else ''}"


def _what_it_is(found: str) -> str:
    return f" (it looks like {title_of(found)})" if found else " (it holds no weights of such a network)"


def stays_float32(model: nn.Module, name: str) -> bool:
    """Whether a network, or one within it, lists the weight ``name`` in its ``float32_modules``."""
    owner: Any = model
    parts = name.split(".")
    for depth, part in enumerate(parts):
        kept: Iterable[str] = getattr(owner, "float32_modules", ())
        below = f".{'.'.join(parts[depth:])}."
        if any(f".{entry}." in below for entry in kept):
            return True
        owner = getattr(owner, part, None)
    return False


def _wanted_dtype(model: nn.Module, name: str, dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if stays_float32(model, name) else dtype


def _stand_in(model: nn.Module, dtypes: Mapping[str, torch.dtype], device: torch.device) -> None:
    """Parameters of their dtype and device that have no memory."""
    for name, parameter in list(model.named_parameters()):
        dtype = dtypes[name] if parameter.is_floating_point() else parameter.dtype
        assign_tensor(model, name, torch.empty((), dtype=dtype, device=device).expand(parameter.shape))


def _placed(
    model: nn.Module,
    native: TensorSource,
    dtypes: Mapping[str, torch.dtype],
    device: torch.device,
    place: Place | None,
    division: Division | None,
) -> Iterable[tuple[str, Tensor]]:
    unread = {} if division is None else dict(model.named_parameters())
    for name in native:
        read = native.read(name)
        if division is not None and name in unread:
            read = division.part(unread[name], read)
        dtype = dtypes[name] if read.is_floating_point() else read.dtype
        # To the device first: it casts faster, and the transfer is that of the stored size.
        placed = read.to(device).to(dtype) if place is None else place(name, read.to(dtype))
        if placed is read and division is not None and not native.is_there(name):
            placed = read.clone()  # a part of what was made to be read would keep the whole of it
        if placed is not read:
            del read
            native.release(name)
        if division is not None and name in unread:
            placed = division.joined(unread[name], placed)
        yield name, placed


def assign_tensor(model: nn.Module, name: str, tensor: Tensor) -> None:
    """Put a tensor in the place of a parameter or buffer, of any device and dtype."""
    path, _, leaf = name.rpartition(".")
    module = model.get_submodule(path)
    old = module._parameters.get(leaf)
    if old is not None:
        module._parameters[leaf] = nn.Parameter(tensor, requires_grad=old.requires_grad and tensor.is_floating_point())
    else:
        module._buffers[leaf] = tensor


def _restore_buffers(model: nn.Module, build: Callable[[], nn.Module], device: torch.device) -> None:
    """Buffers that no file holds: a second build computes them."""
    lost = [name for name, buffer in model.named_buffers() if buffer.is_meta]
    if not lost:
        return
    computed = computed_buffers(build)
    for name in lost:
        if computed[name].is_meta:
            raise TypeError(f"{type(model).__name__}: buffer {name} is neither stored nor computed; make it persistent")
        assign_tensor(model, name, computed[name].to(device))
