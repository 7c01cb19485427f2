"""The video autoencoder as the pipelines use it: pixels to normalised latents and back, whole, streamed or tiled.

Architecture: Wan 2.1 and 2.2 (Wan Team, 2025). State-dict names are those of the released checkpoints; the code is our
own.
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from wan_core.errors import BackendError, RequestError
from wan_core.models.vae.backbone import Decoder, Encoder
from wan_core.models.vae.causal import DecoderCache, EncoderCache, FeatureCache, PointwiseConv3d
from wan_core.models.vae.config import VAEConfig
from wan_core.models.vae.initialise import initialise_for_training
from wan_core.models.vae.shortcuts import patchify, unpatchify
from wan_core.models.vae.tiling import Region, TilePlan, Tiling


class VideoVAE(nn.Module):
    """Causal video autoencoder: 1 + n * temporal_stride frames [B, 3, T, H, W] in [-1, 1] <-> 1 + n latent frames.

    Latents are [B, z_dim, 1 + n, H / stride, W / stride], normalised per channel with the statistics of ``config``.
    It computes in the dtype of its weights (channel norms in float32) and returns float32. Methods leave gradients to
    the caller: use ``torch.inference_mode()`` unless you train. ``latents_per_chunk`` says how many latent frames run
    at a time (None: all); the result does not depend on it, memory and speed do. ``encode_tiling`` and
    ``decode_tiling`` are set from outside, and hold where a call has no ``tiling`` of its own. Where the latter is
    shared among processes those that do not get the tiles decode to as many frames without a pixel, [B, 3, T, 0, 0].
    """

    float32_modules: ClassVar[tuple[str, ...]] = ()

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.conv1 = PointwiseConv3d(2 * config.z_dim, 2 * config.z_dim)
        self.conv2 = PointwiseConv3d(config.z_dim, config.z_dim)
        self.decoder = Decoder(config)
        self._hold_statistics(None)
        self.encode_tiling: Tiling | None = None
        self.decode_tiling: Tiling | None = None

    def _hold_statistics(self, device: torch.device | None) -> None:
        """Keep the latent statistics where the weights are, so that no chunk copies them there."""
        means = self.config.latents_mean or (0.0,) * self.config.z_dim
        stds = self.config.latents_std or (1.0,) * self.config.z_dim
        for name, values in (
            ("latents_mean", torch.tensor(means, dtype=torch.float32, device=device)),
            ("inverse_std", 1.0 / torch.tensor(stds, dtype=torch.float32, device=device)),
        ):
            self.register_buffer(name, values.view(-1, 1, 1, 1), persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._hold_statistics(self.conv2.weight.device)  # float32 whatever the weights become
        return self

    def reset_parameters(self, seed: int = 0) -> None:
        """Draw weights to train from: every residual branch starts at zero; equal seeds give equal weights."""
        initialise_for_training(self, seed)

    def encode(
        self,
        video: Tensor,
        *,
        drop_tail: bool = False,
        tiling: Tiling | None = None,
        latents_per_chunk: int | None = 1,
    ) -> Tensor:
        """Normalised latents (the distribution's mean) of a video.

        Raises RequestError for wrong shapes and for frame counts other than 1 + n * temporal_stride, unless
        ``drop_tail`` allows to leave out the frames after the last full group. Without patches and shortcuts (Wan 2.1)
        sizes need not be multiples of the spatial stride: they are rounded down level by level.
        """
        moments = self.encode_moments(video, drop_tail=drop_tail, tiling=tiling, latents_per_chunk=latents_per_chunk)
        return self._normalise(moments)

    def encode_moments(
        self,
        video: Tensor,
        *,
        drop_tail: bool = False,
        tiling: Tiling | None = None,
        latents_per_chunk: int | None = 1,
    ) -> Tensor:
        """Mean and log-variance [B, 2 * z_dim, T', h, w] before normalisation; arguments as in :meth:`encode`."""
        self._check_video(video)
        video = self._whole_groups(video, drop_tail)
        plan = self._encoding_plan(video, tiling)
        if plan is None:
            return self._encode_clip(video, latents_per_chunk)

        def run(_: tuple[int, int], rows: slice, columns: slice) -> Tensor:
            return self._encode_clip(self._pixels_of_tile(video, rows, columns), latents_per_chunk)

        return _assemble(plan, plan.regions(run), scale=1)

    def encode_chunk(self, video: Tensor, cache: EncoderCache, *, tiling: Tiling | None = None) -> Tensor:
        """Normalised latents of the next frames of a clip: 1 + n * temporal_stride first, n * temporal_stride later."""
        self._check_video(video)
        stride, frames = self.config.temporal_stride, video.shape[2]
        if frames % stride != (1 % stride if cache.is_first_chunk else 0):
            expected = f"1 + n * {stride}" if cache.is_first_chunk else f"n * {stride}"
            raise RequestError(f"this chunk of the clip needs {expected} frames, got {frames}")
        plan = self._encoding_plan(video, tiling)
        if plan is None:
            return self._normalise(self._encode_features(video, cache))

        def run(index: tuple[int, int], rows: slice, columns: slice) -> Tensor:
            return self._encode_features(self._pixels_of_tile(video, rows, columns), cache.tile(index))

        moments = _assemble(plan, plan.regions(run), scale=1)
        cache.finish_chunk()
        return self._normalise(moments)

    def decode(
        self,
        latents: Tensor,
        *,
        tiling: Tiling | None = None,
        clamp: bool = True,
        latents_per_chunk: int | None = 1,
    ) -> Tensor:
        """Video [B, 3, 1 + n * temporal_stride, H, W] of normalised latents, in [-1, 1] where ``clamp``."""
        self._check_latents(latents)
        plan = self._decoding_plan(latents, tiling)
        if plan is None:
            chunks = self.stream_decode(latents, clamp=clamp, latents_per_chunk=latents_per_chunk)
            return _concatenate(chunks, self._num_frames(latents))

        def run(_: tuple[int, int], rows: slice, columns: slice) -> Tensor:
            cache, tile = DecoderCache(), latents[..., rows, columns]
            chunks = (self._decode_features(chunk, cache) for chunk in _split(tile, latents_per_chunk))
            return _concatenate(chunks, self._num_frames(latents))

        return self._assemble_pixels(plan, plan.regions(run), clamp, (latents.shape[0], self._num_frames(latents)))

    def stream_decode(
        self,
        latents: Tensor,
        *,
        tiling: Tiling | None = None,
        clamp: bool = True,
        latents_per_chunk: int | None = 1,
        cache: DecoderCache | None = None,
    ) -> Iterator[Tensor]:
        """Yield the video of :meth:`decode` in pieces [B, 3, t, H, W], never holding the whole; 1 frame comes first.

        A ``cache`` goes on with the clip that it has seen. With ``tiling`` the caches of all tiles are held, about the
        untiled amount times the overlap.
        """
        self._check_latents(latents)
        state = DecoderCache() if cache is None else cache
        return (
            self.decode_chunk(chunk, state, tiling=tiling, clamp=clamp) for chunk in _split(latents, latents_per_chunk)
        )

    def decode_clip(self, latents: Tensor, cache: DecoderCache | None = None) -> Iterator[Tensor]:
        """The video of :meth:`stream_decode`; of tiles all at once without a ``cache``, which else holds those of all.

        Raises BackendError for numbers beyond the range of float16.
        """
        is_whole = self.decode_tiling is not None and cache is None
        chunks = iter([self.decode(latents)]) if is_whole else self.stream_decode(latents, cache=cache)
        for chunk in chunks:
            if self.conv2.weight.dtype is torch.float16 and not chunk.isfinite().all():
                raise BackendError(
                    "the autoencoder went beyond the range of float16; take --vae-dtype bfloat16 or float32"
                )
            yield from torch.split(chunk, 1 + self.config.temporal_stride, dim=2)

    def decode_chunk(
        self, latents: Tensor, cache: DecoderCache, *, tiling: Tiling | None = None, clamp: bool = True
    ) -> Tensor:
        """Video of the next latents of a clip; ``cache`` carries the clip on and is fresh at its start.

        t latents give t * temporal_stride frames; the clip's first latent gives one.
        """
        self._check_latents(latents)
        plan = self._decoding_plan(latents, tiling)
        if plan is None:
            return self._pixels(self._decode_features(latents, cache), clamp)

        def run(index: tuple[int, int], rows: slice, columns: slice) -> Tensor:
            return self._decode_features(latents[..., rows, columns], cache.tile(index))

        frames = latents.shape[2] * self.config.temporal_stride
        if cache.is_first_chunk:
            frames = self._num_frames(latents)
        video = self._assemble_pixels(plan, plan.regions(run), clamp, (latents.shape[0], frames))
        cache.finish_chunk()
        return video

    # Networks on one chunk.

    def _encode_clip(self, video: Tensor, latents_per_chunk: int | None) -> Tensor:
        cache, stride = EncoderCache(), self.config.temporal_stride
        total = 1 + (video.shape[2] - 1) // stride
        step = total if latents_per_chunk is None else latents_per_chunk
        starts = [0 if first == 0 else 1 + (first - 1) * stride for first in range(0, total, _positive(step))]
        stops = [*starts[1:], video.shape[2]]
        chunks = (
            self._encode_features(video[:, :, start:stop], cache) for start, stop in zip(starts, stops, strict=True)
        )
        return _concatenate(chunks, total)

    def _encode_features(self, video: Tensor, cache: FeatureCache) -> Tensor:
        pixels = patchify(video.to(self.conv1.weight.dtype), self.config.patch_size)
        moments: Tensor = self.conv1(self.encoder(pixels, cache))
        return moments.float()

    def _decode_features(self, latents: Tensor, cache: FeatureCache) -> Tensor:
        features = self._denormalise(latents).to(self.conv2.weight.dtype)
        decoded: Tensor = self.decoder(self.conv2(features), cache)
        return decoded.float()

    def _pixels(self, features: Tensor, clamp: bool) -> Tensor:
        video = unpatchify(features, self.config.patch_size)
        return video.clamp(-1.0, 1.0) if clamp else video

    # Latent statistics.

    def _normalise(self, moments: Tensor) -> Tensor:
        mean = moments.chunk(2, dim=1)[0]
        if self.config.latents_mean:
            mean = mean - self.get_buffer("latents_mean")
        if self.config.latents_std:
            mean = mean * self.get_buffer("inverse_std")
        return mean

    def _denormalise(self, latents: Tensor) -> Tensor:
        latents = latents.float()
        if self.config.latents_std:
            latents = latents / self.get_buffer("inverse_std")
        if self.config.latents_mean:
            latents = latents + self.get_buffer("latents_mean")
        return latents

    # Shapes and tiles.

    def _num_frames(self, latents: Tensor) -> int:
        return 1 + (latents.shape[2] - 1) * self.config.temporal_stride

    def _whole_groups(self, video: Tensor, drop_tail: bool) -> Tensor:
        stride, frames = self.config.temporal_stride, video.shape[2]
        below = 1 + (frames - 1) // stride * stride
        if below == frames or drop_tail:
            return video[:, :, :below]
        raise RequestError(
            f"num_frames must be {stride}n+1, got {frames}; nearest are {below} and {below + stride} "
            "(drop_tail=True leaves out the rest)"
        )

    def _check_video(self, video: Tensor) -> None:
        if video.ndim != 5 or video.shape[1] != 3 or not video.is_floating_point():
            raise RequestError(f"video must be float [B, 3, T, H, W] in [-1, 1], got {_described(video)}")
        if video.shape[0] == 0 or video.shape[2] == 0:
            raise RequestError(f"the video is empty: shape {tuple(video.shape)}")
        stride, (height, width) = self.config.spatial_stride, video.shape[-2:]
        if min(height, width) < stride:
            raise RequestError(f"height and width must be at least {stride}, got {height}x{width}")
        if (self.config.residual or self.config.patch_size > 1) and (height % stride or width % stride):
            raise RequestError(f"height and width must be multiples of {stride}, got {height}x{width}")

    def _check_latents(self, latents: Tensor) -> None:
        channels = self.config.z_dim
        if latents.ndim != 5 or latents.shape[1] != channels or not latents.is_floating_point():
            raise RequestError(f"latents must be float [B, {channels}, T, h, w], got {_described(latents)}")
        if latents.numel() == 0:
            raise RequestError(f"the latents are empty: shape {tuple(latents.shape)}")

    def _encoding_plan(self, video: Tensor, tiling: Tiling | None) -> TilePlan | None:
        strides = {"spatial_stride": self.config.spatial_stride, "patch_size": self.config.patch_size}
        tiling = tiling or self.encode_tiling
        return None if tiling is None else tiling.for_encoding(*video.shape[-2:], **strides)

    def _decoding_plan(self, latents: Tensor, tiling: Tiling | None) -> TilePlan | None:
        strides = {"spatial_stride": self.config.spatial_stride, "patch_size": self.config.patch_size}
        tiling = tiling or self.decode_tiling
        return None if tiling is None else tiling.for_decoding(*latents.shape[-2:], **strides)

    def _pixels_of_tile(self, video: Tensor, rows: slice, columns: slice) -> Tensor:
        patch = self.config.patch_size
        return video[..., rows.start * patch : rows.stop * patch, columns.start * patch : columns.stop * patch]

    def _assemble_pixels(
        self, plan: TilePlan, regions: Iterator[Region], clamp: bool, counts: tuple[int, int]
    ) -> Tensor:
        """The video of the tiles, ``counts`` of clips and of frames."""
        first = next(regions, None)
        if first is None:  # another process has them
            return self.get_buffer("latents_mean").new_empty((counts[0], 3, counts[1], 0, 0))
        parts = chain([first], regions)
        pixels = (Region(part.top, part.left, self._pixels(part.values, clamp)) for part in parts)
        return _assemble(plan, pixels, scale=self.config.patch_size)


def _assemble(plan: TilePlan, regions: Iterable[Region], *, scale: int) -> Tensor:
    """Put the regions together; ``scale`` is the pixels per unit of the plan's output."""
    out: Tensor | None = None
    for region in regions:
        height, width = region.values.shape[-2:]
        if out is None:
            shape = (*region.values.shape[:-2], plan.rows.out_total * scale, plan.columns.out_total * scale)
            out = region.values.new_empty(shape)
        top, left = region.top * scale, region.left * scale
        out[..., top : top + height, left : left + width] = region.values
    if out is None:
        raise RequestError("tiling: there is nothing to tile")
    return out


def _concatenate(chunks: Iterable[Tensor], total_frames: int) -> Tensor:
    """Join chunks along time, in one buffer, so that never two copies of the clip exist."""
    out: Tensor | None = None
    filled = 0
    for chunk in chunks:
        if out is None:
            out = chunk.new_empty((*chunk.shape[:2], total_frames, *chunk.shape[3:]))
        out[:, :, filled : filled + chunk.shape[2]] = chunk
        filled += chunk.shape[2]
    if out is None:
        raise RequestError("there are no frames to join")
    return out


def _split(latents: Tensor, latents_per_chunk: int | None) -> tuple[Tensor, ...]:
    size = latents.shape[2] if latents_per_chunk is None else latents_per_chunk
    return torch.split(latents, _positive(size), dim=2)


def _positive(latents_per_chunk: int) -> int:
    if latents_per_chunk < 1:
        raise RequestError(f"latents_per_chunk must be at least 1, got {latents_per_chunk}")
    return latents_per_chunk


def _described(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"
