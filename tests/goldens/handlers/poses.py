"""Families ua_*: UniAnimate's poses, from detection over alignment and drawing to the pose encoder."""

from collections.abc import Mapping

from torch import Tensor

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
