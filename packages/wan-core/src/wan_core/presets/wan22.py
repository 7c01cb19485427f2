"""Wan2.2: two-expert A14B for text and image to video, the 5B model with the 4x16x16 VAE, S2V, and Animate."""

from dataclasses import replace

from wan_core.checkpoints import ANIMATE, S2V, WAV2VEC2, Part
from wan_core.models import (
    CLIP_VIT_H14,
    WAN21_VAE,
    WAN22_VAE,
    WAV2VEC2_LARGE_XLSR_53,
    AnimateDiTConfig,
    S2VConfig,
    WanDiTConfig,
)
from wan_core.presets.base import NEGATIVE_PROMPT, Preset, wan_parts
from wan_core.tasks import (
    Animate,
    Experts,
    ImageToVideo,
    SamplingDefaults,
    SpeechToVideo,
    TextImageToVideo,
    TextToVideo,
)

SIZES_A14B = ((1280, 720), (720, 1280), (832, 480), (480, 832))

DIT_14B = WanDiTConfig(in_dim=16, out_dim=16, dim=5120, ffn_dim=13824, num_heads=40, num_layers=40)

T2V_A14B = Preset(
    name="t2v-A14B",
    summary="Wan2.2 text to video, two experts of 14B",
    task=TextToVideo(),
    parts=wan_parts(DIT_14B, WAN21_VAE, experts=True),
    sampling=SamplingDefaults(
        num_frames=81,
        fps=16,
        width=1280,
        height=720,
        num_inference_steps=40,
        flow_shift=12.0,
        guidance_scale=Experts(high=4.0, low=3.0),
        negative_prompt=NEGATIVE_PROMPT,
    ),
    sizes=SIZES_A14B,
    boundary=0.875,
    repository="Wan-AI/Wan2.2-T2V-A14B",
    disk_gb=126,
)

I2V_A14B = replace(
    T2V_A14B,
    name="i2v-A14B",
    summary="Wan2.2 image to video, two experts of 14B",
    task=ImageToVideo(),
    parts=wan_parts(replace(DIT_14B, in_dim=36), WAN21_VAE, experts=True),
    sampling=replace(T2V_A14B.sampling, flow_shift=5.0, guidance_scale=Experts(high=3.5, low=3.5)),
    boundary=0.900,
    repository="Wan-AI/Wan2.2-I2V-A14B",
)

TI2V_5B = Preset(
    name="ti2v-5B",
    summary="Wan2.2 text or image to video, 5B, 720p at 24 fps",
    task=TextImageToVideo(),
    parts=wan_parts(
        WanDiTConfig(in_dim=48, out_dim=48, dim=3072, ffn_dim=14336, num_heads=24, num_layers=30), WAN22_VAE
    ),
    sampling=SamplingDefaults(
        num_frames=121,
        fps=24,
        width=1280,
        height=704,
        num_inference_steps=50,
        flow_shift=5.0,
        guidance_scale=5.0,
        negative_prompt=NEGATIVE_PROMPT,
    ),
    sizes=((1280, 704), (704, 1280)),
    repository="Wan-AI/Wan2.2-TI2V-5B",
    disk_gb=34,
)

_S2V_DIT = S2VConfig(dim=5120, ffn_dim=13824, num_heads=40)

S2V_14B = Preset(
    name="s2v-14B",
    summary="Wan2.2 speech to video: a picture and sound, 14B",
    task=SpeechToVideo(),
    parts=(
        Part(name="dit", family=S2V, config=_S2V_DIT),
        *wan_parts(_S2V_DIT, WAN21_VAE)[1:],
        Part(
            name="audio_encoder",
            family=WAV2VEC2,
            file="wav2vec2-large-xlsr-53-english",
            config=WAV2VEC2_LARGE_XLSR_53,
        ),
    ),
    sampling=SamplingDefaults(
        num_frames=77,
        fps=16,
        width=1280,
        height=720,
        num_inference_steps=40,
        flow_shift=3.0,
        guidance_scale=4.5,
        negative_prompt=(
            "画面模糊，最差质量，画面模糊，细节模糊不清，情绪激动剧烈，手快速抖动，字幕，丑陋的，残缺的，多余的手指，画得不好的手部，"
            "画得不好的脸部，畸形的，毁容的，形态畸形的肢体，手指融合，静止不动的画面，杂乱的背景，三条腿，背景人很多，倒着走"
        ),
    ),
    sizes=(*SIZES_A14B, (1024, 704), (704, 1024), (704, 1280), (1280, 704)),
    repository="Wan-AI/Wan2.2-S2V-14B",
    disk_gb=49,
)

_ANIMATE_DIT = AnimateDiTConfig(dim=5120, ffn_dim=13824, num_heads=40)

ANIMATE_14B = Preset(
    name="animate-14B",
    summary="Wan2.2 Animate: a character moves as a person in a video, or takes their place, 14B",
    task=Animate(),
    parts=(
        Part(name="dit", family=ANIMATE, config=_ANIMATE_DIT),
        *wan_parts(_ANIMATE_DIT, WAN21_VAE, image_encoder=CLIP_VIT_H14)[1:],
    ),
    sampling=SamplingDefaults(
        num_frames=77,
        fps=30,
        width=1280,
        height=720,
        num_inference_steps=20,
        flow_shift=5.0,
        guidance_scale=1.0,
        negative_prompt=NEGATIVE_PROMPT,
    ),
    sizes=SIZES_A14B[:2],
    repository="Wan-AI/Wan2.2-Animate-14B",
    disk_gb=53,
)
