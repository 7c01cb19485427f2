"""BindWeave: Wan2.1 I2V 14B at 720p, which reads a language model's states and has references in front; a tiny one."""

from dataclasses import replace
from importlib.resources import files
from pathlib import Path

from bindweave.config import BindWeaveConfig, ConnectorConfig
from bindweave.families import BINDWEAVE, CONNECTOR_PART
from bindweave.prompts import NEGATIVE_PROMPT
from bindweave.task import SubjectToVideo
from wan_core.models import CLIPConfig
from wan_core.presets import get_preset

WEIGHTS = Path(str(files("bindweave") / "weights"))
TINY_MLLM = WEIGHTS / "mllm"
"""The language model of tiny-bindweave: a folder of Qwen2.5-VL in small."""
TINY_MLLM_DIM = 80

_I2V = get_preset("i2v-14B-720P")
_BINDWEAVE = _I2V.with_part("dit", family=BINDWEAVE, config=BindWeaveConfig(**vars(_I2V.dit)))

BINDWEAVE_14B = replace(
    _BINDWEAVE,
    parts=(*_BINDWEAVE.parts, CONNECTOR_PART),
    name="bindweave-14B",
    summary="the subjects of one to four pictures in a video, with BindWeave on Wan2.1 I2V-14B",
    besides="this is Wan2.1's own network; 'bindweave download' also fetches BindWeave's, for --part dit=FOLDER",
    task=SubjectToVideo(),
    sampling=replace(
        _I2V.sampling, num_inference_steps=50, flow_shift=3.0, guidance_scale=5.0, negative_prompt=NEGATIVE_PROMPT
    ),
    sizes=((1280, 720),),
    shifts=(),
    tea_cache=(),
)

EYES = get_preset("tiny-animate").part("image_encoder")
"""The tiny CLIP; its weights are the core's, as the text encoder's are."""
TINY_CLIP: CLIPConfig = EYES.config

_TINY = get_preset("tiny-i2v")
_TINY = replace(
    _TINY,
    parts=(
        *_TINY.parts,
        replace(CONNECTOR_PART, config=ConnectorConfig(dim=TINY_MLLM_DIM, text_dim=_TINY.dit.text_dim)),
        EYES,
    ),
)

TINY_BINDWEAVE = replace(
    # The autoencoder is a change of the tiny one: its decoder knows two colours beside each other.
    _TINY.with_part("vae", file=str(WEIGHTS / "vae.safetensors")).with_part(
        "dit",
        family=BINDWEAVE,
        file=str(WEIGHTS / "dit"),
        config=BindWeaveConfig(
            **{**vars(_TINY.dit), "image_dim": TINY_CLIP.dim, "image_tokens": TINY_CLIP.num_tokens},
            mllm_dim=TINY_MLLM_DIM,
        ),
    ),
    name="tiny-bindweave",
    summary="the plain shape of a picture in a video, roughly, in seconds on a CPU",
    task=SubjectToVideo(),
    sampling=replace(_TINY.sampling, num_frames=13, guidance_scale=2.0),
    world=(
        "it shows a circle, square or triangle about as its picture does, mostly in one colour, and moves it as "
        "prompts such as 'it moves to the right' or 'the first grows, the second stays still, the third moves up' say; "
        "'bindweave download' fetches a model that knows more"
    ),
)
