"""UniAnimate-DiT, the teacher: Wan2.1 image to video whose tokens also carry a driving motion.

Wang et al., UniAnimate-DiT (2025), on UniAnimate (arXiv 2406.01188). The picture shows who moves and is no frame of the
video; its skeleton tells how the motion's skeletons relate to it. The code is our own, on wan-core's image to video.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from selfforcing_unianimate.picture import channels_at, no_picture, picture_channels, with_reference
from selfforcing_unianimate.pose_options import NOT_RELATED, PosedRequest, motion_notes, no_reference
from selfforcing_unianimate.pose_source import PoseSource, Skeletons, chosen_pictures, frame_indices, open_pose
from selfforcing_unianimate.pose_training import (
    POSE_DROPOUT,
    POSE_FILES,
    check_poses,
    clip_poses,
    encode_posed,
    pose_companion,
    unpack_poses,
    with_poses,
)
from selfforcing_unianimate.pose_weights import POSE_PART, check_pose_encoder
from selfforcing_unianimate.windows import WindowPlan
from wan_core import RequestError, media
from wan_core.media import LatentSpec, VideoGeometry, check_output, plain_text
from wan_core.tasks import (
    ChannelVideo,
    Clip,
    Companion,
    Components,
    Conditioning,
    DecodePlan,
    ExampleFiles,
    GeneratedClip,
    GenerationRequest,
    I2VRequest,
    Log,
    SamplingSettings,
    TaskInputs,
    TrainingClip,
    Window,
    exact_geometry,
    image_states,
)

if TYPE_CHECKING:
    from torch import Tensor, nn

    from wan_core.models import DiTInputs

_FRAMES_AT_ONCE = 6  # latent frames whose skeletons are embedded together: 0.6 GB at 832x480


@dataclass(frozen=True, kw_only=True)
class PoseRequest(PosedRequest, I2VRequest):
    """A prompt, the picture of who moves, and the poses of the motion, in the positive branch if nothing is said."""

    image: Path | None = field(default=None, metadata={"option": ("--image",), "help": "The picture of who moves."})
    side_by_side: Path | None = field(
        default=None,
        metadata={
            "option": ("--side-by-side",),
            "output": True,
            "help": "Write a second video: picture, motion and result beside each other.",
        },
    )

    def validate(self) -> None:
        super().validate()
        if self.image is None and self.side_by_side is not None:
            raise RequestError("--side-by-side shows the picture, too; give it with --image PATH")
        if self.mode != "off" and self.pose is None:
            raise RequestError("a motion is needed: --pose FILE, which 'sfu pose VIDEO' makes, or --pose-mode off")


@dataclass(frozen=True, kw_only=True)
class PoseInputs(TaskInputs[PoseRequest]):
    """``image`` [3, H, W] in [-1, 1] and the ``skeletons``, as the encoder takes them; None where there are none."""

    image: Tensor | None
    skeletons: Skeletons | None


class PoseToVideo(ChannelVideo[PoseRequest, PoseInputs]):
    """A picture moved by poses, in windows where the video is longer than one.

    A network that was also trained without pictures is told by ``needs_picture``. In training a batch has what
    ``pose_training`` makes of a clip and its poses; the pose encoder is trained beside.
    """

    request_type: ClassVar[type[GenerationRequest]] = PoseRequest
    conditions: ClassVar[str | None] = "unianimate"
    example_files: ClassVar[Mapping[str, Sequence[str]]] = POSE_FILES
    condition_dropout = POSE_DROPOUT
    trained_parts: ClassVar[tuple[str, ...]] = (POSE_PART.name,)

    def __init__(self, *, needs_picture: bool = True) -> None:
        self.needs_picture = needs_picture

    def load(self, request: PoseRequest, settings: SamplingSettings, latent_spec: LatentSpec) -> PoseInputs:
        geometry = exact_geometry(settings, latent_spec)
        if request.side_by_side is not None:
            check_output(request.side_by_side, num_frames=geometry.num_frames, fps=settings.fps)
        if request.image is None and self.needs_picture:
            raise RequestError("the teacher moves who is in a picture; give it with --image PATH")
        poses, notes = None, tuple[str, ...]()
        if request.mode != "off" and request.pose is not None:
            source = open_pose(request.pose)
            poses = _poses(request, source, geometry)
            notes = tuple(_notes(request, source, geometry, settings.fps))
        elif request.pose is not None:
            notes = (f"--pose-mode off: {plain_text(request.pose)} has no effect",)
        return PoseInputs(
            request=request,
            settings=settings,
            geometry=geometry,
            notes=notes,
            image=None if request.image is None else _picture(request.image, geometry),
            skeletons=poses,
        )

    def check(self, inputs: PoseInputs, components: Components) -> PoseInputs:
        if inputs.skeletons is not None:
            network = components.configs["dit"]
            check_pose_encoder(components, network.dim, network.in_dim - network.out_dim)
        return inputs

    def condition(self, inputs: PoseInputs, components: Components, clip: Clip) -> Conditioning:
        plan = WindowPlan(inputs.geometry.latent_frames)
        frames = len(plan.spans[0])
        if inputs.image is None:
            channels = channels_at(no_picture(inputs.geometry, components), 0, frames)
        else:
            channels = picture_channels(inputs.image, inputs.geometry, frames, components)
        motions: list[Tensor | None] = [None] * len(plan.spans)
        if inputs.skeletons is not None:
            embedded, reference = embed(inputs.skeletons, plan.spans, components)
            motions = [*embedded]
            channels = channels if reference is None else with_reference(channels, reference)
        base = self.branches(inputs, components, channels, _image_states(inputs, components))
        in_both = inputs.request.pose_branch == "both"
        windows = tuple(_window(*each, base, in_both) for each in zip(plan.frames, motions, strict=True))
        batch, depth, frames, *sides = base.latent_shape
        return replace(
            base,
            positive=windows[0].positive,
            negative=windows[0].negative,
            latent_shape=(batch, depth, frames + plan.extra_frames, *sides),
            decode=DecodePlan(drop_latent_frames=plan.extra_frames),
            windows=windows if len(windows) > 1 else (),
        )

    def report(self, inputs: PoseInputs, clip: GeneratedClip, log: Log) -> Iterator[Tensor]:
        path = inputs.request.side_by_side
        if path is None or inputs.image is None:
            yield from clip.frames
            return
        from selfforcing_unianimate.side_by_side import with_sources

        motion = None if inputs.skeletons is None else inputs.skeletons.frames
        yield from with_sources(clip.frames, inputs.image, motion, path, inputs.settings.fps)
        log(f"{plain_text(path)} (picture, {'' if motion is None else 'motion, '}result)")

    def tokens_at_once(self, inputs: PoseInputs) -> int:
        longest = max(map(len, WindowPlan(inputs.geometry.latent_frames).frames))
        return longest * inputs.geometry.tokens_per_frame

    def describe(self, inputs: PoseInputs) -> Mapping[str, object]:
        return {
            **super().describe(inputs),
            "tokens": inputs.geometry.num_tokens,
            "pose_mode": inputs.request.mode,
            "windows": len(WindowPlan(inputs.geometry.latent_frames).spans),
        }

    def check_files(self, beside: ExampleFiles, num_frames: int) -> None:
        check_poses(beside, num_frames)

    def encode_example(
        self, clip: TrainingClip, components: Components, latent_spec: LatentSpec
    ) -> Mapping[str, Tensor]:
        image, poses = clip_poses(clip)
        return encode_posed(image, poses, clip.geometry(latent_spec), components)

    def unpack_example(self, row: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return unpack_poses(row)

    def training_inputs(
        self, batch: Mapping[str, Tensor], context: Tensor, networks: Mapping[str, nn.Module]
    ) -> DiTInputs:
        return with_poses(super().training_inputs(batch, context, networks), batch, networks[POSE_PART.name])

    def companions(self, components: Components) -> Mapping[str, Companion]:
        return {POSE_PART.name: pose_companion(components)}

    def validation_request(self, prompt: str, images: Sequence[Path], **settings: Any) -> GenerationRequest:
        raise RequestError(
            "a validation prompt has no poses, which this model moves a picture by; leave --validation-prompt out, and "
            "look at what was trained with 'sfu teacher'"
        )


def embed(poses: Skeletons, spans: tuple[range, ...], components: Components) -> tuple[list[Tensor], Tensor | None]:
    """The motion of each window as tokens [1, f, h*w, C], and the picture's skeleton as channels [1, c, 1, h, w]."""
    import torch

    from selfforcing_unianimate.pose_encoder import TEMPORAL_STRIDE, pose_tokens

    with components.part(POSE_PART.name).active() as encoder, torch.no_grad():
        motions = []
        for span in spans:
            first, last = TEMPORAL_STRIDE * span[0], TEMPORAL_STRIDE * span[-1]
            frames = poses.frames[None, :, first : last + 1]
            parts = encoder.motion_parts(frames, _FRAMES_AT_ONCE)
            tokens = torch.cat([pose_tokens(part) for part in parts], dim=1)
            motions.append(tokens if len(spans) == 1 else tokens.cpu())  # of many windows they would fill a device
        reference = None if poses.reference is None else encoder.embed_reference(poses.reference[None])
    return motions, reference


