"""Speech to video, clip by clip: a reference image, sound, and if wanted poses; each clip goes on from the one before.

Source: the report on Wan-S2V (arXiv 2508.18621) and the published settings of Wan2.2-S2V-14B; the code is our own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

from wan_core import media, models
from wan_core.errors import CheckpointError, RequestError
from wan_core.files import plain_text
from wan_core.media import LatentSpec, VideoGeometry
from wan_core.tasks.base import Clip, Components, Task, TaskInputs
from wan_core.tasks.conditioning import Conditioning, DecodePlan, Outline
from wan_core.tasks.i2v import image_key
from wan_core.tasks.request import GenerationRequest, SamplingSettings
from wan_core.tasks.speech import Speech, geometry_of_speaker, load_speech, speech_states
from wan_core.tasks.t2v import text_states

if TYPE_CHECKING:
    from torch import Tensor

PROMPT = "A person speaks to the camera, with a lively face and natural gestures; the lips move with the words."
"""What is made where a request says nothing else."""

MAX_INFER_FRAMES = 120
"""Beyond it a frame would stand where the reference does."""

PACKED_PATCHES = 4
"""Patches along a side that the history has one token for, at its coarsest."""

_SETTLING_FRAMES = 3  # the first of a video that has no frames before it are left out
_REPEATED_REFERENCE = 6  # video frames of history that are the reference, where the video starts from it
_OPTION = "option"


@dataclass(frozen=True, kw_only=True)
class S2VRequest(GenerationRequest):
    """Sound and the image of who speaks. ``width`` x ``height`` is the area; the image gives the aspect ratio.

    ``infer_frames`` are the video frames of a clip, a multiple of 4, None the model's own; ``num_clip`` None is as many
    as the sound needs.
    """

    prompt: str = PROMPT
    image: Path | None = field(default=None, metadata={_OPTION: ("--image",), "help": "The picture of who speaks."})
    audio: Path | None = field(
        default=None, metadata={_OPTION: ("--audio",), "help": "What is heard: an audio file, or a video with sound."}
    )
    pose_video: Path | None = field(
        default=None, metadata={_OPTION: ("--pose-video",), "help": "A video of skeletons to move like."}
    )
    num_clip: int | None = field(
        default=None, metadata={_OPTION: ("--num-clip",), "help": "Clips; default: as many as the sound needs."}
    )
    infer_frames: int | None = field(
        default=None,
        metadata={_OPTION: ("--infer-frames",), "help": "Frames of a clip, 4n; S2V-14B was trained on 80 and 48."},
    )
    start_from_ref: bool = field(
        default=False, metadata={_OPTION: ("--start-from-ref",), "help": "Let the video begin with the picture."}
    )
    align_audio: bool = field(
        default=False,
        metadata={_OPTION: ("--align-audio",), "help": "Start the sound 3 frames in, where the picture does."},
    )
    enable_tts: bool = field(
        default=False,
        metadata={_OPTION: ("--enable-tts",), "help": "The original's speech from text; not here.", "recorded": False},
    )
    tts_prompt_audio: Path | None = field(
        default=None,
        metadata={_OPTION: ("--tts-prompt-audio",), "help": "See --enable-tts.", "recorded": False},
    )
    tts_prompt_text: str | None = field(
        default=None,
        metadata={_OPTION: ("--tts-prompt-text",), "help": "See --enable-tts.", "recorded": False},
    )
    tts_text: str | None = field(
        default=None, metadata={_OPTION: ("--tts-text",), "help": "See --enable-tts.", "recorded": False}
    )

    def validate(self) -> None:
        super().validate()
        if self.enable_tts or self.tts_prompt_audio or self.tts_prompt_text or self.tts_text:
            raise RequestError(
                "speech is not made from text here: make it with CosyVoice2 or another program, give it with --audio, "
                "and leave --enable-tts and --tts-... out"
            )
        if self.image is None:
            raise RequestError("this task needs a picture of who speaks; give it with --image PATH")
        if self.audio is None:
            raise RequestError("this task needs sound; give an audio file, or a video with sound, with --audio PATH")
        if self.num_clip is not None and self.num_clip < 1:
            raise RequestError(f"num_clip must be at least 1, got {self.num_clip}; leave it out for all of the sound")
        if self.num_frames is not None:
            raise RequestError(
                "the length follows the sound; take --num-clip and --infer-frames instead of --frame-num"
            )
        frames = 4 if self.infer_frames is None else self.infer_frames
        if not 4 <= frames <= MAX_INFER_FRAMES or frames % 4:
            below = min(max(frames // 4 * 4, 4), MAX_INFER_FRAMES)
            raise RequestError(
                f"infer_frames must be a multiple of 4 from 4 to {MAX_INFER_FRAMES}, got {frames}; "
                f"{below} is the nearest below"
            )


@dataclass(frozen=True, kw_only=True)
class S2VTaskInputs(TaskInputs[S2VRequest]):
    """``image`` [3, H, W] in [-1, 1]; every ``pose_interval``-th frame of the pose video is taken."""

    image: Tensor
    speech: Speech
    clips: int
    pose_interval: int = 1

    @property
    def clip_frames(self) -> int:
        """Video frames of a clip."""
        return cast(int, self.request.infer_frames)

    def record(self) -> dict[str, Any]:
        """Without a number of frames, which the sound gives."""
        return {name: value for name, value in super().record().items() if name != "num_frames"}


@dataclass(frozen=True, kw_only=True)
class S2VOutline(Outline):
    """A clip, and the video frames before it, ``history`` [1, 3, M, H, W] in [-1, 1].

    ``poses`` is the pose video, where there is one, which the next clip reads on.
    """

    history: Tensor
    poses: media.VideoFrames | None


@dataclass(frozen=True, kw_only=True)
class S2VConditioning(S2VOutline, Conditioning):
    """The conditions of a clip with its outline."""


class SpeechToVideo(Task[S2VRequest, S2VTaskInputs]):
    """Wan2.2 S2V: ``fps`` is the rate it was trained for, ``infer_frames`` (4n) the frames of a clip, ``motion_frames``
    (4n+1) how much of the past it sees."""

    request_type: ClassVar[type[GenerationRequest]] = S2VRequest
    prompt_kind: ClassVar[str] = "s2v"

    def __init__(self, *, fps: int = 16, infer_frames: int = 80, motion_frames: int = 73) -> None:
        self.fps = fps
        self.infer_frames = infer_frames
        self.motion_frames = motion_frames

    def load(self, request: S2VRequest, settings: SamplingSettings, latent_spec: LatentSpec) -> S2VTaskInputs:
        if settings.fps != self.fps:
            raise RequestError(f"this model makes {self.fps} frames per second, got {settings.fps}; leave --fps out")
        frames = self.infer_frames if request.infer_frames is None else request.infer_frames
        still = media.load_image(cast(Path, request.image))
        area, multiple = settings.width * settings.height, latent_spec.height_multiple * PACKED_PATCHES
        geometry = geometry_of_speaker(still, area, latent_spec, frames + 1, multiple)
        # What is dropped is so at the start alone; from the reference on there is nothing to drop.
        dropped = 0 if request.start_from_ref else _SETTLING_FRAMES
        speech = load_speech(cast(Path, request.audio), align=-dropped / self.fps if request.align_audio else 0.0)
        clips, notes = self._num_clips(request.num_clip, speech, frames)
        interval, more = self._pose_interval(request.pose_video, clips * frames)
        return S2VTaskInputs(
            request=replace(request, infer_frames=frames),
            settings=settings,
            geometry=replace(geometry, num_frames=clips * frames - dropped),
            notes=(*speech.notes, *notes, *more),
            sound=speech.sound,
            image=media.image_to_tensor(media.fit_short_side(still, geometry.width, geometry.height)),
            speech=speech,
            clips=clips,
            pose_interval=interval,
        )

    def _num_clips(self, wanted: int | None, speech: Speech, frames: int) -> tuple[int, list[str]]:
        """How many clips are made, of as many as the sound is long enough for."""
        there = speech.num_clips(frames, self.fps)
        asked = there if wanted is None else wanted
        if asked > there:
            return there, [f"the sound is long enough for {there} clips, not for {asked}"]
        states = models.num_interpolated(models.WAV2VEC2_LARGE_XLSR_53.num_moments(len(speech.waveform)))
        if 1 < asked != models.num_audio_clips(states - 1, frames, self.fps):  # a whole number of clips
            return asked, [f"the last clip holds silence alone; --num-clip {asked - 1} leaves it out"]
        return asked, []

    def _pose_interval(self, poses: Path | None, frames: int) -> tuple[int, list[str]]:
        """Every how many-th frame of the pose video is taken; a rate that does not divide changes its pace."""
        if poses is None:
            return 1, []
        info, name = media.probe_video(poses), plain_text(poses)
        interval = max(1, round(info.fps / self.fps))
        notes = [f"{name} {note}" for note in info.notes]
        pace = self.fps * interval / info.fps
        if abs(pace - 1) > 0.01:
            notes.append(
                f"{name} has {info.fps:g} frames per second, of which every {interval}. is taken: its poses move "
                f"{pace:.2f} times as fast; encode it at {self.fps} to keep their time"
            )
        if info.num_frames is not None and info.num_frames <= (frames - 1) * interval:
            notes.append(f"{name} is shorter than the video; the rest is made without poses")
        return interval, notes

    def check(self, inputs: S2VTaskInputs, components: Components) -> S2VTaskInputs:
        encoder, network = components.configs["audio_encoder"], components.configs["dit"]
        if (encoder.dim, encoder.states) != (network.audio_dim, network.audio_layers):
            raise CheckpointError(
                f"{components.found['audio_encoder']} makes {encoder.states} states of width {encoder.dim}, the "
                f"network hears {network.audio_layers} of {network.audio_dim}; they belong to different models"
            )
        samples = len(inputs.speech.waveform)
        moments, wanted = (each.num_moments(samples) for each in (encoder, models.WAV2VEC2_LARGE_XLSR_53))
        if moments != wanted:  # clips are counted by it, and lips would move at another pace than the sound
            raise CheckpointError(
                f"{components.found['audio_encoder']} makes {moments} states of this sound, {wanted} are needed; take "
                "an encoder with conv_kernel and conv_stride of wav2vec2-large-xlsr-53"
            )
        return inputs

    def num_clips(self, inputs: S2VTaskInputs) -> int:
        return inputs.clips

    def tokens_at_once(self, inputs: S2VTaskInputs) -> int:
        clip = self._clip_geometry(inputs)
        beside = 1 + 3 / 2  # the reference, and the history: newest frame whole, the others coarser
        return clip.num_tokens + int(clip.tokens_per_frame * beside)

    def _clip_geometry(self, inputs: S2VTaskInputs) -> VideoGeometry:
        return replace(inputs.geometry, num_frames=inputs.clip_frames - self._stride(inputs) + 1)

    def describe(self, inputs: S2VTaskInputs) -> Mapping[str, object]:
        geometry = inputs.geometry
        return {
            "width": geometry.width,
            "height": geometry.height,
            "num_frames": geometry.num_frames,
            "seconds": round(geometry.num_frames / self.fps, 2),
            "latent_shape": [1, *self._clip_geometry(inputs).latent_shape],
            "tokens": self.tokens_at_once(inputs),
            "clips": inputs.clips,
        }

    def outline(self, inputs: S2VTaskInputs, components: Components, clip: Clip) -> S2VOutline:
        history = self._history(inputs, clip)
        reference, motion = _reference(inputs, components), None
        if clip.index > 0:
            motion = _encoded(history, components)
        elif inputs.request.start_from_ref:
            key = image_key(inputs.image)
            motion = components.once("first motion", key, lambda: _encoded(history, components))
        # A video that begins is decoded behind its reference, which is one frame.
        seen = 1 + _SETTLING_FRAMES if motion is None else self.motion_frames
        depth, rows, columns = reference.shape[1], *reference.shape[3:]
        return S2VOutline(
            latent_shape=(1, depth, inputs.clip_frames // self._stride(inputs), rows, columns),
            decode=DecodePlan(prefix=reference if motion is None else motion, drop_frames=seen),
            history=history,
            poses=self._pose_video(inputs, clip),
        )

    def condition(self, inputs: S2VTaskInputs, components: Components, clip: Clip) -> S2VConditioning:
        import torch

        size = inputs.clip_frames
        context, negative = text_states(inputs, components)
        states = self.speech_states(inputs, components)[..., clip.index * size : (clip.index + 1) * size]
        audio = states.to(components.device)
        with components.vae.held():
            outline = self.outline(inputs, components, clip)
            poses = self._poses(inputs, outline.poses, clip.index)
            reference, before = _reference(inputs, components), outline.decode.prefix
            pose_latents = None if poses is None else _encoded(poses, components)[:, :, 1:]
        positive = models.S2VInputs(
            context=context,
            audio=audio,
            reference_latents=reference,
            motion_latents=None if before is reference else before,
            pose_latents=pose_latents,
            motion_frames=(self.motion_frames, self._latent_frames(inputs, self.motion_frames)),
        )
        unheard = None if negative is None else replace(positive, context=negative, audio=torch.zeros_like(audio))
        return S2VConditioning(
            positive=positive,
            negative=unheard,
            latent_shape=outline.latent_shape,
            decode=outline.decode,
            history=outline.history,
            poses=outline.poses,
        )

    def _stride(self, inputs: S2VTaskInputs) -> int:
        return inputs.geometry.spec.temporal_stride

    def _latent_frames(self, inputs: S2VTaskInputs, frames: int) -> int:
        return (frames - 1) // self._stride(inputs) + 1

    def speech_states(self, inputs: S2VTaskInputs, components: Components) -> Tensor:
        """The states of every video frame of all clips, [1, layers, dim, frames], on the CPU."""
        size = inputs.clip_frames
        key = inputs.speech.sound.sha256, inputs.speech.waveform.shape, size
        return components.once(
            "speech states",
            key,
            lambda: speech_states(inputs.speech, components, clip_frames=size, fps=self.fps).float().cpu(),
        )

    def _history(self, inputs: S2VTaskInputs, clip: Clip) -> Tensor:
        """The video frames before a clip: grey before the first, or what the video is to start from."""
        import torch

        if clip.previous_frames is not None:
            before = cast(S2VOutline, clip.previous).history
            return torch.cat([before, clip.previous_frames.to(before)], dim=2)[:, :, -self.motion_frames :]
        history = torch.zeros(1, 3, self.motion_frames, *inputs.image.shape[1:])
        if inputs.request.start_from_ref:
            history[:, :, -_REPEATED_REFERENCE:] = inputs.image[:, None]
        return history

    def _pose_video(self, inputs: S2VTaskInputs, clip: Clip) -> media.VideoFrames | None:
        """The pose video, where the clip before has left it."""
        if clip.previous is not None:
            return cast(S2VOutline, clip.previous).poses
        return None if inputs.request.pose_video is None else media.VideoFrames(inputs.request.pose_video)

    def _poses(self, inputs: S2VTaskInputs, video: media.VideoFrames | None, index: int) -> Tensor | None:
        """The skeletons of a clip, its first one twice: [1, 3, 1 + frames, H, W] in [-1, 1], black after the last."""
        import torch

        if video is None:
            return None
        size, height, width = inputs.clip_frames, inputs.geometry.height, inputs.geometry.width
        frames = torch.full((3, 1 + size, height, width), -1.0)
        for place, pixels in enumerate(self.pose_frames(inputs, video, index * size, size), start=1):
            frames[:, place] = media.fit_frame(pixels.float().div(255).mul(2).sub(1), width, height)
        frames[:, 0] = frames[:, 1]
        return frames[None]

    def pose_frames(self, inputs: S2VTaskInputs, video: media.VideoFrames, first: int, count: int) -> Iterator[Tensor]:
        """Up to ``count`` of the frames taken from the pose video, from number ``first`` on: [3, H, W] uint8 each."""
        interval = inputs.pose_interval
        return video.frames(range(first * interval, (first + count) * interval, interval))


def _reference(inputs: S2VTaskInputs, components: Components) -> Tensor:
    """The latents of the picture, [1, C, 1, h, w]."""
    return components.once(
        "reference", image_key(inputs.image), lambda: _encoded(inputs.image[None, :, None], components)
    )


def _encoded(video: Tensor, components: Components) -> Tensor:
    with components.vae.active() as vae:
        encoded: Tensor = vae.encode(video.to(components.device))
    return encoded
