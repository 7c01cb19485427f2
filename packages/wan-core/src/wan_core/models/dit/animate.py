"""Character animation (Wan2.2-Animate-14B): a transformer that follows the poses and the face of a driving video.

Source: the released checkpoint and the report on Wan-Animate (arXiv 2509.14055). State-dict names are those of the
checkpoint; the code is our own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self, cast

from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from wan_core.errors import RequestError
from wan_core.models.dit.config import AnimateDiTConfig
from wan_core.models.dit.face_encoder import FaceAdapter, FaceTower
from wan_core.models.dit.inputs import DiTInputs
from wan_core.models.dit.layout import TokenSequence, change_by_frame
from wan_core.models.dit.model import WanDiT
from wan_core.models.dit.motion_encoder import MotionEncoder
from wan_core.models.dit.rope import Grid


@dataclass(frozen=True, kw_only=True)
class AnimateInputs(DiTInputs):
    """The conditions of a forward over F latent frames, the first of which is the reference image.

    ``channel_concat`` [B, 20, F, h, w]: 4 of what is known, 16 of its latents. ``image_context`` [B, 257, 1280]: the
    reference in CLIP's eyes. ``pose_latents`` [B, pose_dim, F - 1, h, w]: the poses, which the reference has none of.
    ``face_tokens`` [B, F, K, dim]: of :meth:`AnimateDiT.encode_face`.
    """

    pose_latents: Tensor
    face_tokens: Tensor

    def frames(self, start: int, stop: int) -> Self:
        """Raises TypeError: the first frame is no frame of the video, and a part of the others is no clip."""
        raise TypeError("a clip of Wan-Animate is not cut into latent frames")


class AnimateDiT(WanDiT):
    """Velocity of a clip's latent frames, which begin with a reference and follow the poses and face of another."""

    inputs_type: ClassVar[type[DiTInputs]] = AnimateInputs
    float32_modules: ClassVar[tuple[str, ...]] = (*WanDiT.float32_modules, "motion_encoder", "face_encoder")
    quantizable: ClassVar[tuple[str, ...]] = (*WanDiT.quantizable, "face_adapter")
    further_forwards: ClassVar[tuple[str, ...]] = ("encode_face",)

    def __init__(self, config: AnimateDiTConfig) -> None:
        super().__init__(config)
        self.animate = config
        patch = config.patch_size
        self.pose_patch_embedding = nn.Conv3d(config.pose_dim, config.dim, patch, patch)
        self.motion_encoder = MotionEncoder(config)
        self.face_encoder = FaceTower(config)
        self.face_adapter = FaceAdapter(config)

    def encode_face(self, pixels: Tensor) -> Tensor:
        """Face tokens [B, F, K, dim] float32 of a clip's face images [B, 3, T, S, S] in [-1, 1].

        ``T`` is ``4 * (F - 2) + 1``; the first latent frame, of the reference, has none: zeros. They are the same at
        every step of a clip. Raises RequestError for images of another size than the network's, or another count.
        """
        size = self.animate.face_size
        if pixels.ndim != 5 or pixels.shape[1] != 3 or pixels.shape[3:] != (size, size) or pixels.shape[2] % 4 != 1:
            raise RequestError(f"faces must be [B, 3, 4k + 1, {size}, {size}], got {list(pixels.shape)}")
        motion = self.motion_encoder(rearrange(pixels.to(self.device), "b c t h w -> (b t) c h w"))
        tokens: Tensor = self.face_encoder(motion.unflatten(0, (pixels.shape[0], -1)))
        return functional.pad(tokens, (0, 0, 0, 0, 1, 0))

    def embed_latents(self, latents: Tensor, inputs: DiTInputs, start: Grid = (0, 0, 0)) -> TokenSequence:
        """The tokens of the reference and of the video, these with their poses."""
        inputs = cast(AnimateInputs, inputs)
        sequence = super().embed_latents(latents, inputs, start)
        self._check(latents, inputs, sequence.grid)
        poses = self.pose_patch_embedding(inputs.pose_latents.to(self.dtype)).flatten(2).mT
        sequence.tokens[:, -poses.shape[1] :] += poses
        return sequence

    def after_block(self, index: int, tokens: Tensor, sequence: TokenSequence, inputs: DiTInputs) -> Tensor:
        """Let the tokens look at the face in their frame, where an adapter follows this block.

        A token sees that of its own frame alone, so that every process does it for the tokens that it has.
        """
        if not self.face_adapter.follows(index):
            return tokens
        face = cast(AnimateInputs, inputs).face_tokens.to(tokens.device)

        def look(by_frame: Tensor, frames: slice) -> Tensor:
            seen: Tensor = self.face_adapter(index, by_frame, face[:, frames].flatten(0, 1))
            return seen

        return change_by_frame(self.layout, sequence, tokens, look)

    def _check(self, latents: Tensor, inputs: AnimateInputs, grid: Grid) -> None:
        config, (batch, _, frames, *sides) = self.animate, latents.shape
        if frames < 2:
            raise RequestError(f"a clip has the reference and at least one latent frame, got {frames} in all")
        wanted = {
            "pose_latents": (batch, config.pose_dim, frames - 1, *sides),
            "face_tokens": (batch, grid[0], config.face_encoder_num_heads + 1, config.dim),
        }
        for name, shape in wanted.items():
            given = getattr(inputs, name)
            if tuple(given.shape) != shape:
                raise RequestError(f"{name} must be {list(shape)}, got {list(given.shape)}")
