"""Rotary position embedding over frames, rows and columns (Su et al., arXiv 2104.09864, on three axes).

A table holds cosine and sine of one angle per token and channel pair. Adjacent channels (2j, 2j + 1) are a pair.
"""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from threading import Lock

import torch
from torch import Tensor

_THETA = 10000.0
_KEPT_TABLES = 16

Grid = tuple[int, int, int]
Positions = Sequence[int]


def axis_dims(head_dim: int) -> Grid:
    """How many channels of a head turn with frames, rows and columns; 44, 42, 42 of 128."""
    side = 2 * (head_dim // 6)
    return head_dim - 2 * side, side, side


class _Tables:
    """The latest tables by key. Only plain tensors are kept: what a tracer makes must not outlive it."""

    def __init__(self) -> None:
        self._tables: OrderedDict[object, Tensor] = OrderedDict()
        self._lock = Lock()
        self.kinds: set[type[Tensor]] = {Tensor}

    def get(self, key: object) -> Tensor | None:
        with self._lock:
            if key in self._tables:
                self._tables.move_to_end(key)
            return self._tables.get(key)

    def keep(self, key: object, table: Tensor) -> None:
        if type(table) not in self.kinds or table.is_meta:
            return
        with self._lock:
            self._tables[key] = table
            if len(self._tables) > _KEPT_TABLES:
                self._tables.popitem(last=False)

    def forget(self) -> None:
        with self._lock:
            self._tables.clear()


_TABLES = _Tables()


def forget_rotary_tables() -> None:
    """Let go of the tables that forwards share, on every device; the next forward builds its own anew."""
    _TABLES.forget()


@contextmanager
def shared_rotary_tables(kind: type[Tensor]) -> Iterator[None]:
    """Within the block forwards share tables of this class of tensors as they do plain ones; behind it none are left.

    For a simulation, whose forwards would else each build a table, as no real one does.
    """
    _TABLES.kinds.add(kind)
    try:
        yield
    finally:
        _TABLES.kinds.discard(kind)
        _TABLES.forget()


def rotary_table(
    head_dim: int, grid: Grid, start: Grid = (0, 0, 0), device: torch.device | str | None = None
) -> Tensor:
    """Table [f*h*w, head_dim // 2, 2] float32 of the tokens of a ``grid`` whose first token stands at ``start``."""
    frames, rows, columns = (range(first, first + count) for first, count in zip(start, grid, strict=True))
    return rotary_positions(head_dim, frames, rows, columns, device)


def rotary_positions(
    head_dim: int, frames: Positions, rows: Positions, columns: Positions, device: torch.device | str | None = None
) -> Tensor:
    """Table [f*h*w, head_dim // 2, 2] float32 of tokens at every combination of the positions, frames slowest.

    Positions may be negative and need not be neighbours. Angles are built in float64: in float32 they would be off by
    4e-5 at a thousand positions. The result is shared between calls: do not write to it.
    """
    device = torch.device("cpu" if device is None else device)
    axes = tuple(frames), tuple(rows), tuple(columns)
    if torch.compiler.is_compiling():  # what a tracer makes must not outlive it
        return _build(head_dim, axes, device)
    key = (head_dim, axes, device)
    table = _TABLES.get(key)
    if table is None:
        # A tensor born in inference mode could not take part in a later training step.
        with torch.inference_mode(False), torch.no_grad():
            table = _build(head_dim, axes, device)
        _TABLES.keep(key, table)
    return table


def _build(head_dim: int, axes: Sequence[Positions], device: torch.device) -> Tensor:
    f, h, w = (len(positions) for positions in axes)
    tables = [_axis_table(dim, positions) for dim, positions in zip(axis_dims(head_dim), axes, strict=True)]
    # The rows of the axes go to the device, in one copy, rather than those of all tokens.
    moved = torch.cat([table.flatten() for table in tables]).to(device)
    parts = torch.split(moved, [table.numel() for table in tables])
    frames, rows, columns = (part.view(table.shape) for part, table in zip(parts, tables, strict=True))
    return torch.cat(
        [
            frames[:, None, None].expand(f, h, w, -1, -1),
            rows[None, :, None].expand(f, h, w, -1, -1),
            columns[None, None, :].expand(f, h, w, -1, -1),
        ],
        dim=-2,
    ).flatten(0, 2)


def _axis_table(dim: int, positions: Positions) -> Tensor:
    frequencies = _THETA ** (-torch.arange(0, dim, 2, dtype=torch.float64, device="cpu") / max(dim, 1))
    angles = torch.outer(torch.tensor(positions, dtype=torch.float64, device="cpu"), frequencies)
    return torch.stack([angles.cos(), angles.sin()], dim=-1).float()


def rotate(heads: Tensor, table: Tensor) -> Tensor:
    """Turn the channel pairs of [B, L, n, d] by the table's [L', d / 2] angles, in float32; the dtype is kept.

    Tokens from L' on stay as they are.
    """
    length = table.shape[0]
    x, y = (heads[:, :length, :, first::2].float() for first in (0, 1))
    cosine, sine = table[:, None].unbind(-1)
    pairs = [torch.addcmul(x * cosine, y, sine, value=-1), torch.addcmul(x * sine, y, cosine)]
    turned = torch.stack(pairs, dim=-1).flatten(-2).to(heads.dtype)
    return turned if length == heads.shape[1] else torch.cat([turned, heads[:, length:]], dim=1)
