"""The tiny family: every branch of the real models at a size that a laptop CPU runs in seconds; weights in the package.

One VAE and one text encoder serve all of them. The networks see 64x64 clips of 17 frames of a procedural world.
"""

from dataclasses import replace
from importlib.resources import files
from pathlib import Path

from wan_core.checkpoints import ANIMATE, CLIP, DIT, S2V, TOKENIZER, UMT5, VAE, WAV2VEC2, Part
from wan_core.models import (
    AnimateDiTConfig,
    CLIPConfig,
    S2VConfig,
    UMT5Config,
    VAEConfig,
    WanDiTConfig,
    Wav2Vec2Config,
)
from wan_core.presets.base import Preset
from wan_core.tasks import (
    Animate,
    Experts,
    ImageToVideo,
    SamplingDefaults,
    SpeechToVideo,
    TextImageToVideo,
    TextToVideo,
)

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

TINY_DIT = WanDiTConfig(
    in_dim=TINY_VAE.z_dim,
    out_dim=TINY_VAE.z_dim,
    dim=128,
    ffn_dim=512,
    num_heads=4,
    num_layers=6,
    text_dim=96,
    text_len=24,
    patch_size=(1, 1, 1),
)

_WORLD = (
    "it draws a circle, cross, ring, square or triangle in blue, cyan, green, orange, purple, red, white or yellow "
    "that moves, grows, shrinks, bounces, spins or stays still on a black, blue, gray, green, pink or white background"
    "; 'wan download t2v-1.3B' fetches a model that knows more"
)


def _parts(dit: str, config: WanDiTConfig = TINY_DIT) -> tuple[Part, ...]:
    return (
        Part(name="dit", family=DIT, file=dit, config=config),
        Part(name="vae", family=VAE, file="vae.safetensors", config=TINY_VAE),
        Part(name="text_encoder", family=UMT5, file="text_encoder.safetensors", config=TINY_TEXT_ENCODER),
        Part(name="tokenizer", family=TOKENIZER, file="tokenizer"),
    )


TINY_T2V = Preset(
    name="tiny-t2v",
    summary="text to video in seconds on a CPU: coloured shapes that move",
    task=TextToVideo(),
    parts=_parts("t2v"),
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
    sizes=((64, 64),),
    # A least-squares fit of ours, 4 prompts of 10, 20 and 30 steps: by how much a step changes the velocity.
    tea_cache=(-1058.29, 355.83, -35.3706, 2.19054, -0.0108377),
    bundled="tiny",
    world=_WORLD,
)

TINY_TI2V = replace(
    TINY_T2V,
    name="tiny-ti2v",
    summary="text and image to video in seconds on a CPU",
    task=TextImageToVideo(),
    tea_cache=(),
    sampling=replace(TINY_T2V.sampling, guidance_scale=2.0),
)

TINY_I2V = replace(
    TINY_T2V,
    name="tiny-i2v",
    summary="image to video by channels in seconds on a CPU",
    task=ImageToVideo(),
    tea_cache=(),
    parts=_parts("i2v", replace(TINY_DIT, in_dim=2 * TINY_VAE.z_dim + 4)),
)

TINY_MOE = replace(
    TINY_T2V,
    name="tiny-moe",
    summary="text to video with two experts in seconds on a CPU",
    sampling=replace(TINY_T2V.sampling, guidance_scale=Experts(high=3.0, low=3.0)),
    parts=(
        *(Part(name="dit", family=DIT, file=expert, config=TINY_DIT, expert=expert) for expert in ("high", "low")),
        *TINY_T2V.parts[1:],
    ),
    boundary=0.875,
    tea_cache=(),
)

TINY_SPEECH_ENCODER = Wav2Vec2Config(
    dim=32, ffn_dim=64, num_heads=2, num_layers=2, conv_dims=(16,) * 7, position_kernel=16, position_groups=4
)

TINY_S2V_DIT = S2VConfig(
    **vars(TINY_DIT),
    cond_dim=TINY_VAE.z_dim,
    audio_dim=TINY_SPEECH_ENCODER.dim,
    audio_layers=TINY_SPEECH_ENCODER.states,
    audio_inject_layers=(0, 2, 4),
)

# A folder of its own: beside the other transformers it would be taken for one of two experts.
_SPEAKER = Path(str(files("wan_core") / "weights" / "tiny-s2v"))

# Clips of a second, each after a second of history; without guidance, which it does not need.
TINY_S2V = replace(
    TINY_T2V,
    name="tiny-s2v",
    summary="speech to video in seconds on a CPU: a face whose mouth opens with the loudness of the sound",
    task=SpeechToVideo(infer_frames=16, motion_frames=17),
    parts=(
        Part(name="dit", family=S2V, file=str(_SPEAKER / "s2v"), config=TINY_S2V_DIT),
        *TINY_T2V.parts[1:],
        Part(name="audio_encoder", family=WAV2VEC2, file=str(_SPEAKER / "wav2vec2"), config=TINY_SPEECH_ENCODER),
    ),
    sampling=replace(TINY_T2V.sampling, fps=16, num_inference_steps=10, guidance_scale=1.0),
    tea_cache=(),
    world=(
        "it animates a round face, red, green, yellow, orange, purple or cyan, on a black, white, gray, blue or pink "
        "background, whose mouth opens with the loudness; 'wan download s2v-14B' fetches a model that knows people"
    ),
)

TINY_CLIP = CLIPConfig(image_size=56, patch_size=14, dim=48, ffn_dim=96, num_heads=4, num_layers=3)

TINY_ANIMATE_DIT = AnimateDiTConfig(
    **{
        **vars(TINY_DIT),
        "in_dim": 2 * TINY_VAE.z_dim + 4,
        "image_dim": TINY_CLIP.dim,
        "image_tokens": TINY_CLIP.num_tokens,
    },
    pose_dim=TINY_VAE.z_dim,
    motion_encoder_channels=(16, 16, 32, 32),
    motion_style_dim=32,
    motion_dim=8,
    motion_encoder_dim=32,
    face_encoder_hidden_dim=32,
    inject_face_latents_blocks=2,
)

_ACTOR = Path(str(files("wan_core") / "weights" / "tiny-animate"))

# Segments of 13 frames; without guidance, as the release. CLIP was trained for tiny-bindweave, which shares it.
TINY_ANIMATE = replace(
    TINY_T2V,
    name="tiny-animate",
    summary="a stick person in the clothes of a picture moves as another one does, in seconds on a CPU",
    task=Animate(),
    parts=(
        Part(name="dit", family=ANIMATE, file=str(_ACTOR / "animate"), config=TINY_ANIMATE_DIT),
        *TINY_T2V.parts[1:],
        Part(name="image_encoder", family=CLIP, file=str(_ACTOR / "clip.safetensors"), config=TINY_CLIP),
    ),
    sampling=replace(TINY_T2V.sampling, num_frames=13, fps=16, num_inference_steps=10, guidance_scale=1.0),
    tea_cache=(),
    world=(
        "it moves a stick person, in a shirt and trousers that are green, purple, yellow or white, before a black, "
        "white or green background; 'wan download animate-14B' fetches a model that knows people"
    ),
)
