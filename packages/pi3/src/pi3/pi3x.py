"""Pi3X: Pi3 with smooth convolutional heads, a metric scale, and optional known geometry.

After the Pi3X model of the Pi3 reference project (github.com/yyfz/Pi3, arXiv:2507.13347); the code is our own.
Parameter names are those of the published weights.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from pi3.camera import apply_transform, rigid_transform
from pi3.conditions import Conditions, PreparedConditions
from pi3.config import Pi3XConfig
from pi3.conv_head import ConvHead
from pi3.dinov2.layers import PatchEmbed
from pi3.dinov2.vit import VisionTransformer
from pi3.heads import CrossDecoder, points_of_slopes
from pi3.model import DECODER_LAYER_SCALE, Injection, Pi3, Pi3Latents, Pi3Output, in_chunks
from pi3.prope import CameraPositions, PoseInjection
from pi3.rope2d import RopeTable
from wan_core import RequestError

MAX_LOG_DEPTH = 15.0
CONDITION_MODULES = ("depth_encoder", "depth_emb", "ray_embed", "pose_inject_blk")
"""Parameters that a Pi3X without conditions lacks; a file may hold them all the same."""


@dataclass(frozen=True, kw_only=True)
class Pi3XLatents(Pi3Latents):
    """Latents of Pi3X; ``metric_tokens`` [B, C] hold the scale of each set."""

    metric_tokens: Tensor


@dataclass(frozen=True, kw_only=True)
class Pi3XOutput(Pi3Output):
    """Geometry in metres. ``rays`` [B, N, H, W, 3] are unit vectors in the camera frame, ``metric`` [B] the scale that
    points, local points and translations have been multiplied by."""

    rays: Tensor
    metric: Tensor


class Pi3X(Pi3):
    """Images, and what is known about them, to geometry in metres."""

    float32_modules = (*Pi3.float32_modules, "metric_head")
    config: Pi3XConfig

    def __init__(self, config: Pi3XConfig) -> None:
        super().__init__(config)
        dim = config.encoder.dim
        self.metric_token = nn.Parameter(torch.randn(1, 1, 2 * dim))
        self.metric_decoder = CrossDecoder(
            2 * dim,
            config.metric_dim,
            num_layers=config.metric_layers,
            num_heads=config.metric_heads,
            mlp_ratio=config.mlp_ratio,
        )
        self.metric_head = nn.Linear(config.metric_dim, 1)
        if config.multimodal:
            self._build_conditions(config)

    def _build_dense_heads(self) -> None:
        dims, patch = self.config.upsample_dims, self.config.patch_size
        self.point_head = ConvHead(self.config.head_dim, dims, (2, 1), patch)
        self.conf_head = ConvHead(self.config.head_dim, dims, (1,), patch)

    def _build_conditions(self, config: Pi3XConfig) -> None:
        dim = config.encoder.dim
        self.depth_encoder = VisionTransformer(replace(config.encoder, in_channels=2))
        self.depth_emb = nn.Parameter(torch.zeros(1, 1, dim))
        self.ray_embed = PatchEmbed(2, dim, config.patch_size)
        for parameter in self.ray_embed.parameters():
            nn.init.zeros_(parameter)
        self.pose_inject_blk = nn.ModuleList(
            PoseInjection(dim, config.decoder_heads, config.mlp_ratio, DECODER_LAYER_SCALE) for _ in config.inject_after
        )

    def forward(self, images: Tensor, conditions: Conditions | None = None) -> Pi3XOutput:
        """The geometry of images [B, N, 3, H, W] in [0, 1], given whatever is known.

        Raises RequestError for shapes that do not fit, and for conditions on a model built without them.
        """
        return self.decode(self.encode(images, conditions))

    def encode(self, images: Tensor, conditions: Conditions | None = None) -> Pi3XLatents:
        """The first half: everything up to the heads. Shapes and errors as in :meth:`forward`."""
        self.check_images(images)
        if conditions is not None and not self.config.multimodal:
            raise RequestError("this Pi3X takes no conditions; build it with multimodal=True and load its full weights")
        patches, inject = self.encode_views(images), None
        if conditions is not None:
            with torch.autocast(images.device.type, enabled=False):
                prepared = PreparedConditions.of(conditions, images)
            patches = patches + self._embed_conditions(prepared).to(patches.dtype)
            inject = self._pose_injection(prepared, images)
        hidden = self.mix_views(patches, images, inject)
        latents = self.decode_tokens(hidden, images)
        return Pi3XLatents(**vars(latents), metric_tokens=self._metric_tokens(hidden, images))

    def _embed_conditions(self, prepared: PreparedConditions) -> Tensor:
        """What depth and rays add to the patch tokens, [B * N, h * w, C]."""
        dtype = self.depth_emb.dtype
        added = self.depth_emb.new_zeros(())
        if bool(prepared.ray_mask.any()):
            slopes = prepared.slopes.flatten(0, 1).permute(0, 3, 1, 2)
            embedded = self.ray_embed(slopes.to(dtype))
            added = added + torch.where(prepared.ray_mask.flatten()[:, None, None], embedded, 0.0)
        if bool(prepared.depth_mask.any()):
            depths = prepared.depths.flatten(0, 1)
            channels = torch.stack([depths, (depths > 0).to(depths.dtype)], dim=1)
            embedded = in_chunks(lambda part: self.depth_encoder(part.to(dtype)).patches, channels) + self.depth_emb
            added = added + torch.where(prepared.depth_mask.flatten()[:, None, None], embedded, 0.0)
        return added

    def _pose_injection(self, prepared: PreparedConditions, images: Tensor) -> Injection | None:
        """Adds known poses to the patch tokens after some of the decoder's blocks."""
        if not bool(prepared.pose_mask.any()):
            return None
        patch, config = self.config.patch_size, self.config
        head_dim = config.encoder.dim // config.decoder_heads
        cameras = CameraPositions.of(prepared.poses, images.shape[-2] // patch, images.shape[-1] // patch, head_dim)
        blocks = dict(zip(config.inject_after, self.pose_inject_blk, strict=True))
        first, mask = config.num_registers, prepared.pose_mask

        def inject(index: int, tokens: Tensor) -> Tensor:
            if index not in blocks:
                return tokens
            patches = torch.unflatten(tokens[:, first:], 0, mask.shape)
            added = blocks[index](patches, cameras, mask).flatten(0, 1)
            return torch.cat([tokens[:, :first], patches.flatten(0, 1) + added], dim=1)

        return inject

    def _metric_tokens(self, hidden: Tensor, images: Tensor) -> Tensor:
        batch, count = images.shape[:2]
        rope = self.view_rope(images, self.config.metric_dim // self.config.metric_heads)
        origin = RopeTable(torch.ones_like(rope.cos[:1]), torch.zeros_like(rope.sin[:1]))
        queries = self.metric_token.expand(batch, -1, -1).to(hidden.dtype)
        tokens: Tensor = self.metric_decoder(
            queries, hidden.reshape(batch, -1, hidden.shape[-1]), origin, rope.repeat(count)
        )
        return tokens[:, 0]

    def decode(self, latents: Pi3Latents) -> Pi3XOutput:
        """The second half: only the heads, in float32 whatever surrounds them. Takes :class:`Pi3XLatents`."""
        if not isinstance(latents, Pi3XLatents):
            raise RequestError("Pi3X decodes the latents of a Pi3X; these are of a Pi3 and have no metric scale")
        with torch.autocast(latents.hidden.device.type, enabled=False):
            raw, conf, poses = self.run_heads(latents)
            metric = self.metric_head(latents.metric_tokens.float())[:, 0].exp()
            slopes, log_depth = raw[..., :2], raw[..., 2:]
            local = points_of_slopes(slopes, log_depth.clamp(max=MAX_LOG_DEPTH)) * metric[:, None, None, None, None]
            poses = rigid_transform(poses[..., :3, :3], poses[..., :3, 3] * metric[:, None, None])
            rays = functional.normalize(torch.cat([slopes, torch.ones_like(log_depth)], dim=-1), dim=-1)
            return Pi3XOutput(
                points=apply_transform(poses[:, :, None, None], local),
                local_points=local,
                conf=conf,
                camera_poses=poses,
                rays=rays,
                metric=metric,
            )
