"""Pi3: point maps, confidence and camera poses of unordered views, no view being the reference.

After Wang et al. 2025, "Pi3: Permutation-Equivariant Visual Geometry Learning" (arXiv:2507.13347) and its reference
project (github.com/yyfz/Pi3); the code is our own. Parameter names are those of the published weights.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from pi3.blocks import Block
from pi3.camera import CameraHead, apply_transform
from pi3.config import Pi3Config
from pi3.dinov2.vit import VisionTransformer
from pi3.heads import LinearHead, TokenDecoder, points_of_slopes
from pi3.rope2d import RopeTable, grid_positions, rope_table
from wan_core import RequestError

IMAGE_MEAN = (0.485, 0.456, 0.406)
IMAGE_STD = (0.229, 0.224, 0.225)
DECODER_LAYER_SCALE = 0.01
VIEWS_AT_ONCE = 16
"""Views per pass through the parts that treat each view alone, when no gradient is kept; bounds the memory."""

Injection = Callable[[int, Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class Pi3Latents:
    """What the network knows about the views before the heads: everything :meth:`Pi3.decode` needs.

    Token tensors are [B * N, L, C] with L = registers + h * w, registers first. ``hidden`` joins the last block within
    views and the last over all views (C = twice the width); the other three are the decoded tokens of each head.
    ``height`` and ``width`` are in pixels.
    """

    hidden: Tensor
    point_tokens: Tensor
    conf_tokens: Tensor
    camera_tokens: Tensor
    batch_size: int
    num_views: int
    height: int
    width: int
    patch_size: int
    num_registers: int

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return self.height // self.patch_size, self.width // self.patch_size

    @property
    def positions(self) -> Tensor:
        """(row, column) of every token, int64 [B * N, L, 2]; registers at 0, patches from 1."""
        one = grid_positions(*self.grid, self.num_registers, self.hidden.device)
        return one.expand(self.batch_size * self.num_views, -1, -1)

    @property
    def patch_hidden(self) -> Tensor:
        """``hidden`` without registers, [B, N, h * w, C]."""
        return torch.unflatten(self.hidden[:, self.num_registers :], 0, (self.batch_size, self.num_views))


@dataclass(frozen=True, kw_only=True)
class Pi3Output:
    """The geometry of B sets of N views of H x W pixels, defined up to one similarity transform per set.

    ``points`` [B, N, H, W, 3] in the common frame, ``local_points`` the same in each camera's frame, ``conf``
    [B, N, H, W, 1] logits (``sigmoid`` gives the probability), ``camera_poses`` [B, N, 4, 4] camera-to-world.
    """

    points: Tensor
    local_points: Tensor
    conf: Tensor
    camera_poses: Tensor

    @property
    def depth(self) -> Tensor:
        """Distance along the optical axis, [B, N, H, W]."""
        return self.local_points[..., 2]


class Pi3(nn.Module):
    """Images to geometry. It computes on the device and in the dtype of its weights; heads stay in float32."""

    float32_modules: tuple[str, ...] = ("point_head", "conf_head", "camera_head", "image_mean", "image_std")
    image_mean: Tensor
    image_std: Tensor

    def __init__(self, config: Pi3Config) -> None:
        super().__init__()
        self.config = config
        dim = config.encoder.dim
        self.encoder = VisionTransformer(config.encoder)
        self.register_token = nn.Parameter(torch.randn(1, 1, config.num_registers, dim) * 1e-6)
        self.decoder = nn.ModuleList(
            Block(dim, config.decoder_heads, config.mlp_ratio, qk_norm=True, layer_scale=DECODER_LAYER_SCALE)
            for _ in range(config.decoder_layers)
        )
        self.point_decoder = self._token_decoder(config.head_dim)
        self.conf_decoder = self._token_decoder(config.head_dim)
        self.camera_decoder = self._token_decoder(config.camera_dim)
        self.camera_head = CameraHead(config.camera_dim)
        self._build_dense_heads()
        self.register_buffer("image_mean", torch.tensor(IMAGE_MEAN).reshape(1, 3, 1, 1))
        self.register_buffer("image_std", torch.tensor(IMAGE_STD).reshape(1, 3, 1, 1))

    def _token_decoder(self, out_dim: int) -> TokenDecoder:
        config = self.config
        return TokenDecoder(
            2 * config.encoder.dim,
            config.head_dim,
            out_dim,
            num_layers=config.head_layers,
            num_heads=config.head_heads,
            mlp_ratio=config.mlp_ratio,
        )

    def _build_dense_heads(self) -> None:
        self.point_head: nn.Module = LinearHead(self.config.head_dim, 3, self.config.patch_size)
        self.conf_head: nn.Module = LinearHead(self.config.head_dim, 1, self.config.patch_size)

    def forward(self, images: Tensor) -> Pi3Output:
        """The geometry of images [B, N, 3, H, W] in [0, 1]; H and W are multiples of the patch size.

        Raises RequestError for images of another shape.
        """
        return self.decode(self.encode(images))

    def encode(self, images: Tensor) -> Pi3Latents:
        """The first half: everything up to the heads. Shapes and errors as in :meth:`forward`."""
        self.check_images(images)
        patches = self.encode_views(images)
        hidden = self.mix_views(patches, images)
        return self.decode_tokens(hidden, images)

    def check_images(self, images: Tensor) -> None:
        """Raise RequestError unless images are floats [B, N, 3, H, W] of whole patches."""
        patch = self.config.patch_size
        if images.ndim != 5 or images.shape[2] != 3 or 0 in images.shape:
            raise RequestError(f"images must be [B, N, 3, H, W] with at least one view, got {list(images.shape)}")
        if not images.is_floating_point():
            raise RequestError(f"images must be floats from 0 to 1, got {images.dtype}")
        height, width = images.shape[-2:]
        if height % patch or width % patch:
            raise RequestError(f"image height and width must be multiples of {patch}, got {height}x{width}")

    def encode_views(self, images: Tensor) -> Tensor:
        """Patch tokens [B * N, h * w, C] of images [B, N, 3, H, W], each view alone."""

        def encode(views: Tensor) -> Tensor:
            normalised = (views - self.image_mean) / self.image_std
            patches: Tensor = self.encoder(normalised.to(self.register_token.dtype)).patches
            return patches

        return in_chunks(encode, images.flatten(0, 1))

    def view_rope(self, images: Tensor, head_dim: int) -> RopeTable:
        """Rotary table of one view's tokens for heads of ``head_dim``."""
        patch = self.config.patch_size
        height, width = images.shape[-2] // patch, images.shape[-1] // patch
        positions = grid_positions(height, width, self.config.num_registers, images.device)
        return rope_table(positions, head_dim, self.config.rope_base)

    def mix_views(self, patches: Tensor, images: Tensor, inject: Injection | None = None) -> Tensor:
        """Blocks within each view and over all views, in turn: [B * N, L, 2 C] from patches [B * N, h * w, C].

        ``inject(index, tokens)`` may change the tokens [B * N, L, C] after block ``index``. The result joins the last
        two blocks' outputs.
        """
        batch, count = images.shape[:2]
        registers = self.register_token[0].expand(len(patches), -1, -1).to(patches.dtype)
        tokens = torch.cat([registers, patches], dim=1)
        within = self.view_rope(images, self.config.encoder.dim // self.config.decoder_heads)
        across = within.repeat(count)
        previous = tokens
        for index, block in enumerate(self.decoder):
            previous = tokens
            if index % 2 == 0:
                tokens = block(tokens, within)
            else:
                joined = block(tokens.reshape(batch, -1, tokens.shape[-1]), across)
                tokens = joined.reshape(tokens.shape)
            if inject is not None:
                tokens = inject(index, tokens)
        return torch.cat([previous, tokens], dim=-1)

    def decode_tokens(self, hidden: Tensor, images: Tensor) -> Pi3Latents:
        """What the heads need of ``hidden`` [B * N, L, 2 C], registers first; of ``images`` only the shape counts."""
        rope = self.view_rope(images, self.config.head_dim // self.config.head_heads)
        decoders = (self.point_decoder, self.conf_decoder, self.camera_decoder)
        point, conf, camera = (in_chunks(partial(decoder, rope=rope), hidden) for decoder in decoders)
        batch, count, _, height, width = images.shape
        return Pi3Latents(
            hidden=hidden,
            point_tokens=point,
            conf_tokens=conf,
            camera_tokens=camera,
            batch_size=batch,
            num_views=count,
            height=height,
            width=width,
            patch_size=self.config.patch_size,
            num_registers=self.config.num_registers,
        )

    def decode(self, latents: Pi3Latents) -> Pi3Output:
        """The second half: only the heads, in float32 whatever surrounds them."""
        with torch.autocast(latents.hidden.device.type, enabled=False):
            raw, conf, poses = self.run_heads(latents)
            local = points_of_slopes(raw[..., :2], raw[..., 2:])
            points = apply_transform(poses[:, :, None, None], local)
        return Pi3Output(points=points, local_points=local, conf=conf, camera_poses=poses)

    def run_heads(self, latents: Pi3Latents) -> tuple[Tensor, Tensor, Tensor]:
        """Slopes and log depth [B, N, H, W, 3], confidence [B, N, H, W, 1], camera-to-world matrices [B, N, 4, 4]."""
        rows, columns = latents.grid
        point, conf, camera = (
            tokens[:, latents.num_registers :]
            for tokens in (latents.point_tokens, latents.conf_tokens, latents.camera_tokens)
        )
        found = (
            in_chunks(lambda part: self.point_head(part.float(), rows, columns), point),
            in_chunks(lambda part: self.conf_head(part.float(), rows, columns), conf),
            self.camera_head(camera.float()),
        )
        raw, confidence, poses = (torch.unflatten(each, 0, (latents.batch_size, latents.num_views)) for each in found)
        return raw, confidence, poses


def in_chunks(function: Callable[[Tensor], Tensor], views: Tensor, size: int = VIEWS_AT_ONCE) -> Tensor:
    """``function`` of all views, a few at a time unless gradients are recorded; the same values in less memory."""
    if torch.is_grad_enabled() or len(views) <= size:
        return function(views)
    return torch.cat([function(views[start : start + size]) for start in range(0, len(views), size)])
