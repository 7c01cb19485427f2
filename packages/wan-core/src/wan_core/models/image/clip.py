"""The CLIP image tower whose states condition Wan 2.1 image-to-video.

Paper: Radford et al., "Learning Transferable Visual Models From Natural Language Supervision" (2021); the weights are
open_clip's ViT-H/14 with the XLM-RoBERTa text half, as published with Wan 2.1. The network is transformers'
CLIPVisionModel; preprocessing and the choice of states are our own code.
"""

import inspect
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from wan_core.models.image.config import CLIPConfig

# Channel statistics of CLIP's training images in [0, 1] (Radford et al., released code).
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def clip_pixels(images: Tensor, image_size: int) -> Tensor:
    """Images [B, 3, H, W] in [-1, 1] as CLIP sees them: [B, 3, image_size, image_size], normalised, float32.

    Bicubic stretch without antialiasing; the aspect ratio is not kept. This is how Wan was trained.
    """
    size = (image_size, image_size)
    stretched = functional.interpolate(images.float(), size=size, mode="bicubic", align_corners=False)
    mean, std = (stretched.new_tensor(values).view(3, 1, 1) for values in (CLIP_MEAN, CLIP_STD))
    return (stretched / 2 + 0.5 - mean) / std


class CLIPVision(nn.Module):
    """Images to patch states, in the dtype of the parameters. State-dict names are those of transformers 5."""

    float32_modules: tuple[str, ...] = ()

    def __init__(self, config: CLIPConfig) -> None:
        super().__init__()
        self.config = config
        tower = _transformers_tower(config)
        self.embeddings = tower.embeddings
        self.pre_layrnorm = tower.pre_layrnorm
        self.encoder = tower.encoder
        self.post_layernorm = tower.post_layernorm
        # Not a weight, and on the meta device no loader would fill it; positions are simply 0, 1, ...
        del self.embeddings.position_ids

    def forward(self, images: Tensor) -> Tensor:
        """States [B, 1 + patches, dim] after all blocks but the last, of images [B, 3, H, W] in [-1, 1]."""
        return self.hidden_states(clip_pixels(images, self.config.image_size), self.config.num_layers - 1)

    def hidden_states(self, pixels: Tensor, num_blocks: int) -> Tensor:
        """States [B, 1 + patches, dim] after ``num_blocks`` blocks, of normalised pixels [B, 3, size, size]."""
        projection = self.embeddings.patch_embedding
        patches = rearrange(projection(pixels.to(projection.weight.dtype)), "b c h w -> b (h w) c")
        first = self.embeddings.class_embedding.expand(len(patches), 1, -1)
        tokens = torch.cat([first, patches], dim=1) + self.embeddings.position_embedding.weight
        hidden: Tensor = self.pre_layrnorm(tokens)
        for block in self.encoder.layers[:num_blocks]:
            result = block(hidden, attention_mask=None, **_version_arguments(block))
            hidden = result[0] if isinstance(result, tuple) else result
        return hidden


def _transformers_tower(config: CLIPConfig) -> Any:
    from transformers import CLIPVisionConfig, CLIPVisionModel

    model = CLIPVisionModel(
        CLIPVisionConfig(
            hidden_size=config.dim,
            intermediate_size=config.ffn_dim,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            image_size=config.image_size,
            patch_size=config.patch_size,
            hidden_act=config.activation,
            layer_norm_eps=config.eps,
        )
    )
    return getattr(model, "vision_model", model)  # transformers 4 has one more level


def _version_arguments(block: nn.Module) -> dict[str, None]:
    """transformers 4 asks for a second mask."""
    name = "causal_attention_mask"
    return {name: None} if name in inspect.signature(block.forward).parameters else {}
