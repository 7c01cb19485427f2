"""From the states of a speech model to those of each video frame: their rate is changed, then rows are picked.

Rates and rounding are those of Wan2.2 S2V: 50 states a second become 30, and of these each video frame has the nearest.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional

SPEECH_STATE_RATE = 50
"""States of wav2vec2 a second of 16 kHz."""

STATE_RATE = 30
"""States a second from which those of video frames are picked."""


def num_interpolated(num_states: int, source_rate: float = SPEECH_STATE_RATE, rate: float = STATE_RATE) -> int:
    """How many states `interpolate_states` gives."""
    return int(num_states / source_rate * rate)


def interpolate_states(states: Tensor, source_rate: float = SPEECH_STATE_RATE, rate: float = STATE_RATE) -> Tensor:
    """States [L, T, C] of ``source_rate`` a second as [L, T', C] of ``rate``, linear in time, both ends kept."""
    count = num_interpolated(states.shape[1], source_rate, rate)
    return functional.interpolate(states.mT, size=count, mode="linear", align_corners=True).mT


def num_audio_clips(num_states: int, batch_frames: int, fps: float, rate: float = STATE_RATE) -> int:
    """How many clips of ``batch_frames`` video frames hold so many states; an exact multiple has one more."""
    return int(num_states / (batch_frames * rate / fps)) + 1


def frame_rows(num_states: int, batch_frames: int, fps: float, rate: float = STATE_RATE) -> Tensor:
    """The row of the state that each video frame has, int64, for all frames of all clips.

    Those behind the last state, at or beyond ``num_states``, are silence.
    """
    frames = num_audio_clips(num_states, batch_frames, fps, rate) * batch_frames
    seconds = frames / fps
    times = torch.arange(frames, dtype=torch.float64) * (seconds / frames)
    return (times * rate).round().long().clamp(0, math.ceil(seconds * rate) - 1)


def strided_rows(num_states: int, batch_frames: int, stride: int) -> Tensor:
    """As `frame_rows`, where a video frame lasts ``stride`` states."""
    clips = int(num_states / (batch_frames * stride)) + 1
    return torch.arange(clips * batch_frames) * stride


def states_at(states: Tensor, rows: Tensor, *, reach: int = 0, step: int = 1) -> Tensor:
    """States [L, T, C] at rows [N]: [N, L, C * (2 * reach + 1)], zeros for rows at or beyond T.

    Each has ``reach`` neighbours on both sides beside it, every ``step`` rows, within 0 and T - 1.
    """
    around = torch.arange(-reach, reach + 1) * step
    picked = (rows[:, None] + around).clamp(0, states.shape[1] - 1).to(states.device)
    found = states[:, picked].permute(1, 0, 2, 3).flatten(2)
    return found * (rows < states.shape[1]).to(found)[:, None, None]
