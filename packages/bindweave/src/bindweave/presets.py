"""BindWeave: Wan2.1 I2V 14B at 720p, which reads a language model's states and has references in front."""

from dataclasses import replace

from bindweave.config import BindWeaveConfig
from bindweave.families import BINDWEAVE, CONNECTOR_PART
from bindweave.prompts import NEGATIVE_PROMPT
from bindweave.task import SubjectToVideo
from wan_core.presets import get_preset

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
