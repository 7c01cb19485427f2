"""Tasks: a request in, the data of a sampling run out."""

from wan_core.tasks.base import (
    Clip,
    Components,
    Conditioning,
    DecodePlan,
    Experts,
    GeneratedClip,
    GenerationRequest,
    Log,
    SamplingDefaults,
    SamplingSettings,
    Task,
    TaskInputs,
)
from wan_core.tasks.flf2v import FirstLastFrameToVideo, FLF2VRequest
from wan_core.tasks.i2v import I2VRequest, ImageToVideo
from wan_core.tasks.prompts import encode_prompts
from wan_core.tasks.t2v import TextToVideo, exact_geometry
from wan_core.tasks.ti2v import TextImageToVideo, TI2VInputs, TI2VRequest, encode_pictures, prepare_anchor_images

__all__ = [
    "Clip",
    "Components",
    "Conditioning",
    "DecodePlan",
    "Experts",
    "FLF2VRequest",
    "FirstLastFrameToVideo",
    "GeneratedClip",
    "GenerationRequest",
    "I2VRequest",
    "ImageToVideo",
    "Log",
    "SamplingDefaults",
    "SamplingSettings",
    "TI2VInputs",
    "TI2VRequest",
    "Task",
    "TaskInputs",
    "TextImageToVideo",
    "TextToVideo",
    "encode_pictures",
    "encode_prompts",
    "exact_geometry",
    "prepare_anchor_images",
]
