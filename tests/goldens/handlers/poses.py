"""Families ua_*: UniAnimate's poses, from detection over alignment and drawing to the pose encoder."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from selfforcing_unianimate.alignment import align
from selfforcing_unianimate.body_points import decode_positions, padded_crop, warp_matrix, with_aspect
from selfforcing_unianimate.drawing import draw
from selfforcing_unianimate.keypoints import NUM_POINTS, Poses, openpose_order, poses_of
from selfforcing_unianimate.person_boxes import letterbox, num_cells, person_boxes
from selfforcing_unianimate.pose_config import PoseConfig
from selfforcing_unianimate.pose_encoder import PoseEncoder, pose_tokens
from selfforcing_unianimate.pose_weights import POSE_ENCODER
from tests.goldens.harness import GoldenCase, finished, handles
from wan_core.checkpoints import MemorySource, load_model


@handles("ua_pose_embeddings")
def check_embeddings(case: GoldenCase) -> Mapping[str, Tensor]:
    config = PoseConfig(
        hidden=case.config["hidden"],
        token_dim=case.config["dwpose_out"],
        reference_channels=case.config["randomref_out"],
    )
    encoder: PoseEncoder = finished(load_model(config, MemorySource(case.weights), family=POSE_ENCODER))
    motion, reference = encoder(case.inputs["dwpose_data"], case.inputs["random_ref_dwpose"])
    computed = {"out.dwpose_embedding": motion, "out.randomref_embedding": reference}
    if "out.add_condition" in case.tensors:  # the first tokens alone
        tokens = pose_tokens(motion).flatten(1, 2)
        computed["out.add_condition"] = tokens[:, : case.tensors["out.add_condition"].shape[1]]
    return computed


@handles("ua_dwpose_helpers")
def check_helpers(case: GoldenCase) -> Mapping[str, Tensor]:
    arrays, call = {name: tensor.numpy() for name, tensor in case.inputs.items()}, case.call
    side, size = call["yolox_input"][0], tuple(call["pose_input"])
    square, ratio = letterbox(arrays["image"], side)
    output = np.zeros((1, num_cells(side), arrays["yolox_rows"].shape[1]), dtype=np.float32)
    output[0, arrays["yolox_rows_index"]] = arrays["yolox_rows"]
    persons = person_boxes(
        output, ratio, side, overlap=call["nms_thr"], possible=call["score_thr"], certain=call["keep_thr"]
    )
    crop = padded_crop(arrays["bbox"], call["padding"])
    fixed = with_aspect(crop, size)
    points, scores = decode_positions(arrays["simcc_x"], arrays["simcc_y"], call["simcc_split"])
    return from_numpy(
        {
            "out.center": crop.centre,
            "out.scale": crop.sides,
            "out.scale_fixed": fixed.sides,
            "out.warp": warp_matrix(fixed, size).astype(np.float32),
            "out.simcc_keypoints": points,
            "out.simcc_scores": scores,
            "out.letterbox_8x_subsample": square[:, ::8, ::8],
            "out.person_boxes": persons,
        }
    )


@handles("ua_dwpose_postprocess")
def check_postprocess(case: GoldenCase) -> Mapping[str, Tensor]:
    keypoints, scores = (case.inputs[f"{name}133"].numpy() for name in ("keypoints", "scores"))
    ordered, ordered_scores = openpose_order(keypoints, scores)
    first = poses_of(keypoints[:1], scores[:1], case.call["W"], case.call["H"])
    return from_numpy(
        {
            "mid.keypoints134": ordered,
            "mid.scores134": ordered_scores,
            "out.candidate": first.body[0],
            "out.subset": first.subset,
            "out.faces": first.faces,
            "out.hands": first.hands[0],
        }
    )


@handles("ua_pose_align")
def check_align(case: GoldenCase) -> Mapping[str, Tensor]:
    reference = {name: tensor[None] for name, tensor in case.named("in.ref.").items()}
    aligned = align(poses(case.named("in.driving.")), poses(reference))
    return from_numpy(
        {
            "out.aligned.candidate": aligned.body,
            "out.aligned.subset": aligned.subset[:, None],
            "out.aligned.faces": aligned.faces[:, None],
            "out.aligned.hands": aligned.hands,
        }
    )


@handles("ua_pose_draw")
def check_draw(case: GoldenCase) -> Mapping[str, Tensor]:
    # The integers that pixels are depend on all digits.
    exact = {name.removesuffix(".f64"): tensor for name, tensor in case.inputs.items() if name.endswith(".f64")}
    pose = poses({name: tensor[None] for name, tensor in {**case.inputs, **exact}.items()})
    size = case.call["W"], case.call["H"]
    drawn = {"out.without_face": draw(pose, *size), "out.with_face": draw(pose, *size, with_face=True)}
    return from_numpy({name: picture for name, picture in drawn.items() if name in case.tensors})


def poses(tensors: Mapping[str, Tensor]) -> Poses:
    """The poses of a case's tensors, with a leading axis of frames."""
    arrays = {name: tensor.double().numpy() for name, tensor in tensors.items()}
    frames = len(arrays["candidate"])
    return Poses(
        body=arrays["candidate"],
        subset=arrays["subset"][:, 0],
        faces=arrays["faces"][:, 0],
        hands=arrays["hands"],
        scores=np.ones((frames, NUM_POINTS)),
    )


def from_numpy(arrays: Mapping[str, NDArray[Any]]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}
