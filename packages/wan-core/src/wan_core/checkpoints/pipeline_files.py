"""The JSON files of a whole model that diffusers reads beside the networks: index, scheduler, image processor."""

from dataclasses import dataclass
from typing import Any

from wan_core.checkpoints.families.dit import DIFFUSERS_VERSION
from wan_core.models import AnimateDiTConfig, CLIPConfig, WanDiTConfig

_TRAIN_TIMESTEPS = 1000


@dataclass(frozen=True, kw_only=True)
class PipelineFacts:
    """What a diffusers pipeline must know besides its networks.

    ``boundary`` is the share of the training steps above which the high-noise expert works; ``frame_timesteps`` tells a
    network that takes one timestep for each latent frame.
    """

    flow_shift: float
    boundary: float | None = None
    frame_timesteps: bool = False


def image_processor(config: CLIPConfig) -> dict[str, Any]:
    """``preprocessor_config.json`` for the pictures of a CLIP tower: OpenAI's mean and deviation."""
    side = config.image_size
    return {
        "image_processor_type": "CLIPImageProcessor",
        "crop_size": {"height": side, "width": side},
        "do_center_crop": True,
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "resample": 3,
        "rescale_factor": 1 / 255,
        "size": {"shortest_edge": side},
    }


def scheduler(facts: PipelineFacts) -> dict[str, Any]:
    """``scheduler_config.json``: UniPC on the flow schedule of the model."""
    return {
        "_class_name": "UniPCMultistepScheduler",
        "_diffusers_version": DIFFUSERS_VERSION,
        "flow_shift": facts.flow_shift,
        "num_train_timesteps": _TRAIN_TIMESTEPS,
        "prediction_type": "flow_prediction",
        "solver_order": 2,
        "solver_type": "bh2",
        "use_flow_sigmas": True,
    }


def model_index(network: WanDiTConfig, facts: PipelineFacts, *, num_networks: int, has_clip: bool) -> dict[str, Any]:
    """``model_index.json`` of a whole model."""
    sees_image = network.in_dim > network.out_dim
    is_animate = isinstance(network, AnimateDiTConfig)
    transformer = ["diffusers", "WanAnimateTransformer3DModel" if is_animate else "WanTransformer3DModel"]
    absent = [None, None]
    clip = {
        "image_encoder": ["transformers", "CLIPVisionModel"] if has_clip else absent,
        "image_processor": ["transformers", "CLIPImageProcessor"] if has_clip else absent,
    }
    options = {
        "boundary_ratio": facts.boundary if num_networks == 2 else None,
        "expand_timesteps": facts.frame_timesteps,
        "transformer_2": transformer if num_networks == 2 else absent,
    }
    name = "WanAnimatePipeline" if is_animate else "WanImageToVideoPipeline" if sees_image else "WanPipeline"
    return {
        "_class_name": name,
        "_diffusers_version": DIFFUSERS_VERSION,
        "scheduler": ["diffusers", "UniPCMultistepScheduler"],
        "text_encoder": ["transformers", "UMT5EncoderModel"],
        "tokenizer": ["transformers", "T5TokenizerFast"],
        "transformer": transformer,
        "vae": ["diffusers", "AutoencoderKLWan"],
        **({} if is_animate else options),
        **(clip if sees_image else {}),
    }
