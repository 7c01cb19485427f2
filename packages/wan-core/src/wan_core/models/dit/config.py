"""Dims of a Wan diffusion transformer, and of those between two images, with sound, and with a driving video."""

from __future__ import annotations

from dataclasses import dataclass

from wan_core.errors import ConfigError

_MAX_DIM = 65536
_MAX_LAYERS = 512
_MAX_PATCH = 16
_MAX_SCALES = 10
_WIDTHS = ("in_dim", "out_dim", "dim", "ffn_dim", "num_heads", "freq_dim", "text_dim", "text_len", "image_tokens")
_FACE_WIDTHS = (
    "pose_dim", "motion_style_dim", "motion_dim", "motion_encoder_dim", "face_encoder_hidden_dim",
    "face_encoder_num_heads", "inject_face_latents_blocks",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class WanDiTConfig:
    """Constructor arguments of a Wan DiT; the defaults are those that a published ``config.json`` leaves out.

    ``image_dim`` is the width of the CLIP states of Wan2.1 image-to-video, None for a model without that branch; the
    branch attends to the first ``image_tokens`` image tokens, further ones join the text.
    Raises ConfigError for dims that cannot work.
    """

    in_dim: int = 16
    out_dim: int = 16
    dim: int = 2048
    ffn_dim: int = 8192
    num_heads: int = 16
    num_layers: int = 32
    freq_dim: int = 256
    text_dim: int = 4096
    text_len: int = 512
    patch_size: tuple[int, int, int] = (1, 2, 2)
    qk_norm: bool = True
    cross_attn_norm: bool = True
    eps: float = 1e-6
    image_dim: int | None = None
    image_tokens: int = 257

    def __post_init__(self) -> None:
        for name in _WIDTHS:
            _check_whole(name, getattr(self, name), _MAX_DIM)
        _check_whole("num_layers", self.num_layers, _MAX_LAYERS)
        if self.image_dim is not None:
            _check_whole("image_dim", self.image_dim, _MAX_DIM)
        if not isinstance(self.patch_size, tuple | list) or len(self.patch_size) != 3:
            raise ConfigError(f"patch_size must be three numbers (frames, rows, columns), got {self.patch_size!r}")
        object.__setattr__(self, "patch_size", tuple(self.patch_size))  # JSON has lists
        for side in self.patch_size:
            _check_whole("patch_size", side, _MAX_PATCH)
        if self.dim % self.num_heads or self.head_dim % 2:
            raise ConfigError(f"dim / num_heads must be a whole even number, got {self.dim} / {self.num_heads}")
        if self.freq_dim % 2:
            raise ConfigError(f"freq_dim must be even, got {self.freq_dim}")
        for name in ("qk_norm", "cross_attn_norm"):
            _check_bool(name, getattr(self, name))
        if not isinstance(self.eps, float) or not 0 < self.eps < 1:
            raise ConfigError(f"eps must be between 0 and 1, got {self.eps!r}")

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.dim // self.num_heads


@dataclass(frozen=True, kw_only=True)
class FLF2VConfig(WanDiTConfig):
    """Dims of a first-last-frame transformer: all CLIP tokens of both images go through the image branch."""

    in_dim: int = 36
    image_dim: int | None = 1280
    image_tokens: int = 514


@dataclass(frozen=True, kw_only=True)
class S2VConfig(WanDiTConfig):
    """Dims of a speech-to-video transformer; names and defaults are those of the released ``config.json``.

    ``audio_layers`` states of the sound of width ``audio_dim`` become ``num_audio_token`` tokens a latent frame, which
    the blocks ``audio_inject_layers`` (rising) are followed by; with ``enable_adain`` a norm follows the sound, too.
    ``cond_dim``: channels of the pose. ``zero_timestep``: given frames stand at timestep 0. ``enable_framepack``: the
    history is packed, the older the coarser; what ``last_motion`` leaves out of it is zeroed (``padd``) or has no
    tokens (``drop``), and without ``add_last_motion`` the newer part always is. ``zero_init``: what it adds to a
    network without sound begins at zero. Raises ConfigError for dims that cannot work.
    """

    num_layers: int = 40
    cond_dim: int = 16
    audio_dim: int = 1024
    audio_layers: int = 25
    num_audio_token: int = 4
    enable_adain: bool = True
    adain_mode: str = "attn_norm"
    audio_inject_layers: tuple[int, ...] = (0, 4, 8, 12, 16, 20, 24, 27, 30, 33, 36, 39)
    zero_init: bool = True
    zero_timestep: bool = True
    add_last_motion: bool = True
    enable_framepack: bool = True
    framepack_drop_mode: str = "padd"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("cond_dim", "audio_dim", "audio_layers", "num_audio_token"):
            _check_whole(name, getattr(self, name), _MAX_DIM)
        for name in ("enable_adain", "zero_init", "zero_timestep", "add_last_motion", "enable_framepack"):
            _check_bool(name, getattr(self, name))
        if self.dim % 4:
            raise ConfigError(f"dim must be a multiple of 4 for the encoder of sound, got {self.dim}")
        layers = self.audio_inject_layers
        if not isinstance(layers, tuple | list) or not all(type(each) is int for each in layers):
            raise ConfigError(f"audio_inject_layers must be numbers of blocks, got {layers!r}")
        object.__setattr__(self, "audio_inject_layers", tuple(layers))  # JSON has lists
        if list(layers) != sorted({*layers}) or not set(layers) <= set(range(self.num_layers)):
            raise ConfigError(f"audio_inject_layers must rise within 0 to {self.num_layers - 1}, got {list(layers)}")
        if self.adain_mode != "attn_norm":
            raise ConfigError(f"adain_mode must be attn_norm, got {self.adain_mode!r}")
        if self.framepack_drop_mode not in ("padd", "drop"):
            raise ConfigError(f"framepack_drop_mode must be padd or drop, got {self.framepack_drop_mode!r}")


@dataclass(frozen=True, kw_only=True)
class AnimateDiTConfig(WanDiTConfig):
    """Dims of a transformer that a driving video moves; defaults are those of the release, whose constants they are.

    ``pose_dim``: channels of the pose latents. ``motion_encoder_channels``: widths of the encoder of face images, from
    the whole image down to 4 x 4, each half the side of the one before: eight are 512 pixels. It makes a vector of
    ``motion_style_dim`` numbers, then ``motion_dim`` coefficients of directions in ``motion_encoder_dim`` dimensions.
    These become ``face_encoder_num_heads`` tokens a latent frame in convolutions of width ``face_encoder_hidden_dim``;
    every ``inject_face_latents_blocks``-th block, from the first on, is followed by a look at them.
    Raises ConfigError for dims that cannot work.
    """

    in_dim: int = 36
    num_layers: int = 40
    image_dim: int | None = 1280
    pose_dim: int = 16
    motion_encoder_channels: tuple[int, ...] = (32, 64, 128, 256, 512, 512, 512, 512)
    motion_style_dim: int = 512
    motion_dim: int = 20
    motion_encoder_dim: int = 512
    face_encoder_hidden_dim: int = 1024
    face_encoder_num_heads: int = 4
    inject_face_latents_blocks: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        channels = self.motion_encoder_channels
        if not isinstance(channels, tuple | list) or not 1 <= len(channels) <= _MAX_SCALES:
            raise ConfigError(f"motion_encoder_channels must be 1 to {_MAX_SCALES} widths, got {channels!r}")
        object.__setattr__(self, "motion_encoder_channels", tuple(channels))  # JSON has lists
        for width in channels:
            _check_whole("motion_encoder_channels", width, _MAX_DIM)
        for name in _FACE_WIDTHS:
            _check_whole(name, getattr(self, name), _MAX_DIM)
        if self.motion_dim > self.motion_encoder_dim:
            raise ConfigError(
                f"motion_dim must be at most motion_encoder_dim: {self.motion_dim} directions in "
                f"{self.motion_encoder_dim} dimensions cannot be at right angles"
            )
        if self.num_layers % self.inject_face_latents_blocks:
            raise ConfigError(
                f"num_layers must be a multiple of inject_face_latents_blocks, got {self.num_layers} and "
                f"{self.inject_face_latents_blocks}"
            )
        if self.patch_size[0] != 1:
            raise ConfigError(f"patches must be one frame deep here, got patch_size {self.patch_size}")

    @property
    def face_size(self) -> int:
        """Height and width of the face images, in pixels."""
        return 4 << (len(self.motion_encoder_channels) - 1)


def _check_bool(name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise ConfigError(f"{name} must be true or false, got {value!r}")


def _check_whole(name: str, value: object, largest: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= largest:
        raise ConfigError(f"{name} must be a whole number from 1 to {largest}, got {value!r}")
