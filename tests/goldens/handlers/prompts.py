"""Sizes of the pictures that language models are shown when they extend a prompt."""

from collections.abc import Mapping

import torch
from torch import Tensor

from tests.goldens.harness import GoldenCase, handles
from wan_core.llm.qwen import smart_size
from wan_core.prompt_extend.extend import reduced_size


@handles("prompt_extend_resize")
def picture_sizes(case: GoldenCase) -> Mapping[str, Tensor]:
    area, factor = case.config["max_image_size"], case.config["factor"]
    small = [reduced_size(width, height, area) for height, width in case.inputs["image_hw"].tolist()]
    patched = [
        smart_size(width, height, factor=factor, min_pixels=least, max_pixels=most)
        for height, width, least, most in case.inputs["smart_resize"].tolist()
    ]
    return {
        "out.dashscope_hw": torch.tensor(small, dtype=torch.int64).flip(1),
        "out.smart_resize_hw": torch.tensor(patched, dtype=torch.int64).flip(1),
    }
