"""Wan-Animate beside diffusers: the faces of a clip, its first forward with them, and a later one.

diffusers reads the faces again at every forward; ours reads them once a clip.
"""

from collections.abc import Callable
from typing import Any

import torch
from diffusers import WanAnimateTransformer3DModel
from torch import Tensor, nn

from tools.bench_peers import Settings, Sides, normal, outputs, ready, text_states
from wan_core.checkpoints import ANIMATE, load_model, read_weights
from wan_core.models import AnimateDiTConfig, AnimateInputs

FULL = AnimateDiTConfig(dim=768, ffn_dim=3072, num_heads=12, num_layers=10)
QUICK = AnimateDiTConfig(
    dim=96, ffn_dim=192, num_heads=2, num_layers=5, motion_encoder_channels=(8, 8, 16), motion_style_dim=32,
    motion_encoder_dim=32, face_encoder_hidden_dim=32,
)  # fmt: skip
LATENTS = {False: (16, 3, 30, 52), True: (16, 3, 8, 8)}
"""The reference and two latent frames, which five images of a face belong to."""

IMAGES = 5


def load_pair(settings: Settings, dtype: torch.dtype) -> tuple[AnimateDiTConfig, Any, nn.Module]:
    """The config, and ours and theirs on the same weights, each by its own loader."""
    config = QUICK if settings.quick else FULL
    folder = settings.folder / "animate"
    if not folder.exists() and ANIMATE.diffusers_config is not None:
        torch.manual_seed(0)
        network = WanAnimateTransformer3DModel.from_config(dict(ANIMATE.diffusers_config(config)))
        network.save_pretrained(folder, max_shard_size="100GB")
    source = read_weights(folder / "diffusion_pytorch_model.safetensors")
    ours = ready(load_model(config, source, family=ANIMATE, dtype=dtype, device=settings.device))
    theirs = WanAnimateTransformer3DModel.from_pretrained(folder, torch_dtype=dtype)
    return config, ours, theirs.to(settings.device).eval().requires_grad_(False)


def animate_forward(settings: Settings, dtype: torch.dtype, *, later: bool = False) -> Sides:
    """One forward; of ours a ``later`` one has the faces already."""
    config, ours, theirs = load_pair(settings, dtype)
    latents = normal(1, *LATENTS[settings.quick], seed=1, settings=settings, dtype=dtype)
    known = normal(1, 20, *latents.shape[2:], seed=2, settings=settings, dtype=dtype)
    poses = normal(1, 16, 2, *latents.shape[3:], seed=3, settings=settings, dtype=dtype)
    image = normal(1, 257, 1280, seed=4, settings=settings, dtype=dtype)
    faces, context = face_images(config, settings, dtype), text_states(5, settings, dtype)
    times = torch.tensor([500.0], device=settings.device)
    with torch.no_grad():
        tokens = ours.encode_face(faces)

    def our_forward() -> Tensor:
        given = AnimateInputs(
            context=context,
            image_context=image,
            channel_concat=known,
            pose_latents=poses,
            face_tokens=tokens if later else ours.encode_face(faces),
        )
        velocity: Tensor = ours(latents, times, given)
        return velocity

    def their_forward() -> Tensor:
        joined = torch.cat([latents, known], dim=1)
        velocity: Tensor = theirs(joined, times, context, image, poses, faces, return_dict=False)[0]
        return velocity

    return outputs(our_forward, their_forward, settings, dtype)


def animate_faces(settings: Settings) -> Sides:
    """The faces of a clip to tokens, float32."""
    dtype = torch.float32
    config, ours, theirs = load_pair(settings, dtype)
    faces = face_images(config, settings, dtype)
    encode_motion: Callable[[Tensor], Tensor] = theirs.motion_encoder  # type: ignore[assignment]

    def their_faces() -> Tensor:
        motion = encode_motion(faces[0].transpose(0, 1))
        tokens: Tensor = theirs.face_encoder(motion[None])  # type: ignore[operator]
        return tokens

    return outputs(lambda: ours.encode_face(faces)[:, 1:], their_faces, settings, dtype)


def face_images(config: AnimateDiTConfig, settings: Settings, dtype: torch.dtype) -> Tensor:
    """Images of the network's size, [1, 3, 5, S, S]."""
    size = config.face_size
    return normal(1, 3, IMAGES, size, size, seed=6, settings=settings, dtype=dtype).clamp(-1, 1)
