"""Animation and replacement segment by segment, through the pipeline: the golden's simple networks stand in."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from tests.goldens.handlers.s2v_loop import CPU, BoxVAE, LengthEncoder
from tests.goldens.harness import Computed, GoldenCase, handles
from wan_core import media
from wan_core.media import VideoGeometry
from wan_core.models import AnimateDiTConfig, AnimateInputs
from wan_core.pipeline import Pipeline
from wan_core.presets import get_preset
from wan_core.runtime import Placed
from wan_core.tasks import AnimateRequest, Components
from wan_core.tasks.animate import AnimateTaskInputs
from wan_core.tasks.driving_folder import BACKGROUND, FACE, MASK, POSE, Driving, DrivingVideos

_FILES = {POSE: "pose", FACE: "face", BACKGROUND: "background", MASK: "mask"}


class GivenVideos(DrivingVideos):
    """The golden's videos."""

    def __init__(self, case: GoldenCase) -> None:
        self.case = case

    def frames(self, name: str, indices: Sequence[int]) -> Tensor:
        frames = self.case.inputs[_FILES[name]][list(indices)]
        return frames[:, None] * 255 if frames.ndim == 3 else frames.permute(0, 3, 1, 2)


class GivenFolder(Driving):
    """A driving folder whose videos are the golden's."""

    case: GoldenCase

    def open(self, overlap: int) -> DrivingVideos:
        return GivenVideos(self.case)


class Recorder(nn.Module):
    """The golden's network: a sum of all that it is given. Keeps what the first call for each segment got."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[Tensor, AnimateInputs]] = []

    def encode_face(self, pixels: Tensor) -> Tensor:
        return pixels

    def forward(self, latents: Tensor, timesteps: Tensor, inputs: AnimateInputs) -> Tensor:
        is_known = any(known.pose_latents is inputs.pose_latents for _, known in self.seen)
        if not is_known:
            self.seen.append((latents.clone(), inputs))
        known, shown = inputs.channel_concat.split([4, 16], dim=1)
        velocity = (
            0.1 * latents + 0.2 * shown + 0.1 * known.mean(1, keepdim=True) + 0.2 * inputs.face_tokens.mean()
            + 0.1 * inputs.image_context.mean() + inputs.context.mean()
        )  # fmt: skip
        velocity[:, :, 1:] += 0.2 * inputs.pose_latents
        return velocity


class MeanEncoder(nn.Module):
    """The golden's image encoder: states that are the mean of an image."""

    def forward(self, images: Tensor) -> Tensor:
        return images.mean().expand(1, 1, 1)


@handles("animate_loop")
def check_segment_loop(case: GoldenCase) -> Computed:
    config = case.config
    preset = get_preset("animate-14B")
    request = AnimateRequest(
        prompt=config["prompt"],
        negative_prompt=config["negative"],
        src_root_path=Path("folder"),
        refert_num=config["refert_num"],
        replace_flag=config["replace"],
        num_frames=config["clip_len"],
        num_inference_steps=config["steps"],
        flow_shift=config["shift"],
        guidance_scale=config["guide_scale"],
        solver=config["solver"],
        seed=config["seed"],
    )
    count, height, width = case.inputs["pose"].shape[:3]
    driving = GivenFolder(
        folder=Path("folder"), num_frames=count, width=width, height=height, fps=30, replaces=config["replace"]
    )
    object.__setattr__(driving, "case", case)
    segment = VideoGeometry.for_video(preset.latent_spec, config["clip_len"], height, width)
    still = media.fit_padded(Image.fromarray(case.inputs["ref"].numpy()), width, height)
    inputs = AnimateTaskInputs(
        request=request,
        settings=preset.settings_of(request),
        geometry=replace(segment, num_frames=count),
        driving=driving,
        image=media.image_to_tensor(still),
        segment=segment,
    )
    network = Recorder()
    parts = {"dit": network, "vae": BoxVAE(), "text_encoder": LengthEncoder(), "image_encoder": MeanEncoder()}
    placed = {name: Placed(lambda device, part=part: part, CPU) for name, part in parts.items()}
    dims = AnimateDiTConfig(motion_encoder_channels=(1, 1, 1))
    components = Components(device=CPU, parts=placed, configs={"dit": dims})
    video = torch.cat(list(Pipeline(preset, components, latent_spec=preset.latent_spec).stream(inputs)), dim=1)
    computed = {"out.video": video[:, :, ::4, ::4]}
    for index, (noise, given) in enumerate(network.seen):
        computed |= {
            f"mid.{index}.x_init": noise[0],
            f"mid.{index}.y": given.channel_concat[0],
            f"mid.{index}.pose_latents": given.pose_latents,
        }
    rounded = 2e-2, "pixels and channels went through bfloat16 there"
    return Computed(computed, tolerances={name: rounded for name in computed if not name.endswith("x_init")})
