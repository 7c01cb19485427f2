"""Wan2.2: two-expert A14B for text and image to video, and the 5B model with the 4x16x16 VAE."""

from dataclasses import replace

from wan_core.models import UMT5_XXL, WAN21_VAE, WAN22_VAE, WanDiTConfig
from wan_core.presets.base import NEGATIVE_PROMPT, CheckpointFiles, Preset
from wan_core.tasks import Experts, ImageToVideo, SamplingDefaults, TextImageToVideo, TextToVideo

SIZES_A14B = ((1280, 720), (720, 1280), (832, 480), (480, 832))

T2V_A14B = Preset(
    name="t2v-A14B",
    summary="Wan2.2 text to video, two experts of 14B",
    task=TextToVideo(),
    dit=WanDiTConfig(in_dim=16, out_dim=16, dim=5120, ffn_dim=13824, num_heads=40, num_layers=40),
    vae=WAN21_VAE,
    text_encoder=UMT5_XXL,
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
    files=CheckpointFiles(dit=Experts(high="high_noise_model", low="low_noise_model"), vae="Wan2.1_VAE.pth"),
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
    dit=replace(T2V_A14B.dit, in_dim=36),
    sampling=replace(T2V_A14B.sampling, flow_shift=5.0, guidance_scale=Experts(high=3.5, low=3.5)),
    boundary=0.900,
    repository="Wan-AI/Wan2.2-I2V-A14B",
)

TI2V_5B = Preset(
    name="ti2v-5B",
    summary="Wan2.2 text or image to video, 5B, 720p at 24 fps",
    task=TextImageToVideo(),
    dit=WanDiTConfig(in_dim=48, out_dim=48, dim=3072, ffn_dim=14336, num_heads=24, num_layers=30),
    vae=WAN22_VAE,
    text_encoder=UMT5_XXL,
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
    files=CheckpointFiles(dit="", vae="Wan2.2_VAE.pth"),
    sizes=((1280, 704), (704, 1280)),
    repository="Wan-AI/Wan2.2-TI2V-5B",
    disk_gb=34,
)