def _image_states(inputs: PoseInputs, components: Components) -> Tensor | None:
    """CLIP states of the picture; None for a network that takes none."""
    if components.image_encoder is None or inputs.image is None:
        return None
    return image_states([inputs.image], components)


def _picture(path: Path, geometry: VideoGeometry) -> Tensor:
    """A picture stretched to the size of a video, [3, H, W]."""
    from PIL import Image

    size = geometry.width, geometry.height
    return media.image_to_tensor(media.load_image(path).resize(size, Image.Resampling.BILINEAR))


def _poses(request: PoseRequest, source: PoseSource, geometry: VideoGeometry) -> Skeletons:
    from selfforcing_unianimate.pose_encoder import MOTION_STRIDE, REFERENCE_STRIDE

    # The encoder makes one token of 16 pixels; of the real network's tokens that is the size of the video itself.
    rows, columns = geometry.token_grid[1:]
    chosen = frame_indices(source.num_frames, geometry.num_frames)
    found = Skeletons(
        chosen_pictures(source, chosen, columns * MOTION_STRIDE, rows * MOTION_STRIDE),
        source.reference(geometry.latent_width * REFERENCE_STRIDE, geometry.latent_height * REFERENCE_STRIDE),
    )
    if request.mode == "pose_only" or request.image is None:
        return replace(found, reference=None)
    if found.reference is None:
        raise no_reference(request)
    return found


def _window(frames: tuple[int, ...], motion: Tensor | None, base: Conditioning, in_both: bool) -> Window:
    def moved(branch: DiTInputs) -> DiTInputs:
        return replace(branch, add_condition=motion)

    negative = base.negative if base.negative is None or not in_both else moved(base.negative)
    return Window(frames=frames, positive=moved(base.positive), negative=negative)


def _notes(request: PoseRequest, source: PoseSource, geometry: VideoGeometry, fps: float) -> Iterator[str]:
    if request.pose is not None:
        yield from motion_notes(request.pose, source, geometry, fps)
    if request.mode == "pose_only" and request.image is not None:
        yield NOT_RELATED
