"""The tiny family: every branch of the real models at a size that a laptop CPU runs in seconds; weights in the package.

One VAE and one text encoder serve all of them. The networks see 64x64 clips of 17 frames of a procedural world.
"""

from dataclasses import replace

from wan_core.models import UMT5Config, VAEConfig, WanDiTConfig
from wan_core.presets.base import CheckpointFiles, Preset
from wan_core.tasks import Experts, ImageToVideo, SamplingDefaults, TextImageToVideo, TextToVideo

TINY_VAE = VAEConfig(
    dim=24,
    dec_dim=24,
    z_dim=24,
    dim_mult=(1, 2, 2),
    num_res_blocks=1,
    temporal_downsample=(True, True),
    patch_size=2,
    residual=True,
)
TINY_TEXT_ENCODER = UMT5Config(vocab_size=128, dim=96, dim_attn=96, dim_ffn=192, num_heads=4, num_layers=2)

TINY_T2V = Preset(
    name="tiny-t2v",
    summary="text to video in seconds on a CPU: coloured shapes that move",
    task=TextToVideo(),
    dit=WanDiTConfig(
        in_dim=TINY_VAE.z_dim,
        out_dim=TINY_VAE.z_dim,
        dim=128,
        ffn_dim=512,
        num_heads=4,
        num_layers=6,
        text_dim=96,
        text_len=24,
        patch_size=(1, 1, 1),
    ),
    vae=TINY_VAE,
    text_encoder=TINY_TEXT_ENCODER,
    sampling=SamplingDefaults(
        num_frames=17,
        fps=8,
        width=64,
        height=64,
        num_inference_steps=20,
        flow_shift=3.0,
        guidance_scale=3.0,
        negative_prompt="",
    ),
    files=CheckpointFiles(
        dit="t2v", vae="vae.safetensors", text_encoder="text_encoder.safetensors", tokenizer="tokenizer"
    ),
    sizes=((64, 64),),
    bundled="tiny",
)

TINY_TI2V = replace(
    TINY_T2V,
    name="tiny-ti2v",
    summary="text and image to video in seconds on a CPU",
    task=TextImageToVideo(),
    sampling=replace(TINY_T2V.sampling, guidance_scale=2.0),
)

TINY_I2V = replace(
    TINY_T2V,
    name="tiny-i2v",
    summary="image to video by channels in seconds on a CPU",
    task=ImageToVideo(),
    dit=replace(TINY_T2V.dit, in_dim=2 * TINY_VAE.z_dim + 4),
    files=replace(TINY_T2V.files, dit="i2v"),
)

TINY_MOE = replace(
    TINY_T2V,
    name="tiny-moe",
    summary="text to video with two experts in seconds on a CPU",
    sampling=replace(TINY_T2V.sampling, guidance_scale=Experts(high=3.0, low=3.0)),
    files=replace(TINY_T2V.files, dit=Experts(high="high", low="low")),
    boundary=0.875,
)
