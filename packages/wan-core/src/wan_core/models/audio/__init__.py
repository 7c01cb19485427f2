"""Sound for networks: the states of a speech model, and those of each video frame."""

from typing import TYPE_CHECKING

from wan_core.lazy import on_demand

if TYPE_CHECKING:
    from wan_core.models.audio.config import WAV2VEC2_LARGE_XLSR_53, Wav2Vec2Config
    from wan_core.models.audio.frames import (
        frame_rows,
        interpolate_states,
        num_audio_clips,
        num_interpolated,
        states_at,
    )
    from wan_core.models.audio.wav2vec2 import Wav2Vec2
else:
    __getattr__, __dir__ = on_demand(__name__)

__all__ = [
    "WAV2VEC2_LARGE_XLSR_53",
    "Wav2Vec2",
    "Wav2Vec2Config",
    "frame_rows",
    "interpolate_states",
    "num_audio_clips",
    "num_interpolated",
    "states_at",
]
