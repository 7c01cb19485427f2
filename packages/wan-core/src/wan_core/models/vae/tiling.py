"""Spatial tiling of encode and decode: overlapping tiles, blended linearly, for less memory at large sizes.

Tiles are processed on their own, so attention and borders see a tile only: the result approximates the untiled one.
Positions and blending follow diffusers' AutoencoderKLWan, so the same numbers give the same pictures.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain

import torch
from torch import Tensor

from wan_core.errors import RequestError


@dataclass(frozen=True)
class TileAxis:
    """Tiles along one side: where they start and how large they are in the input; the rest is in output units."""

    starts: range
    size: int
    out_stride: int
    out_overlap: int
    out_total: int


@dataclass(frozen=True)
class Region:
    """A finished part of the output, at ``top`` and ``left``."""

    top: int
    left: int
    values: Tensor


RunTile = Callable[[tuple[int, int], slice, slice], Tensor]
"""Called with a tile's grid position and its input rows and columns; returns the network's output for it."""


ShareTiles = Callable[[Sequence[Callable[[], Tensor]]], Iterator[Tensor]]
"""Does pieces of work, and gives their results in order; nothing where another process gets them."""


def in_turn(work: Sequence[Callable[[], Tensor]]) -> Iterator[Tensor]:
    """The results of all pieces, done here one after the other."""
    for piece in work:
        yield piece()


@dataclass(frozen=True)
class TilePlan:
    """A grid of tiles; ``share`` is who runs them."""

    rows: TileAxis
    columns: TileAxis
    share: ShareTiles = in_turn

    def regions(self, run: RunTile) -> Iterator[Region]:
        """Run every tile, row by row, and yield the blended parts that make up the output without overlap.

        Each tile is blended with the one above, then with the one to the left, both already blended. Only their
        overlaps are kept, so memory holds one tile and the lower edges of one row. Nothing comes where another process
        gets the tiles.
        """
        tiles = self.share([partial(run, *place) for place in self._places()])
        first = next(tiles, None)
        if first is None:
            return
        lower_edges: list[Tensor] = []
        above: list[Tensor] = []
        right_edge: Tensor | None = None
        for ((row, column), *_), tile in zip(self._places(), chain([first], tiles), strict=True):
            if column == 0:
                above, lower_edges, right_edge = lower_edges, [], None
            if above:
                _blend(above[column], tile, dim=-2)
            if right_edge is not None:
                _blend(right_edge, tile, dim=-1)
            lower_edges.append(_end(tile, self.rows.out_overlap, dim=-2))
            right_edge = _end(tile, self.columns.out_overlap, dim=-1)
            yield self._region(tile, row, column)

    def _places(self) -> Iterator[tuple[tuple[int, int], slice, slice]]:
        """Of each tile its grid position, and its input rows and columns."""
        for row, top in enumerate(self.rows.starts):
            for column, left in enumerate(self.columns.starts):
                yield (row, column), slice(top, top + self.rows.size), slice(left, left + self.columns.size)

    def _region(self, tile: Tensor, row: int, column: int) -> Region:
        top, left = row * self.rows.out_stride, column * self.columns.out_stride
        height = min(self.rows.out_stride, self.rows.out_total - top)
        width = min(self.columns.out_stride, self.columns.out_total - left)
        return Region(top, left, tile[..., :height, :width])


@dataclass(frozen=True, kw_only=True)
class Tiling:
    """Tile sizes and distances in pixels; the overlap of ``tile - stride`` is blended.

    A clip that fits into one tile is not tiled. Strides must be multiples of the autoencoder's spatial stride.
    Encoding a model with 2x2 patches counts patches instead of pixels, as diffusers does: tiles and strides are then
    twice as large. ``share`` may let several processes decode the tiles of a clip; encoding is not shared. Raises
    RequestError for sizes that cannot work.
    """

    tile_height: int = 256
    tile_width: int = 256
    stride_height: int = 192
    stride_width: int = 192
    share: ShareTiles = in_turn

    def __post_init__(self) -> None:
        for side in ("height", "width"):
            tile, stride = getattr(self, f"tile_{side}"), getattr(self, f"stride_{side}")
            if not 0 < stride <= tile:
                raise RequestError(f"tiling: stride_{side} must be in 1..tile_{side} ({tile}), got {stride}")

    def check(self, spatial_stride: int) -> None:
        """Raise RequestError unless an autoencoder of this stride can be tiled so."""
        for side in ("height", "width"):
            stride = getattr(self, f"stride_{side}")
            if stride % spatial_stride:
                raise RequestError(
                    f"tiling: stride_{side} must be a multiple of {spatial_stride}, got {stride}; "
                    f"try {max(1, round(stride / spatial_stride)) * spatial_stride}"
                )

    def cuts(self, height: int, width: int, *, spatial_stride: int) -> bool:
        """Whether [.., height, width] latents are decoded in several tiles."""
        return height > self.tile_height // spatial_stride or width > self.tile_width // spatial_stride

    def for_decoding(self, height: int, width: int, *, spatial_stride: int, patch_size: int) -> TilePlan | None:
        """Tiles of [.., height, width] latents, or None where one tile holds them all; output counts patches."""
        self.check(spatial_stride)
        if not self.cuts(height, width, spatial_stride=spatial_stride):
            return None

        def axis(total: int, tile: int, stride: int) -> TileAxis:
            return TileAxis(
                starts=range(0, total, stride // spatial_stride),
                size=tile // spatial_stride,
                out_stride=stride // patch_size,
                out_overlap=tile // patch_size - stride // patch_size,
                out_total=total * spatial_stride // patch_size,
            )

        return TilePlan(
            axis(height, self.tile_height, self.stride_height),
            axis(width, self.tile_width, self.stride_width),
            self.share,
        )

    def for_encoding(self, height: int, width: int, *, spatial_stride: int, patch_size: int) -> TilePlan | None:
        """Tiles of [.., height, width] pixels, counted in patches, or None where one tile holds them all."""
        self.check(spatial_stride)
        if height <= self.tile_height and width <= self.tile_width:
            return None
        ratio = spatial_stride // patch_size

        def axis(total: int, tile: int, stride: int) -> TileAxis:
            return TileAxis(
                starts=range(0, total // ratio * ratio, stride),
                size=tile,
                out_stride=stride // ratio,
                out_overlap=tile // ratio - stride // ratio,
                out_total=total // ratio,
            )

        return TilePlan(
            axis(height // patch_size, self.tile_height, self.stride_height),
            axis(width // patch_size, self.tile_width, self.stride_width),
        )


def _blend(before: Tensor, tile: Tensor, dim: int) -> None:
    """Cross-fade the start of ``tile`` with the end of its neighbour along ``dim``, in place."""
    extent = min(before.shape[dim], tile.shape[dim])
    if extent == 0:
        return
    ramp = (torch.arange(extent, dtype=tile.dtype, device=tile.device) / extent).view([-1] + [1] * (-dim - 1))
    start = tile.narrow(dim, 0, extent)
    end = before.narrow(dim, before.shape[dim] - extent, extent)
    start.copy_(end * (1 - ramp) + start * ramp)


def _end(tile: Tensor, extent: int, dim: int) -> Tensor:
    extent = min(extent, tile.shape[dim])
    return tile.narrow(dim, tile.shape[dim] - extent, extent).clone()
