"""The teacher: Wan2.1 I2V-14B 720p with UniAnimate's LoRA merged in, and its pose encoder."""

from dataclasses import replace

from selfforcing_unianimate.pose_weights import POSE_PART
from selfforcing_unianimate.teacher import PoseToVideo
from wan_core.presets import get_preset

_I2V = get_preset("i2v-14B-720P")

UNIANIMATE_14B = replace(
    _I2V,
    name="unianimate-14B",
    summary="picture moved by poses with Wan2.1 I2V-14B and UniAnimate, the teacher of sfu",
    besides="this is the teacher's base; 'sfu download' also fetches UniAnimate's LoRA and pose encoder, for --lora",
    task=PoseToVideo(),
    parts=(*_I2V.parts, POSE_PART),
    sampling=replace(
        _I2V.sampling,
        width=480,
        height=832,
        num_frames=81,
        fps=15,
        num_inference_steps=50,
        flow_shift=5.0,
        guidance_scale=1.5,
        solver="euler",
        negative_prompt="细节模糊，画质差，手指畸形，多余的手，扭曲的四肢，多余的肢体，脸部变形，杂乱的背景，背景里的路人，画面静止，字幕，水印",
    ),
    sizes=((480, 832), (832, 480), (720, 1280), (1280, 720)),
    shifts=(),
)
