"""Decoding and encoding by the autoencoders on a GPU that is not there, ours and diffusers'; exact counts, no clock.

A clip is coded latent frame by latent frame, and from the third on all cost the same, or rise evenly: short clips tell
long ones.
"""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch

from tools.simulated_forwards import Forward, onto, usual_shapes
from tools.simulated_inputs import Shapes, latent_shape
from wan_core.checkpoints import build_on_meta, load_model
from wan_core.errors import RequestError
from wan_core.presets import Preset, get_preset
from wan_core.runtime import SimulatedGPU, prepare_model, simulated_gpu

DTYPE = torch.float32  # that of an autoencoder where nothing is said
_SHORT = 3  # latent frames
CODED = ("t2v-A14B", "ti2v-5B")  # presets with one autoencoder each

Coding = Callable[[int], object]
Side = Callable[[Preset, Shapes, SimulatedGPU, bool], Coding]


def our_coding(preset: Preset, shapes: Shapes, gpu: SimulatedGPU, encodes: bool) -> Coding:
    """Our autoencoder, as a pipeline calls it, of clips of any number of latent frames."""
    part = preset.part("vae")
    source = gpu.weights(part.config, part.family, DTYPE)
    vae = load_model(part.config, source, family=part.family, dtype=DTYPE, device=gpu.device)
    prepare_model(vae, inference=True)
    if encodes:
        return lambda frames: vae.encode(_video(preset, shapes, gpu, frames))
    return lambda frames: sum(chunk.shape[2] for chunk in vae.decode_clip(_latents(preset, shapes, gpu, frames)))


def their_coding(preset: Preset, shapes: Shapes, gpu: SimulatedGPU, encodes: bool) -> Coding:
    """diffusers' autoencoder of the same dims. Raises RequestError where it has none."""
    from diffusers import AutoencoderKLWan

    part = preset.part("vae")
    if part.family.diffusers_config is None:
        raise RequestError(f"diffusers has no autoencoder like that of {preset.name}; leave --peer out")
    settings = dict(part.family.diffusers_config(part.config))
    vae = build_on_meta(lambda: AutoencoderKLWan.from_config(settings))
    onto(vae, gpu, set(), DTYPE)
    vae.eval()
    if encodes:
        return lambda frames: vae.encode(_video(preset, shapes, gpu, frames), return_dict=False)
    return lambda frames: vae.decode(_latents(preset, shapes, gpu, frames), return_dict=False)


def _latents(preset: Preset, shapes: Shapes, gpu: SimulatedGPU, frames: int) -> torch.Tensor:
    return gpu.tensor(1, preset.vae.z_dim, frames, *latent_shape(preset, shapes)[1:], dtype=DTYPE)


def _video(preset: Preset, shapes: Shapes, gpu: SimulatedGPU, frames: int) -> torch.Tensor:
    num_frames = 1 + (frames - 1) * preset.vae.temporal_stride
    return gpu.tensor(1, 3, num_frames, shapes.height, shapes.width, dtype=DTYPE)


def coding(preset: Preset, shapes: Shapes, side: Side = our_coding, *, encodes: bool = False) -> Forward:
    """All of a clip decoded, or encoded; counted in three short ones. Clips shorter than these are counted whole."""
    frames = latent_shape(preset, shapes)[0]
    with simulated_gpu() as gpu:
        code = side(preset, shapes, gpu, encodes)

        def counted(count: int) -> Forward:
            counts = gpu.begin()
            code(count)
            return Forward.of(counts)

        counted(1)  # what is kept between calls
        if frames <= _SHORT:
            return counted(frames)
        short, longer, longest = (counted(_SHORT + more) for more in range(3))
        further = frames - _SHORT
        pairs = further * (further - 1) // 2  # diffusers' copies all frames before each time
        return short.plus(longer, short, further).plus(longest, longer, pairs).plus(short, longer, pairs)


def all_codings() -> dict[str, dict[str, Any]]:
    """Each autoencoder both ways, at the usual shapes of a preset that has it."""
    found: dict[str, dict[str, Any]] = {}
    for name in CODED:
        preset = get_preset(name)
        shapes = usual_shapes(preset)
        for encodes, what in ((False, "decoding"), (True, "encoding")):
            found[f"{name}, {what}"] = asdict(coding(preset, shapes, encodes=encodes))
    return found
