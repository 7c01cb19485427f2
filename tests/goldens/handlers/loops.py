"""Whole sampling loops of the core's tasks: one sampler, guidance, experts, anchors, and the tasks' conditions."""

from collections.abc import Callable, Mapping

import torch
from PIL import Image
from torch import Tensor

from tests.goldens.handlers.dit import build_dit
from tests.goldens.harness import GoldenCase, handles
from wan_core.media import LatentSpec, VideoGeometry, best_output_size, fit_cover, image_to_tensor, latent_grid_for_area
from wan_core.models import DiTInputs, WanDiT
from wan_core.sampling import Anchors, Denoiser, ExpertDenoiser, make_solver, sample
from wan_core.tasks.i2v import first_frame_mask, first_frame_video

# The VAE is replaced in these cases; its strides follow from the family.
WAN21 = LatentSpec(channels=16)
WAN22 = LatentSpec(channels=48, spatial_stride=16)


class Recorder:
    """A network that keeps what it was given and its velocities."""

    def __init__(self, network: WanDiT) -> None:
        self.network = network
        self.latents: list[Tensor] = []
        self.timesteps: list[Tensor] = []
        self.velocities: list[Tensor] = []

    def __call__(self, latents: Tensor, timesteps: Tensor, inputs: DiTInputs) -> Tensor:
        self.latents.append(latents)
        self.timesteps.append(timesteps)
        velocity: Tensor = self.network(latents, timesteps, inputs)
        self.velocities.append(velocity)
        return velocity


def make_denoiser(
    case: GoldenCase, channel_concat: Tensor | None = None, anchors: Anchors | None = None
) -> tuple[Callable[[Tensor, Tensor], Tensor], Recorder]:
    """The guided denoiser of the case (two experts where it has a boundary) and the network of its first step."""

    def branch(prefix: str, scale: float) -> tuple[Denoiser, Recorder]:
        network = Recorder(build_dit(case, case.named(prefix)))
        positive, negative = (
            DiTInputs(context=case.inputs[name][None], channel_concat=channel_concat).with_cache()
            for name in ("context", "context_null")
        )
        return Denoiser(network, positive, negative, scale, anchors=anchors), network

    scale, boundary = case.call["guide_scale"], case.call.get("boundary")
    if boundary is None:
        return branch("weights.", scale)
    low_scale, high_scale = scale if isinstance(scale, list) else (scale, scale)
    high, first = branch("weights.high.", high_scale)
    low, _ = branch("weights.low.", low_scale)
    return ExpertDenoiser(high, low, boundary), first


def run(case: GoldenCase, denoiser: Callable[[Tensor, Tensor], Tensor], anchors: Anchors | None = None) -> Tensor:
    """Final latents [C, T, h, w]."""
    call = case.call
    solver = make_solver(call["sample_solver"], call["sampling_steps"], flow_shift=call["shift"])
    return sample(denoiser, solver, case.inputs["noise"][None], anchors=anchors)[0]


def picture(case: GoldenCase) -> Image.Image:
    return Image.fromarray(case.inputs["image_uint8"].numpy())


def geometry_of(case: GoldenCase, spec: LatentSpec, height: int, width: int) -> VideoGeometry:
    geometry = VideoGeometry.for_video(spec, case.call["frame_num"], height, width)
    assert geometry.latent_shape == case.inputs["noise"].shape
    return geometry


@handles("e2e_t2v_single", "e2e_t2v_moe", "e2e_ti2v_t2v")
def text_to_video(case: GoldenCase) -> Mapping[str, Tensor]:
    width, height = case.call["size"]
    geometry_of(case, WAN22 if case.family == "e2e_ti2v_t2v" else WAN21, height, width)
    denoiser, network = make_denoiser(case)
    computed = {"out.latent": run(case, denoiser)}
    for name, velocity in zip(("cond", "uncond"), network.velocities, strict=False):
        if f"mid.pred_{name}_step0" in case.tensors:
            computed[f"mid.pred_{name}_step0"] = velocity[0]
    return computed


@handles("e2e_i2v_a14b")
def image_to_video(case: GoldenCase) -> Mapping[str, Tensor]:
    image = picture(case)
    rows, columns = latent_grid_for_area(image.height, image.width, case.call["max_area"], WAN21)
    geometry = geometry_of(case, WAN21, rows * WAN21.spatial_stride, columns * WAN21.spatial_stride)
    video = first_frame_video(image_to_tensor(image), geometry)
    condition = torch.cat([first_frame_mask(geometry), case.inputs["cond_latent"][None]], dim=1)
    denoiser, _ = make_denoiser(case, condition)
    return {"mid.vae_input": video[0], "mid.y": condition[0], "out.latent": run(case, denoiser)}


@handles("e2e_ti2v_i2v")
def anchored_image_to_video(case: GoldenCase) -> Mapping[str, Tensor]:
    image, call = picture(case), case.call
    multiples = WAN22.width_multiple, WAN22.height_multiple
    size = best_output_size(image.width, image.height, *multiples, call["max_area"])
    geometry = geometry_of(case, WAN22, size.height, size.width)
    fitted = image_to_tensor(fit_cover(image, size.width, size.height))
    anchors = Anchors.leading(case.inputs["image_latent"][None], geometry.latent_frames)
    denoiser, _ = make_denoiser(case, anchors=anchors)
    timesteps = make_solver(call["sample_solver"], call["sampling_steps"], flow_shift=call["shift"]).timesteps

    def per_token(timestep: Tensor) -> Tensor:
        return anchors.timesteps(timestep).repeat_interleave(geometry.tokens_per_frame, dim=1).float()

    return {
        "mid.vae_input": fitted[:, None],
        "mid.t_step0": per_token(timesteps[0]),
        "mid.t_last": per_token(timesteps[-1]),
        "out.latent": run(case, denoiser, anchors),
    }
