"""A character moves as a driving video does, or takes a person's place in it; segment by segment, each from the last.

Source: the report on Wan-Animate (arXiv 2509.14055) and the published settings of Wan2.2-Animate-14B; the code is our
own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

from wan_core import media, models
from wan_core.errors import RequestError
from wan_core.files import plain_text
from wan_core.media import LatentSpec, VideoGeometry
from wan_core.tasks.base import Clip, Components, TaskInputs
from wan_core.tasks.conditioning import Conditioning, DecodePlan, Outline
from wan_core.tasks.driving_folder import BACKGROUND, FACE, MASK, POSE, REFERENCE, Driving, DrivingVideos, load_driving
from wan_core.tasks.i2v import ChannelVideo, encode_channels, image_key, image_states
from wan_core.tasks.request import GenerationRequest, SamplingSettings
from wan_core.tasks.segments import known_channels, mirrored, num_segments
from wan_core.tasks.t2v import text_states

if TYPE_CHECKING:
    from torch import Tensor

PROMPT = "视频中的人在做动作"
"""What is made where a request says nothing else: the person in the video performs actions."""

RELIGHTING = "relighting_lora.ckpt"
"""The LoRA that fits a character into the light of a scene, in the folder of the checkpoint."""

REFERT_NUMS = (1, 5)
"""How many frames segments may overlap by: those that the model was trained with."""

_OPTION = "option"
_SAME_LENGTH = 0.1  # seconds


@dataclass(frozen=True, kw_only=True)
class AnimateRequest(GenerationRequest):
    """A folder that `wan prepare-animate` wrote. ``num_frames`` are those of a segment, 4n+1; the video is as long and
    as large as the driving one, and ``width`` and ``height`` must say so if they are given.

    ``refert_num``: with how many frames of the segment before it a segment begins, 1 or 5.
    """

    prompt: str = PROMPT
    src_root_path: Path | None = field(
        default=None, metadata={_OPTION: ("--src-root-path",), "help": "The folder that wan prepare-animate wrote."}
    )
    refert_num: int = field(
        default=1, metadata={_OPTION: ("--refert-num",), "help": "Frames that segments overlap by, 1 or 5; default 1."}
    )
    replace_flag: bool = field(
        default=False,
        metadata={_OPTION: ("--replace-flag",), "help": "Put the character into the driving video's scene."},
    )
    use_relighting_lora: bool = field(
        default=False,
        metadata={
            _OPTION: ("--use-relighting-lora",),
            "help": "Fit the character into the light of the scene; for --replace-flag.",
            "lora": RELIGHTING,
        },
    )
    audio: Path | None = field(
        default=None,
        metadata={_OPTION: ("--audio",), "help": "Sound for the video: the driving one, or an audio file."},
    )

    def validate(self) -> None:
        super().validate()
        if self.src_root_path is None:
            raise RequestError(
                "this task needs the folder that 'wan prepare-animate' wrote; give it with --src-root-path DIR"
            )
        if self.refert_num not in REFERT_NUMS:
            raise RequestError(f"refert_num must be {' or '.join(map(str, REFERT_NUMS))}, got {self.refert_num}")


@dataclass(frozen=True, kw_only=True)
class AnimateTaskInputs(TaskInputs[AnimateRequest]):
    """``image`` [3, H, W] in [-1, 1] is the reference at the size of the video; ``segment`` the geometry of a clip."""

    driving: Driving
    image: Tensor
    segment: VideoGeometry

    def begin(self, index: int) -> int:
        """The frame of the driving video, extended to whole segments, that a segment begins with."""
        return index * (self.segment.num_frames - self.request.refert_num)

    def places(self, index: int) -> list[int]:
        """The frames of the driving video that a segment is made by."""
        begin, end = self.begin(index), self.begin(index) + self.segment.num_frames
        return [mirrored(at, self.driving.num_frames) for at in range(begin, end)]

    def record(self) -> dict[str, Any]:
        """Without a rate that nobody asked for: it is that of the poses."""
        left_out = {"fps"} if self.request.fps is None else set()
        return {name: value for name, value in super().record().items() if name not in left_out}

    @property
    def files(self) -> Mapping[str, Path]:
        """What is read of the folder."""
        return {name: self.driving.folder / name for name in self.driving.names}


@dataclass(frozen=True, kw_only=True)
class AnimateConditioning(Conditioning):
    """The conditions of a segment but for its ``face``, [N, 3, H, W] uint8, which the network itself encodes.

    ``videos`` are the driving ones, which the next segment reads on.
    """

    face: Tensor
    videos: DrivingVideos


class Animate(ChannelVideo[AnimateRequest, AnimateTaskInputs]):
    """Wan2.2 Animate: the reference is the first latent frame; poses, a face and, in replacement, a scene are given."""

    request_type: ClassVar[type[GenerationRequest]] = AnimateRequest
    prompt_kind: ClassVar[str] = ""

    def load(self, request: AnimateRequest, settings: SamplingSettings, latent_spec: LatentSpec) -> AnimateTaskInputs:
        _check_segment(request.refert_num, settings.num_frames, latent_spec)
        driving = load_driving(cast(Path, request.src_root_path), replaces=request.replace_flag)
        size = media.FrameSize(driving.width, driving.height)
        if request.width is not None and (request.width, request.height) != size:
            raise RequestError(
                f"the video has the size of {POSE}, {size.width}*{size.height}, got {request.width}*{request.height}; "
                "leave --size out, or give another --resolution_area to 'wan prepare-animate'"
            )
        segment = _segment(driving, settings.num_frames, latent_spec)
        still = media.fit_padded(media.load_image(driving.folder / REFERENCE), size.width, size.height)
        rate = request.fps or driving.fps
        sound, notes = _sound(request.audio, driving.num_frames / rate)
        return AnimateTaskInputs(
            request=request,
            settings=replace(settings, width=size.width, height=size.height, fps=rate),
            geometry=replace(segment, num_frames=driving.num_frames),
            notes=(*driving.notes, *_notes(request, driving), *notes),
            sound=sound,
            driving=driving,
            image=media.image_to_tensor(still),
            segment=segment,
        )

    def check(self, inputs: AnimateTaskInputs, components: Components) -> AnimateTaskInputs:
        if inputs.request.use_relighting_lora and all(path.name != RELIGHTING for path in components.loras):
            raise RequestError(
                f"the model was loaded without its relighting LoRA; load it with {RELIGHTING} among its loras"
            )
        return inputs

    def num_clips(self, inputs: AnimateTaskInputs) -> int:
        return num_segments(inputs.driving.num_frames, inputs.segment.num_frames, inputs.request.refert_num)

    def noise_seed(self, seed: int, clip: Clip) -> int:
        """One generator makes the noise of all segments."""
        return seed

    def tokens_at_once(self, inputs: AnimateTaskInputs) -> int:
        return inputs.segment.num_tokens + inputs.segment.tokens_per_frame  # those of the reference, too

    def describe(self, inputs: AnimateTaskInputs) -> Mapping[str, object]:
        segment = inputs.segment
        return {
            **super().describe(inputs),
            "segment_frames": segment.num_frames,
            "fps": inputs.settings.fps,
            "seconds": round(inputs.geometry.num_frames / inputs.settings.fps, 2),
            "latent_shape": list(_latent_shape(segment)),
        }

    def outline(self, inputs: AnimateTaskInputs, components: Components, clip: Clip) -> Outline:
        seen = inputs.request.refert_num if clip.index else 0
        left = inputs.geometry.num_frames - inputs.begin(clip.index) - seen
        return Outline(
            latent_shape=_latent_shape(inputs.segment),
            decode=DecodePlan(drop_latent_frames=1, drop_frames=seen, keep_frames=left),
        )

    def condition(self, inputs: AnimateTaskInputs, components: Components, clip: Clip) -> AnimateConditioning:
        import torch

        videos, places = _opened(inputs, clip), inputs.places(clip.index)
        context, negative = text_states(inputs, components)
        key = image_key(inputs.image)
        states = components.once("reference states", key, lambda: image_states([inputs.image], components))
        with components.vae.held():
            reference = components.once("reference channels", key, lambda: _reference_channels(inputs, components))
            channels = torch.cat([reference, _segment_channels(inputs, components, clip, videos)], dim=2)
            with components.vae.active() as vae:
                poses = vae.encode(_video(videos.frames(POSE, places)).to(components.device))
        positive = models.AnimateInputs(
            context=context,
            image_context=states,
            channel_concat=channels,
            pose_latents=poses,
            face_tokens=torch.empty(0),  # the network's own work, see finish
        )
        outline = self.outline(inputs, components, clip)
        return AnimateConditioning(
            positive=positive,
            negative=None if negative is None else replace(positive, context=negative),
            latent_shape=outline.latent_shape,
            decode=outline.decode,
            earlier_draws=clip.index,
            face=videos.frames(FACE, places),
            videos=videos,
        )

    def finish(self, conditioning: Conditioning, components: Components) -> Conditioning:
        import torch

        conditioning = cast(AnimateConditioning, conditioning)
        positive = cast(models.AnimateInputs, conditioning.positive)
        negative = cast(models.AnimateInputs | None, conditioning.negative)
        network = cast(models.AnimateDiT, components.networks[0].module())
        side = components.configs["dit"].face_size
        pixels = _video(conditioning.face)[0].unbind(1)
        faces = torch.stack([media.fit_frame(each, side, side) for each in pixels], dim=1)[None].to(components.device)
        tokens = network.encode_face(faces)
        if negative is not None:
            # Guidance leads away from no face at all, as away from the negative prompt.
            none = components.once("no face", faces.shape, lambda: network.encode_face(torch.full_like(faces, -1.0)))
            negative = replace(negative, face_tokens=none)
        return replace(conditioning, positive=replace(positive, face_tokens=tokens), negative=negative)


def _check_segment(overlap: int, frames: int, latent_spec: LatentSpec) -> None:
    stride = latent_spec.temporal_stride
    least = -(-(2 * overlap - 1) // stride) * stride + 1
    if 0 < frames < least:  # each segment adds as many frames at least as the next one begins with
        raise RequestError(
            f"num_frames, those of a segment, must be at least {least} with refert_num {overlap}, got {frames}"
        )
    VideoGeometry.for_video(latent_spec, frames, latent_spec.height_multiple, latent_spec.width_multiple)


def _segment(driving: Driving, frames: int, latent_spec: LatentSpec) -> VideoGeometry:
    try:
        return VideoGeometry.for_video(latent_spec, frames, driving.height, driving.width)
    except RequestError as error:
        name = plain_text(driving.folder / POSE)
        raise RequestError(f"{name}: {error}; 'wan prepare-animate' writes such sizes") from error


def _notes(request: AnimateRequest, driving: Driving) -> list[str]:
    notes = []
    if request.fps is not None and request.fps != driving.fps:
        notes.append(
            f"{POSE} has {driving.fps:g} frames per second; at {request.fps} it moves "
            f"{request.fps / driving.fps:.2f} times as fast"
        )
    if request.use_relighting_lora and not request.replace_flag:
        notes.append("the relighting LoRA was made for --replace-flag, where there is a scene to take the light from")
    return notes


def _sound(path: Path | None, seconds: float) -> tuple[media.AudioTrack | None, list[str]]:
    """The sound of a video of so many seconds, with silence behind it where it is too short, and notes."""
    if path is None:
        return None, []
    track, name = media.load_audio(path), plain_text(path)
    notes = [f"audio {name} {note}" for note in track.notes]
    if abs(track.seconds - seconds) > _SAME_LENGTH:
        notes.append(f"audio {name} lasts {track.seconds:.2f} s, the video {seconds:.2f} s")
    return media.lengthened(track, seconds), notes


def _opened(inputs: AnimateTaskInputs, clip: Clip) -> DrivingVideos:
    """The driving videos, where the segment before has left them."""
    before = clip.previous
    return before.videos if isinstance(before, AnimateConditioning) else inputs.driving.open(inputs.request.refert_num)


def _latent_shape(segment: VideoGeometry) -> tuple[int, ...]:
    """Of the reference and a segment."""
    depth, frames, rows, columns = segment.latent_shape
    return 1, depth, 1 + frames, rows, columns


def _video(frames: Tensor) -> Tensor:
    """Frames [N, 3, H, W] uint8 as a video [1, 3, N, H, W] in [-1, 1]."""
    return frames.float().div(127.5).sub(1).transpose(0, 1)[None]


def _reference_channels(inputs: AnimateTaskInputs, components: Components) -> Tensor:
    """[1, stride + C, 1, h, w]: the reference is known all over."""
    rows, columns = inputs.segment.latent_height, inputs.segment.latent_width
    mask = known_channels(inputs.image.new_ones(1, 1, rows, columns), 1, inputs.segment.spec.temporal_stride)
    return encode_channels(inputs.image[None, :, None], mask, components)


def _segment_channels(inputs: AnimateTaskInputs, components: Components, clip: Clip, videos: DrivingVideos) -> Tensor:
    """[1, stride + C, T, h, w] of what a segment begins with, then of the scene, or of grey where nothing is known."""
    segment, previous = inputs.segment, clip.previous_frames
    spec, frames = segment.spec, segment.num_frames
    if inputs.driving.replaces:
        places, step = inputs.places(clip.index), spec.spatial_stride
        video = _video(videos.frames(BACKGROUND, places))
        shown = 1 - videos.frames(MASK, places)[None, :, 0, ::step, ::step] / 255
    else:
        video = inputs.image.new_zeros(1, 3, frames, segment.height, segment.width)
        shown = inputs.image.new_zeros(1, frames, segment.latent_height, segment.latent_width)
    known = 0
    if previous is not None:
        known = inputs.request.refert_num
        video[:, :, :known] = previous[:, :, -known:].to(video)
    channels = known_channels(shown, known, spec.temporal_stride)
    if previous is None and not inputs.driving.replaces:
        return components.once("grey channels", video.shape, lambda: encode_channels(video, channels, components))
    return encode_channels(video, channels, components)
