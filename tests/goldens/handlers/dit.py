"""Families dit, dit_bf16 and dit_primitives: the diffusion transformer."""

from dataclasses import fields

import torch
from torch import Tensor

from tests.goldens.harness import Computed, GoldenCase, handles
from wan_core.models import DiTInputs, WanDiT, WanDiTConfig, rotary_table, rotate
from wan_core.models.dit.modulation import sinusoidal_embedding


def build_dit(case: GoldenCase, weights: dict[str, Tensor]) -> WanDiT:
    """The network of a case's ``config`` with these weights."""
    known = {field.name for field in fields(WanDiTConfig)}
    image = weights.get("img_emb.proj.0.weight")
    config = WanDiTConfig(
        **{name: value for name, value in case.config.items() if name in known},
        image_dim=None if image is None else image.shape[0],
    )
    model = config.build()
    model.load_state_dict(weights)
    return model.eval()


def frame_timesteps(timesteps: Tensor, sample: int, tokens_per_frame: int, frames: int) -> Tensor:
    """One sample's timesteps, [1] or [1, T], of the reference's [B] or [B, L]."""
    row = timesteps[sample if timesteps.shape[0] > 1 else 0]
    if row.ndim == 0:
        return row[None]
    return row[: tokens_per_frame * frames : tokens_per_frame][None]


@handles("dit")
def check_dit(case: GoldenCase) -> dict[str, Tensor]:
    model = build_dit(case, case.weights)
    inputs = case.inputs
    computed = {}
    for index in range(sum(name.startswith("x.") for name in inputs)):
        latents = inputs[f"x.{index}"][None]
        y = inputs.get(f"y.{index}")
        clip = inputs.get("clip_fea")
        _, frames, height, width = latents.shape[1:]
        p, q, r = case.config["patch_size"]
        timesteps = frame_timesteps(inputs["t"], index, (height // q) * (width // r), frames // p)
        velocity = model(
            latents,
            timesteps,
            DiTInputs(
                context=inputs[f"context.{index}"][None],
                channel_concat=None if y is None else y[None],
                image_context=None if clip is None else clip[index : index + 1],
            ),
        )
        computed[f"out.{index}"] = velocity[0]
    return computed


@handles("dit_bf16")
def check_dit_bf16(case: GoldenCase) -> Computed:
    exact = build_dit(case, case.weights)
    model = build_dit(case, case.weights).bfloat16()
    for name, parameter in model.named_parameters():
        if any(part in name.split(".") for part in WanDiT.float32_modules):
            parameter.data = dict(exact.named_parameters())[name].data
    latents = case.inputs["x.0"][None]
    grid = [side // patch for side, patch in zip(latents.shape[2:], case.config["patch_size"], strict=True)]
    timesteps = frame_timesteps(case.inputs["t"], 0, grid[1] * grid[2], grid[0])
    inputs = DiTInputs(context=case.inputs["context.0"][None])
    computed = {"out.0": model(latents, timesteps, inputs)[0], "out.float32.0": exact(latents, timesteps, inputs)[0]}
    golden = case.tensors["out.0"]
    distance = ((computed["out.0"] - golden).norm() / golden.norm()).item()
    reference = case.tensors["out.float32.0"]
    allowed = ((reference - golden).norm() / golden.norm()).item()
    if distance > 1.5 * allowed:
        raise AssertionError(f"relative distance {distance:.2e}, bfloat16 explains {allowed:.2e}")
    return Computed(computed, tolerances={"out.0": (0.05, "bfloat16 rounding; the relative distance is checked above")})


@handles("dit_primitives")
def check_primitives(case: GoldenCase) -> dict[str, Tensor]:
    x = case.inputs["rope.x"]
    rows = []
    for sample, grid in zip(x, case.inputs["rope.grid"].tolist(), strict=True):
        rows.append(rotate(sample[None], rotary_table(x.shape[-1], tuple(grid)))[0])
    sinusoids = {
        name: sinusoidal_embedding(case.inputs["t"], int(name.rpartition("_")[2]))
        for name in case.expected
        if name.startswith("out.sinusoidal_")
    }
    return {"out.rope": torch.stack(rows), **sinusoids}
