"""Golden cases of the language model that BindWeave reads."""

from collections.abc import Mapping

import torch
from PIL import Image
from torch import Tensor

from bindweave.hidden_states import positions, scaled, see_pixels, states_of
from bindweave.mllm import MLLM
from bindweave.mllm_config import MLLMConfig, stated_dims
from tests.goldens.harness import GoldenCase, finished, handles
from wan_core.checkpoints import MemorySource, load_model
from wan_core.llm import picture_patches
from wan_core.llm.qwen import smart_size
from wan_core.media import resize_by_rows


@handles("bindweave_qwen_image_preprocess")
def preprocess(case: GoldenCase) -> Mapping[str, Tensor]:
    config = case.config
    area = {name: config[name] for name in ("min_pixels", "max_pixels")}
    shape = {"patch": config["patch_size"], "merge": config["merge_size"], "frames": config["temporal_patch_size"]}
    factor = config["patch_size"] * config["merge_size"]
    found: dict[str, Tensor] = {}
    for number in range(sum(name.startswith("image") for name in case.inputs)):
        picture = scaled(Image.fromarray(case.inputs[f"image{number}"].numpy()))
        size = smart_size(*picture.size, factor=factor, **area)
        rows, grid = picture_patches(picture, **shape, **area)
        found |= {
            f"mid.scaled{number}": _pixels(picture),
            f"mid.smart_resized{number}": _pixels(resize_by_rows(picture, size)),
            f"out.pixel_values{number}": rows,
            f"out.image_grid_thw{number}": torch.tensor([grid]),
        }
    table = []
    for width, height in case.inputs["sizes_wh"].tolist():
        small = scaled(Image.new("RGB", (width, height))).size
        size = smart_size(*small, factor=factor, **area)
        table.append([*small, *size, size[0] * size[1] // factor**2])
    return {**found, "out.scaled_wh_smart_wh_tokens": torch.tensor(table)}


def _pixels(picture: Image.Image) -> Tensor:
    return torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).view(picture.height, picture.width, 3)


@handles("bindweave_qwen")
def states(case: GoldenCase) -> Mapping[str, Tensor]:
    text, vision = case.config["text_config"], case.config["vision_config"]
    config = MLLMConfig(
        **{
            "dim": text["hidden_size"],
            "ffn_dim": text["intermediate_size"],
            "num_layers": text["num_hidden_layers"],
            "vocab_size": text["vocab_size"],
            "vision_dim": vision["hidden_size"],
            "vision_ffn_dim": vision["intermediate_size"],
            "vision_layers": vision["depth"],
            "patch_size": vision["patch_size"],
            "temporal_patch_size": vision["temporal_patch_size"],
            **stated_dims(case.config),
        }
    )
    network = finished(load_model(config, MemorySource(case.weights), family=MLLM))
    ids = case.inputs["input_ids"]
    before: list[Tensor] = []
    network.language_model.norm.register_forward_pre_hook(lambda module, given: before.append(given[0]))
    seen = see_pixels(network, case.inputs["pixel_values"], case.inputs["image_grid_thw"].tolist())
    return {
        "out.hidden_states": states_of(network, ids, seen),
        "mid.hidden_before_final_norm": before[0],
        "mid.image_embeds": seen.embeddings,
        "mid.position_ids": positions(ids == config.picture_id, seen),
    }
