"""Wan2.1 1.3B made causal: a few steps a block, endless by its window."""

from dataclasses import replace
from importlib.resources import files
from pathlib import Path

from selfforcing_unianimate.config import CausalDiTConfig
from selfforcing_unianimate.families import CAUSAL_DIT
from selfforcing_unianimate.frame_blocks import FrameBlocks
from selfforcing_unianimate.pose_config import PoseConfig
from selfforcing_unianimate.pose_weights import POSE_PART
from selfforcing_unianimate.task import CausalVideo
from selfforcing_unianimate.teacher import PoseToVideo
from wan_core.checkpoints import Part
from wan_core.presets import Preset, get_preset

WEIGHTS = Path(str(files("selfforcing_unianimate") / "weights"))

_T2V = get_preset("t2v-1.3B")


def _with_parts(preset: Preset, *parts: Part) -> Preset:
    return replace(preset, parts=(*preset.parts, *parts))


SFU_1_3B = replace(
    _with_parts(
        _T2V.with_part("dit", family=CAUSAL_DIT, config=CausalDiTConfig(**vars(_T2V.dit))),
        POSE_PART,
        # For a network that was widened to take pictures.
        replace(get_preset("i2v-14B-480P").part("image_encoder"), is_optional=True),
    ),
    name="sfu-1.3B",
    summary="causal video with Wan2.1 1.3B distilled by Self-Forcing: four steps a block, any length",
    besides="this is Wan2.1's own network, which is not causal; 'sfu download' also fetches Self-Forcing's weights and "
    "the pose encoder",
    # 21 latent frames are what the network was trained with.
    task=CausalVideo(FrameBlocks(size=3, window=21)),
    tea_cache=(),  # its blocks remember keys, so none is left out
    sampling=replace(_T2V.sampling, solver="renoise", num_inference_steps=4, flow_shift=5.0, guidance_scale=1.0),
)

_TINY = get_preset("tiny-i2v")

_PERSONS = (
    "it draws a person in green, purple, white or yellow clothing who moves on a black, green or white background, as "
    "poses say; 'sfu download' fetches models that know more"
)

_TINY_POSE = replace(
    POSE_PART,
    file=str(WEIGHTS / "pose_encoder.safetensors"),
    config=PoseConfig(token_dim=_TINY.dit.dim, reference_channels=_TINY.dit.in_dim - _TINY.dit.out_dim),
)

TINY_SFU = replace(
    _with_parts(
        _TINY.with_part(
            "dit",
            family=CAUSAL_DIT,
            file=str(WEIGHTS / "student"),
            config=CausalDiTConfig(**vars(_TINY.dit), pose_dim=_TINY.dit.dim),
        ),
        _TINY_POSE,
    ),
    name="tiny-sfu",
    summary="causal video in seconds on a CPU: a stick person moved by poses, four steps a block",
    # Single latent frames, which see as far back as its training clips are long.
    task=CausalVideo(FrameBlocks(size=1, window=5)),
    tea_cache=(),
    sampling=replace(_TINY.sampling, solver="renoise", num_inference_steps=4, guidance_scale=1.0),
    world=_PERSONS,
)

TINY_UNIANIMATE = replace(
    _with_parts(_TINY.with_part("dit", file=str(WEIGHTS / "teacher")), _TINY_POSE),
    name="tiny-unianimate",
    summary="a stick person moved by poses in a minute on a CPU, the teacher of tiny-sfu",
    task=PoseToVideo(needs_picture=False),
    tea_cache=(),
    sampling=replace(_TINY.sampling, solver="euler", num_inference_steps=50, guidance_scale=1.5),
    world=_PERSONS,
)
