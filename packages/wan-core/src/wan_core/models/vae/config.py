"""Dims of the Wan video autoencoders, and the two released models as values."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from math import prod

from wan_core.errors import ConfigError

WAN21_LATENTS_MEAN = (
    -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
    0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921,
)  # fmt: skip
WAN21_LATENTS_STD = (
    2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
    3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160,
)  # fmt: skip
WAN22_LATENTS_MEAN = (
    -0.2289, -0.0052, -0.1323, -0.2339, -0.2799, 0.0174, 0.1838, 0.1557,
    -0.1382, 0.0542, 0.2813, 0.0891, 0.1570, -0.0098, 0.0375, -0.1825,
    -0.2246, -0.1207, -0.0698, 0.5109, 0.2665, -0.2108, -0.2158, 0.2502,
    -0.2055, -0.0322, 0.1109, 0.1567, -0.0729, 0.0899, -0.2799, -0.1230,
    -0.0313, -0.1649, 0.0117, 0.0723, -0.2839, -0.2083, -0.0520, 0.3748,
    0.0152, 0.1957, 0.1433, -0.2944, 0.3573, -0.0548, -0.1681, -0.0667,
)  # fmt: skip
WAN22_LATENTS_STD = (
    0.4765, 1.0364, 0.4514, 1.1677, 0.5313, 0.4990, 0.4818, 0.5013,
    0.8158, 1.0344, 0.5894, 1.0901, 0.6885, 0.6165, 0.8454, 0.4978,
    0.5759, 0.3523, 0.7135, 0.6804, 0.5833, 1.4146, 0.8986, 0.5659,
    0.7069, 0.5338, 0.4889, 0.4917, 0.4069, 0.4999, 0.6866, 0.4093,
    0.5709, 0.6065, 0.6415, 0.4944, 0.5726, 1.2042, 0.5458, 1.6887,
    0.3971, 1.0600, 0.3943, 0.5537, 0.5444, 0.4089, 0.7468, 0.7744,
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class VAEConfig:
    """Constructor arguments of a Wan video autoencoder.

    ``dim`` and ``dec_dim`` are the channel counts of the encoder's first and the decoder's last level (``dec_dim`` None
    means ``dim``); level ``i`` is ``dim_mult[i]`` times as wide. Between two levels space halves, and time too where
    ``temporal_downsample`` says so. ``patch_size`` 2 folds 2x2 pixels into channels first. ``residual`` adds the
    parameter-free averaging and duplicating shortcuts of Wan 2.2. ``latents_mean`` and ``latents_std`` normalise the
    ``z_dim`` latent channels (empty: mean 0, std 1). Raises ConfigError for dims that do not fit together.
    """

    dim: int = 96
    dec_dim: int | None = None
    z_dim: int = 16
    dim_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    temporal_downsample: tuple[bool, ...] = (False, True, True)
    patch_size: int = 1
    residual: bool = False
    attn_scales: tuple[float, ...] = ()
    dropout: float = 0.0
    latents_mean: tuple[float, ...] = ()
    latents_std: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        for name in ("dim_mult", "temporal_downsample", "attn_scales", "latents_mean", "latents_std"):
            object.__setattr__(self, name, tuple(getattr(self, name)))  # lists come from JSON configurations
        self._check_counts()
        self._check_latent_statistics()
        if self.residual:
            self._check_shortcuts()
        elif any(width % 2 for width in self.decoder_dims[1:-1]):
            raise ConfigError(f"decoder widths {self.decoder_dims} must be even: each upsampling halves the channels")

    def _check_counts(self) -> None:
        if self.attn_scales:
            raise ConfigError(f"attn_scales must be empty, got {self.attn_scales}; no released Wan VAE uses it")
        if len(self.dim_mult) < 2:
            raise ConfigError(f"dim_mult needs at least 2 levels, got {self.dim_mult}")
        if len(self.temporal_downsample) != len(self.dim_mult) - 1:
            raise ConfigError(
                f"temporal_downsample needs one flag between two levels: {len(self.dim_mult) - 1} for dim_mult "
                f"{self.dim_mult}, got {len(self.temporal_downsample)}"
            )
        if self.patch_size not in (1, 2):
            raise ConfigError(f"patch_size must be 1 or 2, got {self.patch_size}")
        counts = (self.dim, self.decoder_dim, self.z_dim, self.num_res_blocks, *self.dim_mult)
        if min(counts) < 1:
            raise ConfigError(f"dim, dec_dim, z_dim, num_res_blocks and dim_mult must be positive, got {counts}")
        if not 0.0 <= self.dropout < 1.0:
            raise ConfigError(f"dropout must be in [0, 1), got {self.dropout}")

    def _check_latent_statistics(self) -> None:
        for name, values in (("latents_mean", self.latents_mean), ("latents_std", self.latents_std)):
            if values and len(values) != self.z_dim:
                raise ConfigError(f"{name} needs one value per latent channel: {self.z_dim}, got {len(values)}")
        if any(std <= 0 for std in self.latents_std):
            raise ConfigError(f"latents_std must be positive, got {min(self.latents_std)}")

    def _check_shortcuts(self) -> None:
        """The 2.2 shortcuts regroup channels, so the widths on both sides must divide."""
        last = len(self.dim_mult) - 1
        for level, (width, out) in enumerate(pairwise(self.encoder_dims)):
            factor = 1 if level == last else 8 if self.temporal_downsample[level] else 4
            if width * factor % out:
                raise ConfigError(f"encoder level {level}: {width} x {factor} channels cannot be averaged to {out}")
        flags = self.temporal_downsample[::-1]
        for level, (width, out) in enumerate(pairwise(self.decoder_dims[:-1])):
            if out * (8 if flags[level] else 4) % width:
                raise ConfigError(f"decoder level {level}: {width} channels cannot be duplicated to {out}")

    @property
    def decoder_dim(self) -> int:
        """Channels of the decoder's last level."""
        return self.dim if self.dec_dim is None else self.dec_dim

    @property
    def encoder_dims(self) -> tuple[int, ...]:
        """Channels after the encoder's first conv and after each of its levels."""
        return tuple(self.dim * mult for mult in (1, *self.dim_mult))

    @property
    def decoder_dims(self) -> tuple[int, ...]:
        """Channels after the decoder's first conv and after each of its levels (before the 2.1 halving)."""
        return tuple(self.decoder_dim * mult for mult in (self.dim_mult[-1], *reversed(self.dim_mult)))

    @property
    def image_channels(self) -> int:
        """Channels of the encoder's input and the decoder's output: RGB times the folded patch."""
        return 3 * self.patch_size**2

    @property
    def temporal_stride(self) -> int:
        """Frames per latent frame, the first one aside: ``n + 1`` latents hold ``1 + n * temporal_stride`` frames."""
        return prod(2 for flag in self.temporal_downsample if flag)

    @property
    def settled_latents(self) -> int:
        """So many latent frames differ of a clip whose frames after the first are alike; later ones equal the last.

        The encoder's kernels reach back two frames each, of the rate of their level: 112 pixel frames in the released
        models, so that latent frame 29, the 30th, is the first that sees nothing of the first frame.
        """
        reach, rate, convs = 2, 1, 2 * self.num_res_blocks
        for is_halved in (*self.temporal_downsample, False):
            reach += 2 * rate * (convs + is_halved)
            rate *= 1 + is_halved
        reach += 2 * rate * (4 + 1)  # two blocks in the middle, and the head
        return reach // self.temporal_stride + 2

    @property
    def spatial_stride(self) -> int:
        """Pixels per latent along height and width."""
        return int(self.patch_size * 2 ** (len(self.dim_mult) - 1))


WAN21_VAE = VAEConfig(latents_mean=WAN21_LATENTS_MEAN, latents_std=WAN21_LATENTS_STD)
WAN22_VAE = VAEConfig(
    dim=160,
    dec_dim=256,
    z_dim=48,
    patch_size=2,
    residual=True,
    latents_mean=WAN22_LATENTS_MEAN,
    latents_std=WAN22_LATENTS_STD,
)
