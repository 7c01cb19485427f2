"""Tasks: a request in, the data of a sampling run out."""

from wan_core.tasks.animate import Animate, AnimateRequest
from wan_core.tasks.base import Clip, Components, GeneratedClip, Log, Task, TaskInputs
from wan_core.tasks.conditioning import Conditioning, DecodePlan, Outline, Window
from wan_core.tasks.flf2v import FirstLastFrameToVideo, FLF2VRequest
from wan_core.tasks.i2v import (
    ChannelVideo,
    I2VRequest,
    ImageToVideo,
    encode_channels,
    first_frame_mask,
    first_frame_video,
    image_states,
)
from wan_core.tasks.learning import DROPPED, Companion, ExampleFiles, TrainingClip
from wan_core.tasks.request import Experts, GenerationRequest, SamplingDefaults, SamplingSettings
from wan_core.tasks.s2v import S2VRequest, SpeechToVideo
from wan_core.tasks.t2v import TextToVideo, exact_geometry, is_guided, prompts_of, text_states
from wan_core.tasks.ti2v import (
    AnchoredVideo,
    TextImageToVideo,
    TI2VInputs,
    TI2VRequest,
    encode_images,
    load_anchored,
    prepare_anchor_images,
)

__all__ = [
    "DROPPED",
    "AnchoredVideo",
    "Animate",
    "AnimateRequest",
    "ChannelVideo",
    "Clip",
    "Companion",
    "Components",
    "Conditioning",
    "DecodePlan",
    "ExampleFiles",
    "Experts",
    "FLF2VRequest",
    "FirstLastFrameToVideo",
    "GeneratedClip",
    "GenerationRequest",
    "I2VRequest",
    "ImageToVideo",
    "Log",
    "Outline",
    "S2VRequest",
    "SamplingDefaults",
    "SamplingSettings",
    "SpeechToVideo",
    "TI2VInputs",
    "TI2VRequest",
    "Task",
    "TaskInputs",
    "TextImageToVideo",
    "TextToVideo",
    "TrainingClip",
    "Window",
    "encode_channels",
    "encode_images",
    "exact_geometry",
    "first_frame_mask",
    "first_frame_video",
    "image_states",
    "is_guided",
    "load_anchored",
    "prepare_anchor_images",
    "prompts_of",
    "text_states",
]
