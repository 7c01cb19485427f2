"""Families animate_*: what prepares a video for Wan-Animate, from pictures of another size to masks."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tests.goldens.harness import Computed, GoldenCase, handles
from wan_core.animate.draw import draw_pose
from wan_core.animate.keypoints import Skeleton
from wan_core.animate.mask import augment_mask, background, dilate_mask
from wan_core.animate.resize import padded_resize, resize_to_area


def arrays_of(case: GoldenCase) -> dict[str, NDArray[Any]]:
    return {name: tensor.numpy() for name, tensor in case.inputs.items()}


def tensors(arrays: Mapping[str, Any]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}


@handles("animate_resize")
def check_resize(case: GoldenCase) -> Computed:
    images, found = arrays_of(case), {}
    for index, call in enumerate(case.call["pad"]):
        size = call["height"], call["width"]
        padded = padded_resize(images[f"pad{index}"], *size, call["color"], call["interpolation"])
        found[f"out.pad{index}"] = padded
    for index, call in enumerate(case.call["area"]):
        found[f"out.area{index}"] = resize_to_area(images[f"area{index}"], call["target_area"], call["divisor"])
    return Computed(tensors(found))


@handles("animate_draw_pose")
def check_draw(case: GoldenCase) -> Mapping[str, Tensor]:
    arrays, found = arrays_of(case), {}
    for index, call in enumerate(case.call):
        points = {name: arrays[f"{index}.{name}"] for name in ("body", "left_hand", "right_hand")}
        size = np.append(arrays[f"{index}.size_wh"], 1.0)
        skeleton = Skeleton(**{name: array * size for name, array in points.items()})
        canvas = np.zeros((call["height"], call["width"], 3), dtype=np.uint8)
        found[f"out.{index}.image"] = draw_pose(canvas, skeleton, case.config["threshold"])
    return tensors(found)


@handles("animate_mask_aug")
def check_mask(case: GoldenCase) -> Mapping[str, Tensor]:
    arrays, found = arrays_of(case), {}
    for index, call in enumerate(case.call):
        mask, growth = arrays[f"{index}.mask"], (call["iterations"], call["k"])
        augmented = augment_mask(mask, *growth, call["w_len"], call["h_len"])
        found[f"mid.{index}.dilated"] = dilate_mask(mask, *growth)
        found[f"out.{index}.mask"] = augmented
        found[f"out.{index}.background"] = background(arrays[f"{index}.frame"], augmented)
    return tensors(found)
