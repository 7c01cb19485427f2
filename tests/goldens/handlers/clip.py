"""The CLIP image tower."""

from typing import Any

import torch
from torch import Tensor

from tests.goldens.harness import GoldenCase, handles
from wan_core.checkpoints.families.clip_names import CLIP_ORIGINAL_RENAMES, split_clip_tensor
from wan_core.models import CLIPConfig, CLIPVision
from wan_core.models.image.clip import clip_pixels


def clip_tower(case: GoldenCase) -> CLIPVision:
    config: dict[str, Any] = case.config
    # The variants that transformers' tower does not have; no published Wan model uses them.
    unusual = {"pool_type": "token", "pre_norm": True, "post_norm": False}
    differing = {key: config[key] for key, usual in unusual.items() if config.get(key, usual) != usual}
    if differing:
        raise ValueError(f"the tower has no variant {differing}")
    model = CLIPVision(
        CLIPConfig(
            image_size=config["image_size"],
            patch_size=config["patch_size"],
            dim=config["dim"],
            ffn_dim=int(config["dim"] * config["mlp_ratio"]),
            num_heads=config["num_heads"],
            num_layers=config["num_layers"],
            activation=config["activation"],
            eps=config.get("norm_eps", 1e-5),
        )
    )
    model.load_state_dict(native_weights(case.weights))
    return model.eval()


def native_weights(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    native: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        native.update(split_clip_tensor(f"visual.{name}", tensor) or _renamed(f"visual.{name}", tensor))
    return native


def _renamed(name: str, tensor: Tensor) -> dict[str, Tensor]:
    index = next((part for part in name.split(".") if part.isdigit()), "")
    for source, target in CLIP_ORIGINAL_RENAMES:
        prefix = source.replace("{}", index)
        if name.startswith(prefix):
            return {} if target is None else {target.replace("{}", index) + name.removeprefix(prefix): tensor}
    return {name: tensor}


@handles("clip_visual")
def clip_visual(case: GoldenCase) -> dict[str, Tensor]:
    model = clip_tower(case)
    images = case.inputs["image"].transpose(0, 1) if case.inputs["image"].ndim == 4 else case.inputs["image"]
    pixels = clip_pixels(images, model.config.image_size)
    computed = {"out.features": model(images), "out.all_blocks": model.hidden_states(pixels, model.config.num_layers)}
    computed["mid.pixel_values"] = pixels
    return {name: value for name, value in computed.items() if name in case.expected}


@handles("clip_vision")
def clip_vision(case: GoldenCase) -> dict[str, Tensor]:
    images = torch.cat(list(case.inputs["images"].transpose(1, 2)))
    return {"out.tokens": clip_tower(case)(images)}
