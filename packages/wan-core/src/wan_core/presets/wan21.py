"""Wan2.1: one network each; image to video has a CLIP branch. Coefficients of TeaCache are those of its authors."""

from dataclasses import replace

from wan_core.checkpoints import FLF2V
from wan_core.models import CLIP_VIT_H14, WAN21_VAE, FLF2VConfig, WanDiTConfig
from wan_core.presets.base import NEGATIVE_PROMPT, wan_parts
from wan_core.presets.wan22 import DIT_14B, SIZES_A14B, T2V_A14B
from wan_core.tasks import FirstLastFrameToVideo, ImageToVideo

T2V_14B = replace(
    T2V_A14B,
    name="t2v-14B",
    summary="Wan2.1 text to video, 14B",
    sampling=replace(T2V_A14B.sampling, num_inference_steps=50, flow_shift=5.0, guidance_scale=5.0),
    parts=wan_parts(DIT_14B, WAN21_VAE),
    boundary=None,
    tea_cache=(-3.03318725e5, 4.90537029e4, -2.65530556e3, 5.87365115e1, -3.15583525e-1),
    repository="Wan-AI/Wan2.1-T2V-14B",
    disk_gb=69,
)

T2V_1_3B = replace(
    T2V_14B,
    name="t2v-1.3B",
    summary="Wan2.1 text to video, 1.3B, 480p",
    parts=wan_parts(
        WanDiTConfig(in_dim=16, out_dim=16, dim=1536, ffn_dim=8960, num_heads=12, num_layers=30), WAN21_VAE
    ),
    sampling=replace(T2V_14B.sampling, width=832, height=480),
    sizes=((832, 480), (480, 832)),
    tea_cache=(-5.21862437e4, 9.23041404e3, -5.28275948e2, 1.36987616e1, -4.99875664e-2),
    repository="Wan-AI/Wan2.1-T2V-1.3B",
    disk_gb=17.5,
)

I2V_14B_720P = replace(
    T2V_14B,
    name="i2v-14B-720P",
    summary="Wan2.1 image to video, 14B, 720p",
    task=ImageToVideo(),
    sampling=replace(T2V_14B.sampling, num_inference_steps=40, negative_prompt="镜头晃动，" + NEGATIVE_PROMPT),
    parts=wan_parts(replace(DIT_14B, in_dim=36, image_dim=1280), WAN21_VAE, image_encoder=CLIP_VIT_H14),
    sizes=SIZES_A14B[:2],
    shifts=tuple((size, 3.0) for size in SIZES_A14B[2:]),
    tea_cache=(8.10705460e3, 2.13393892e3, -3.72934672e2, 1.66203073e1, -4.17769401e-2),
    repository="Wan-AI/Wan2.1-I2V-14B-720P",
    disk_gb=82,
)

I2V_14B_480P = replace(
    I2V_14B_720P,
    name="i2v-14B-480P",
    summary="Wan2.1 image to video, 14B, 480p",
    sampling=replace(I2V_14B_720P.sampling, width=832, height=480, flow_shift=3.0),
    sizes=SIZES_A14B[2:],
    shifts=tuple((size, 5.0) for size in SIZES_A14B[:2]),
    tea_cache=(2.57151496e5, -3.54229917e4, 1.40286849e3, -1.35890334e1, 1.32517977e-1),
    repository="Wan-AI/Wan2.1-I2V-14B-480P",
)

_FLF2V_DIT = FLF2VConfig(dim=5120, ffn_dim=13824, num_heads=40, num_layers=40)

FLF2V_14B = replace(
    I2V_14B_720P.with_part("dit", family=FLF2V, config=_FLF2V_DIT),
    name="flf2v-14B",
    summary="Wan2.1 first and last frame to video, 14B, 720p",
    task=FirstLastFrameToVideo(),
    sampling=replace(
        I2V_14B_720P.sampling,
        num_inference_steps=50,
        flow_shift=16.0,
        negative_prompt="镜头切换，" + NEGATIVE_PROMPT,
    ),
    sizes=SIZES_A14B,
    shifts=(),
    tea_cache=(),
    repository="Wan-AI/Wan2.1-FLF2V-14B-720P",
)
