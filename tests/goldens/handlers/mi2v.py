"""Several pictures to video: the pictures' preparation, and the loop with N anchored latent frames."""

from collections.abc import Mapping

from PIL import Image
from torch import Tensor

from tests.goldens.handlers.loops import make_denoiser
from tests.goldens.harness import GoldenCase, handles
from wan_core.media import LatentSpec
from wan_core.sampling import Anchors, make_solver, sample
from wan_core.sampling.schedule import NUM_TRAIN_TIMESTEPS
from wan_core.tasks import prepare_anchor_images


@handles("mi2v_loop")
def anchored_loop(case: GoldenCase) -> Mapping[str, Tensor]:
    call, noise, anchored = case.call, case.inputs["noise"], case.inputs["anchors"]
    assert call.get("num_train_timesteps", NUM_TRAIN_TIMESTEPS) == NUM_TRAIN_TIMESTEPS
    anchors = Anchors.leading(anchored[None], noise.shape[1])
    denoiser, network = make_denoiser(case, anchors=anchors)
    solver = make_solver(call["solver"], call["steps"], flow_shift=call["shift"])
    latents = sample(denoiser, solver, noise[None], anchors=anchors)
    branches = len(network.latents) // call["steps"]  # two where guidance needs the negative prompt
    seen, rows = network.latents[::branches], network.timesteps[::branches]
    _, patch_height, patch_width = case.config["patch_size"]
    tokens = (noise.shape[2] // patch_height) * (noise.shape[3] // patch_width)
    computed = {
        "out.latents": latents[0],
        "mid.timesteps": solver.timesteps.float(),
        "mid.timestep_tokens_step0": rows[0].float().repeat_interleave(tokens, dim=1),
        "mid.timestep_tokens_last": rows[-1].float().repeat_interleave(tokens, dim=1),
        "mid.model_input_last": seen[-1][0],
        **{f"mid.model_input_step{step}": latents_seen[0] for step, latents_seen in enumerate(seen)},
    }
    return {name: value for name, value in computed.items() if name in case.tensors}


@handles("mi2v_preprocess")
def preparation(case: GoldenCase) -> Mapping[str, Tensor]:
    stride, patch = case.config["vae_stride"], case.config["patch_size"]
    spec = LatentSpec(channels=48, temporal_stride=stride[0], spatial_stride=stride[1], patch_size=tuple(patch))
    count = sum(name.startswith("image") for name in case.inputs)
    pictures = [Image.fromarray(case.inputs[f"image{index}"].numpy()) for index in range(count)]
    images, _ = prepare_anchor_images(pictures, case.call["max_area"], 1, spec)
    return {f"out.tensor{index}": image[:, None] for index, image in enumerate(images)}
