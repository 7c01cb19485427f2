"""A GPU that is not there: tensors on it have shapes and no values, and what would run on it is counted.

torch's FakeTensorMode gives the tensors; it works on a build of torch without CUDA. What runs on the CPU alone is
computed, so that schedules and sizes are those of a real run.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from wan_core.checkpoints import Family, TensorSource, build_on_meta
from wan_core.checkpoints.readers.sources import TensorInfo
from wan_core.models import shared_rotary_tables
from wan_core.runtime.counting import OperationCounter


class SimulatedGPU(OperationCounter):  # type: ignore[no-untyped-call]
    """A GPU whose tensors have no memory; ``device`` is its name. Active within :func:`simulated_gpu`.

    A value that is read from it is zero, and counted as a wait.
    """

    def __init__(self, fake_mode: Any) -> None:
        super().__init__("cuda")
        self.device = torch.device("cuda", 0)
        self._fake_mode = fake_mode

    def run(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """An operation on shapes, or on the CPU the operation itself."""
        from torch._subclasses.fake_tensor import FakeTensor, unset_fake_temporarily

        leaves = tree_leaves((args, kwargs))
        if any(isinstance(leaf, FakeTensor) for leaf in leaves):
            if func is torch.ops.aten._local_scalar_dense.default:
                dtype = args[0].dtype
                return 0.0 if dtype.is_floating_point else False if dtype == torch.bool else 0
            return func(*args, **kwargs)
        if any(isinstance(leaf, torch.device) and leaf.type == "cuda" for leaf in leaves):
            return func(*args, **kwargs)
        with unset_fake_temporarily():
            return func(*args, **kwargs)

    def tensor(self, *shape: int, dtype: torch.dtype, device: str | torch.device | None = None) -> Tensor:
        """A tensor without memory or values, on the GPU, or as if it were on the CPU."""
        from torch._subclasses.fake_tensor import FakeTensor, unset_fake_temporarily

        with unset_fake_temporarily():
            shape_only = torch.empty(shape, dtype=dtype, device="meta")
        made: Tensor = FakeTensor(self._fake_mode, shape_only, torch.device(device or self.device))
        self._note_memory([made])
        return made

    def weights(self, config: Any, family: Family, dtype: torch.dtype) -> TensorSource:
        """A file of the family's network of these dims, in ``dtype``, that holds nothing."""
        from torch._subclasses.fake_tensor import unset_fake_temporarily

        with unset_fake_temporarily():
            shapes = build_on_meta(partial(family.build, config)).state_dict()
        infos = {
            name: TensorInfo(tuple(each.shape), dtype if each.is_floating_point() else each.dtype)
            for name, each in shapes.items()
        }
        return _NoWeights(self, infos)


class _NoWeights(TensorSource):
    def __init__(self, gpu: SimulatedGPU, infos: dict[str, TensorInfo]) -> None:
        super().__init__(Path("simulated"), infos, {})
        self._gpu = gpu

    def info(self, name: str) -> TensorInfo:
        info: TensorInfo = self._entries[name]
        return info

    def read(self, name: str) -> Tensor:
        info = self.info(name)
        return self._gpu.tensor(*info.shape, dtype=info.dtype, device="cpu")


class _CountedAttention(TorchFunctionMode):
    """Attention of the simulated GPU as one kernel, whose result has the layout that flash kernels give."""

    def __init__(self, gpu: SimulatedGPU) -> None:
        super().__init__()
        self._gpu = gpu

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if func is not torch.nn.functional.scaled_dot_product_attention:
            return func(*args, **kwargs)
        named = dict(zip(("query", "key", "value"), args, strict=False)) | kwargs
        query, key, value = named["query"], named["key"], named["value"]
        if query.device.type != "cuda":
            return func(*args, **kwargs)
        batch, heads, length, _ = query.shape
        mixed = self._gpu.tensor(batch, length, heads, value.shape[-1], dtype=query.dtype)
        self._gpu.note_attention(query, key, value, mixed)
        return mixed.transpose(1, 2)


@contextmanager
def simulated_gpu() -> Iterator[SimulatedGPU]:
    """A GPU to run on within the block, without gradients; any device called ``cuda`` is this one."""
    from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

    fake_mode = FakeTensorMode(allow_non_fake_inputs=True)
    gpu = SimulatedGPU(fake_mode)
    with torch.no_grad(), fake_mode, gpu, _CountedAttention(gpu), shared_rotary_tables(FakeTensor):
        yield gpu
