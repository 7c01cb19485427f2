"""Speech to video clip by clip, through the pipeline: the golden's own simple networks stand in for the real ones."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from tests.goldens.harness import GoldenCase, handles
from wan_core import media
from wan_core.media import VideoFrames
from wan_core.models import S2VInputs
from wan_core.pipeline import Pipeline
from wan_core.presets import get_preset
from wan_core.runtime import Placed
from wan_core.tasks import Components, S2VRequest, SpeechToVideo
from wan_core.tasks.s2v import S2VTaskInputs
from wan_core.tasks.speech import Speech, geometry_of_speaker

CPU = torch.device("cpu")


class Recorder(nn.Module):
    """The golden's network: a sum of all that it is given. Keeps what the first call for each clip got."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[Tensor, S2VInputs]] = []

    def forward(self, latents: Tensor, timesteps: Tensor, inputs: S2VInputs) -> Tensor:
        is_known = any(torch.equal(inputs.audio, known.audio) for _, known in self.seen)
        if not is_known and inputs.audio.any():  # silence is that of the other branch
            self.seen.append((latents.clone(), inputs))
        poses = torch.zeros_like(latents) if inputs.pose_latents is None else inputs.pose_latents
        motion = 0.05 if inputs.motion_latents is None else 0.3 * inputs.motion_latents.mean()
        return (
            0.1 * latents + 0.2 * poses + 0.1 * inputs.reference_latents + motion
            + 0.5 * inputs.audio.mean() + inputs.context.mean()
        )  # fmt: skip


class BoxVAE(nn.Module):
    """The golden's autoencoder: means over frames and 8x8 cells, colours times a factor for each channel."""

    def encode(self, video: Tensor) -> Tensor:
        groups = [video[:, :, :1], *torch.split(video[:, :, 1:], 4, dim=2)]
        frames = torch.stack([group.mean(2) for group in groups if group.shape[2]], dim=2)
        cells = functional.avg_pool3d(frames, (1, 8, 8))
        factors = 1 + 0.1 * torch.arange(16)
        return cells[:, torch.arange(16) % 3] * factors[:, None, None, None]

    def decode_clip(self, latents: Tensor, cache: object = None) -> Iterator[Tensor]:
        colours = latents[:, :3] / torch.tensor([1, 1.1, 1.2])[:, None, None, None]
        pixels = colours.repeat_interleave(8, 3).repeat_interleave(8, 4).clamp(-1, 1)
        for index in range(pixels.shape[2]):
            yield pixels[:, :, index : index + 1].repeat(1, 1, 4 if index else 1, 1, 1)


class LengthEncoder(nn.Module):
    """The golden's text encoder: states that tell how long a prompt is."""

    def forward(self, prompts: Sequence[str]) -> list[Tensor]:
        return [torch.full((1, 1), 0.01 * len(prompt)) for prompt in prompts]


class GivenSound(SpeechToVideo):
    """The task with the states of sound, and the frames of poses, that the golden has."""

    def __init__(self, case: GoldenCase) -> None:
        super().__init__(motion_frames=case.config["motion_frames"])
        self.case = case

    def check(self, inputs: S2VTaskInputs, components: Components) -> S2VTaskInputs:
        return inputs

    def speech_states(self, inputs: S2VTaskInputs, components: Components) -> Tensor:
        return self.case.inputs["audio"]

    def pose_frames(self, inputs: S2VTaskInputs, video: VideoFrames, first: int, count: int) -> Iterator[Tensor]:
        return iter(self.case.inputs["pose_video"][first : first + count].permute(0, 3, 1, 2))


@handles("s2v_clip_loop")
def check_clip_loop(case: GoldenCase) -> dict[str, Tensor]:
    config = case.config
    preset = replace(get_preset("s2v-14B"), task=GivenSound(case))
    still = Image.fromarray(case.inputs["ref_image"].numpy())
    request = S2VRequest(
        prompt=config["prompt"],
        negative_prompt=config["negative"],
        image=Path("image.png"),
        audio=Path("sound.wav"),
        pose_video=Path("poses.mp4") if "pose_video" in case.inputs else None,
        width=config["max_area"],
        height=1,
        num_inference_steps=config["steps"],
        flow_shift=config["shift"],
        guidance_scale=config["guide_scale"],
        solver=config["solver"],
        seed=config["seed"],
        num_clip=config["clips"],
        infer_frames=config["infer_frames"],
        start_from_ref=config["init_first_frame"],
    )
    settings = preset.settings_of(request)
    geometry = geometry_of_speaker(still, config["max_area"], preset.latent_spec, 1)
    inputs = S2VTaskInputs(
        request=request,
        settings=settings,
        geometry=geometry,
        image=media.image_to_tensor(media.fit_short_side(still, geometry.width, geometry.height)),
        speech=Speech(waveform=torch.empty(0), sound=media.AudioTrack(torch.zeros(1, 1), 16_000)),
        clips=config["clips"],
    )
    network = Recorder()
    parts = {"dit": network, "vae": BoxVAE(), "text_encoder": LengthEncoder()}
    placed = {name: Placed(lambda device, part=part: part, CPU) for name, part in parts.items()}
    pipeline = Pipeline(preset, Components(device=CPU, parts=placed), latent_spec=preset.latent_spec)
    video = torch.cat(list(pipeline.stream(inputs)), dim=1)
    computed = {"out.video": video[:, :, ::4, ::4]}
    for index, (noise, given) in enumerate(network.seen):
        zeros = torch.zeros_like(noise)
        motion = given.motion_latents
        history = (config["motion_frames"] + 3) // 4
        computed |= {
            f"mid.{index}.x_init": noise[0],
            f"mid.{index}.audio": given.audio,
            f"mid.{index}.cond_states": zeros if given.pose_latents is None else given.pose_latents,
            f"mid.{index}.motion_latents": zeros[:, :, :1].repeat(1, 1, history, 1, 1) if motion is None else motion,
        }
    return computed
