"""Families animate_*: what prepares a video for Wan-Animate, from pictures of another size to masks."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tests.goldens.harness import Computed, GoldenCase, handles
from wan_core.animate.detect import choose_person, decode_detections
from wan_core.animate.draw import draw_pose
from wan_core.animate.keypoints import NUM_FACE, PosePoints, Skeleton, split_points
from wan_core.animate.mask import augment_mask, background, dilate_mask
from wan_core.animate.pose import PoseCrop, crop_of, decode_heatmaps, normalised_crop
from wan_core.animate.resize import padded_resize, resize_to_area
from wan_core.animate.retarget import plan_retargeting


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


@handles("animate_pose_estimation")
def check_estimation(case: GoldenCase) -> Mapping[str, Tensor]:
    arrays, call, found = arrays_of(case), case.call, {}
    rows = decode_detections(arrays["det"], *call["det_image_hw"])
    found["out.det_nms"] = rows
    found["out.det_box"] = choose_person(rows, *call["det_image_hw"]).box
    for name in sorted(name for name in arrays if name.startswith("box.")):
        index = name.removeprefix("box.")
        crop = crop_of(arrays[name], *arrays["image"].shape[:2])
        found[f"out.center.{index}"], found[f"out.scale.{index}"] = crop
        pixels = normalised_crop(arrays["image"], crop, tuple(call["vit_input_hw"]))
        found[f"out.crop.{index}"] = pixels[:, ::4, ::4]
    crops = zip(arrays["heatmaps"], arrays["heat_center"], arrays["heat_scale"], strict=True)
    points = np.stack([decode_heatmaps(maps, PoseCrop(*crop)) for maps, *crop in crops])
    found["out.points"], found["out.scores"] = points[..., :2], points[..., 2:]
    persons: list[PosePoints] = []
    for each in arrays["kp133"]:
        persons.append(split_points(each, *call["kp_size_wh"], persons[-1] if persons else None))
    for part in ("body", "face", "left_hand", "right_hand"):
        found[f"out.meta.{part}"] = np.stack([getattr(person, part) for person in persons])
    return tensors(found)


def person_of(arrays: Mapping[str, NDArray[Any]], index: Any = ...) -> PosePoints:
    width, height = map(int, arrays["size_wh"])
    parts = {part: arrays[part][index] for part in ("body", "left_hand", "right_hand")}
    return PosePoints(**parts, face=np.full((NUM_FACE, 3), np.nan), width=width, height=height)


@handles("animate_retarget")
def check_retarget(case: GoldenCase) -> Mapping[str, Tensor]:
    found = {}
    for name, call in case.call.items():
        given = {key: tensor.numpy() for key, tensor in case.named(f"in.{name}.").items()}
        roles = {role: inside(given, role) for role in {key.partition(".")[0] for key in given}}
        edited = (person_of(roles["src_edit"]), person_of(roles["reference_edit"])) if "src_edit" in roles else None
        persons = person_of(roles["src_first"]), person_of(roles["reference"])
        plan = plan_retargeting(*persons, edited, case.config["threshold"])
        frames = range(len(roles["frames"]["body"]))
        skeletons = [plan.apply(person_of(roles["frames"], index), is_first=index == 0) for index in frames]
        found[f"mid.{name}.bone_ratio"] = plan.ratios
        found[f"mid.{name}.delta_scale"] = np.array([*plan.offset, plan.anchor_x, plan.scale])
        body = np.stack([skeleton.body for skeleton in skeletons])
        hands = {side: np.stack([getattr(each, side) for each in skeletons]) for side in ("left_hand", "right_hand")}
        if call["entry"] == "retarget_pose":  # shares of the canvas; what is dropped has no score
            found[f"out.{name}.body_norm"] = body / (*call["canvas_wh"], 1.0)
            hands = {side: hand + 0 * hand[..., :1] for side, hand in hands.items()}  # NaN all over
        else:
            found[f"out.{name}.body_px"] = body
        found |= {f"out.{name}.{side}": hand for side, hand in hands.items()}
    return tensors(found)


def inside(arrays: Mapping[str, NDArray[Any]], role: str) -> dict[str, NDArray[Any]]:
    return {key.removeprefix(f"{role}."): array for key, array in arrays.items() if key.startswith(f"{role}.")}
