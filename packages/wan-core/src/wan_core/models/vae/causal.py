"""Causal 3-D convolution and the memory it keeps between two chunks of one clip.

A causal network sees a clip in chunks. What a layer must remember of the past - the last two frames of its input -
lives in a :class:`FeatureCache` that the caller owns and passes along, never on the module: two clips can be decoded in
turns on one model. Architecture: Wan 2.1 and 2.2 (Wan Team, 2025); this code is our own.
"""

from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from wan_core.errors import RequestError

HISTORY_FRAMES = 2
"""Past frames a temporal kernel of 3 looks back on."""


class FeatureCache:
    """What the causal layers of one network remember of ONE clip between its chunks.

    Start every clip with a fresh object. Memory: two feature frames per convolution, whatever the clip's length.
    """

    def __init__(self) -> None:
        self._frames: dict[nn.Module, Tensor] = {}
        self._tiles: dict[tuple[int, int], Self] = {}
        self._chunks = 0

    @property
    def is_first_chunk(self) -> bool:
        """Whether the chunk under way, or the next one, opens the clip."""
        return self._chunks == 0

    @property
    def nbytes(self) -> int:
        """Bytes held at present."""
        tiles = sum(tile.nbytes for tile in self._tiles.values())
        return tiles + sum(frames.nbytes for frames in self._frames.values())

    def tile(self, index: tuple[int, int]) -> Self:
        """The cache of one tile of the same clip, made at the first call."""
        if index not in self._tiles:
            self._tiles[index] = self._fresh()
        return self._tiles[index]

    def _fresh(self) -> Self:
        return type(self)()

    def past(self, layer: nn.Module, x: Tensor) -> Tensor | None:
        """The last two frames of ``layer``'s input before ``x`` [B, C, T, H, W]; None at the start of a clip.

        Raises RequestError where the cache was filled by another model or by a clip of another size.
        """
        frames = self._frames.get(layer)
        if frames is None:
            if self._chunks:
                raise RequestError("this cache was filled by another model; start the clip with a fresh one")
            return None
        if frames.shape[:2] != x.shape[:2] or frames.shape[3:] != x.shape[3:]:
            raise RequestError(
                f"this cache belongs to a clip with features {tuple(frames.shape)}, the chunk has {tuple(x.shape)}; "
                "start a clip of another size with a fresh cache"
            )
        return frames

    def remember(self, layer: nn.Module, x: Tensor) -> None:
        """Keep copies of the last two frames up to the end of ``x``; before the first frame come zeros."""
        frames = self._frames.get(layer)
        if frames is not None and _is_writable(frames, x):
            frames[:, :, : -x.shape[2]] = frames[:, :, x.shape[2] :]
            frames[:, :, -x.shape[2] :] = x[:, :, -HISTORY_FRAMES:]
            return
        if x.shape[2] < HISTORY_FRAMES:
            x = torch.cat([torch.zeros_like(x[:, :, :1]) if frames is None else frames[:, :, 1:], x], dim=2)
        self._frames[layer] = x[:, :, -HISTORY_FRAMES:].clone(memory_format=torch.channels_last_3d)

    def finish_chunk(self) -> None:
        """Called by the network after each chunk."""
        self._chunks += 1


class EncoderCache(FeatureCache):
    """The memory of :meth:`VideoVAE.encode_chunk` for one clip."""


class DecoderCache(FeatureCache):
    """The memory of :meth:`VideoVAE.decode_chunk` for one clip.

    ``zero_history`` starts in the middle of an imagined all-zero past instead of at a clip's first frame, so that the
    first latent yields a full group of frames too; a real-time demo of Wan 2.1 does that, normal decoding does not.
    """

    def __init__(self, *, zero_history: bool = False) -> None:
        super().__init__()
        self._zero_history = zero_history

    @property
    def is_first_chunk(self) -> bool:
        """Whether the chunk under way, or the next one, opens the clip; never so with ``zero_history``."""
        return super().is_first_chunk and not self._zero_history

    def _fresh(self) -> Self:
        return type(self)(zero_history=self._zero_history)


def _is_writable(frames: Tensor, x: Tensor) -> bool:
    """Whether the buffer may be reused: no gradient goes through it and it was made in the present inference mode."""
    is_differentiated = frames.requires_grad or x.requires_grad
    return not is_differentiated and frames.is_inference() == torch.is_inference_mode_enabled()


class CausalConv3d(nn.Conv3d):
    """Convolution with kernel (3, k, k), k odd, that pads space on both sides and time at the front only.

    [B, in, T, H, W] -> [B, out, T, H, W]. Frames before ``x`` come from ``cache``, or are zero.
    """

    def __init__(self, in_channels: int, out_channels: int, spatial_kernel: int = 3) -> None:
        super().__init__(in_channels, out_channels, (HISTORY_FRAMES + 1, spatial_kernel, spatial_kernel))

    def forward(self, x: Tensor, cache: FeatureCache | None = None) -> Tensor:
        """Convolve one chunk and let ``cache`` remember its end."""
        past = None if cache is None else cache.past(self, x)
        out = self._convolve(x, past)
        if cache is not None:
            cache.remember(self, x)
        return out

    def _convolve(self, x: Tensor, past: Tensor | None) -> Tensor:
        if past is None and x.shape[2] == 1:  # two of three temporal taps would only meet zeros
            frame = functional.conv2d(x[:, :, 0], self.weight[:, :, -1], self.bias, padding=self._space)
            return frame[:, :, None]
        if past is None:
            past = x.new_zeros((*x.shape[:2], HISTORY_FRAMES, *x.shape[3:]))
        return self.over_time(past, x)

    def over_time(self, past: Tensor, x: Tensor) -> Tensor:
        """The convolution of ``x`` behind the two frames before it."""
        return functional.conv3d(torch.cat([past, x], dim=2), self.weight, self.bias, padding=(0, *self._space))

    @property
    def _space(self) -> tuple[int, int]:
        return self.kernel_size[1] // 2, self.kernel_size[2] // 2


class PointwiseConv3d(nn.Conv3d):
    """A 1x1x1 convolution: it mixes channels only and needs no memory. [B, in, T, H, W] -> [B, out, T, H, W]."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Mix the channels of every pixel."""
        frames = functional.conv2d(fold_time(x), self.weight[:, :, 0], self.bias)
        return unfold_time(frames, x.shape[0])


def fold_time(x: Tensor) -> Tensor:
    """[B, C, T, H, W] -> [B * T, C, H, W], without a copy where channels are last in memory."""
    return x.transpose(1, 2).flatten(0, 1)


def unfold_time(frames: Tensor, batch: int) -> Tensor:
    """[B * T, C, H, W] -> [B, C, T, H, W], the inverse of :func:`fold_time`."""
    return frames.view(batch, -1, *frames.shape[1:]).transpose(1, 2)
