"""Families dit, dit_bf16 and dit_primitives: the diffusion transformer."""

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from tests.goldens.harness import Computed, GoldenCase, finished, handles
from wan_core.models import DiTInputs, FLF2VConfig, FLF2VDiT, WanDiT, WanDiTConfig
from wan_core.models.dit.modulation import sinusoidal_embedding
from wan_core.models.dit.rope import rotary_table, rotate


def build_dit(case: GoldenCase, weights: Mapping[str, Tensor], *, is_trained: bool = False) -> WanDiT:
    """The network of a case's ``config`` with these weights."""
    image = weights.get("img_emb.proj.0.weight")
    known = {field.name for field in fields(WanDiTConfig)}
    options = {name: value for name, value in case.config.items() if name in known}
    options["image_dim"] = None if image is None else image.shape[0]
    positions = weights.get("img_emb.emb_pos")
    if positions is None:
        model = WanDiT(WanDiTConfig(**options))
    else:
        model = FLF2VDiT(FLF2VConfig(**options, image_tokens=positions.shape[1]))
    model.load_state_dict(weights)
    return finished(model, is_trained=is_trained)


def frame_timesteps(timesteps: Tensor, sample: int, tokens_per_frame: int, frames: int, patch: int = 1) -> Tensor:
    """One sample's timesteps, [1] or [1, T], of the reference's [B], [B, 1] or [B, L]."""
    row = timesteps[sample if timesteps.shape[0] > 1 else 0]
    if row.ndim == 0 or row.shape[0] == 1:
        return row.reshape(1)
    return row[: tokens_per_frame * frames : tokens_per_frame].repeat_interleave(patch)[None]


def record_outputs(model: WanDiT, names: list[str], recorded: dict[str, list[Tensor]]) -> Callable[[], None]:
    """Store what these submodules (``block0.self_attn``) return from now on; the result ends that."""

    def store(name: str) -> Callable[..., None]:
        def hook(_module: Any, _inputs: Any, output: Any) -> None:
            tensor = output[0] if isinstance(output, tuple) else output
            recorded.setdefault(name, []).append(tensor.detach().clone())

        return hook

    handles = []
    for name in names:
        path = "blocks." + name.removeprefix("block") if name.startswith("block") else name
        # The output layer gives the branch's value; the branch itself adds it to the residual.
        path += ".o" if path.endswith("cross_attn") else ""
        handles.append(model.get_submodule(path).register_forward_hook(store(name)))
    return lambda: [handle.remove() for handle in handles] and None


def join_samples(recorded: list[Tensor], golden: Tensor, lengths: list[int]) -> Tensor:
    """Recorded rows of single samples in the golden's shape; tokens that are padding there are the golden's own."""
    joined = golden.clone()
    for index, (tensor, length) in enumerate(zip(recorded, lengths, strict=True)):
        row = tensor[0]
        if golden.ndim == row.ndim:  # one row per sample
            joined[index] = row[0]
        elif row.shape[0] in (golden.shape[1], length):
            joined[index, : row.shape[0]] = row
        else:  # one row per segment
            joined[index, :length] = row.repeat_interleave(length // row.shape[0], dim=0)
    return joined


def clip_states(model: WanDiT, clip: Tensor, index: int) -> Tensor:
    """The CLIP states [1, L, C] of a sample; a first-last-frame network takes both of its images, joined."""
    return clip.flatten(0, 1)[None] if isinstance(model, FLF2VDiT) else clip[index : index + 1]


@handles("dit", "dit_flf2v")
def check_dit(case: GoldenCase) -> dict[str, Tensor]:
    model, inputs = build_dit(case, case.weights), case.inputs
    middle = [name.removeprefix("mid.") for name in case.expected if name.startswith("mid.")]
    if isinstance(model, FLF2VDiT):
        # What was recorded there is the output plus one constant of each channel, which the final output lacks.
        middle.remove("img_emb")
    computed: dict[str, Tensor] = {}
    recorded: dict[str, list[Tensor]] = {}
    lengths = []
    for index in range(sum(name.startswith("x.") for name in inputs)):
        latents = inputs[f"x.{index}"][None]
        y, clip = inputs.get(f"y.{index}"), inputs.get("clip_fea")
        frames, rows, columns = (n // p for n, p in zip(latents.shape[2:], model.config.patch_size, strict=True))
        lengths.append(frames * rows * columns)
        timesteps = frame_timesteps(inputs["t"], index, rows * columns, frames, model.config.patch_size[0])
        conditions = DiTInputs(
            context=inputs[f"context.{index}"][None],
            channel_concat=None if y is None else y[None],
            image_context=None if clip is None else clip_states(model, clip, index),
        )
        computed[f"out.{index}"] = model(latents, timesteps, conditions)[0]
        stop = record_outputs(model, middle, recorded)
        model(latents, timesteps, conditions)
        stop()
    return computed | {
        f"mid.{name}": join_samples(tensors, case.expected[f"mid.{name}"], lengths)
        for name, tensors in recorded.items()
    }


@handles("dit_bf16")
def check_dit_bf16(case: GoldenCase) -> Computed:
    exact, model = build_dit(case, case.weights), build_dit(case, case.weights)
    for name, parameter in model.named_parameters():
        if not any(f".{entry}." in f".{name}." for entry in model.float32_modules):
            parameter.data = parameter.data.bfloat16()
    latents = case.inputs["x.0"][None]
    frames, rows, columns = (n // p for n, p in zip(latents.shape[2:], model.config.patch_size, strict=True))
    timesteps = frame_timesteps(case.inputs["t"], 0, rows * columns, frames, model.config.patch_size[0])
    inputs = DiTInputs(context=case.inputs["context.0"][None])
    computed = {"out.0": model(latents, timesteps, inputs)[0], "out.float32.0": exact(latents, timesteps, inputs)[0]}
    golden, reference = case.tensors["out.0"], case.tensors["out.float32.0"]
    rounding = ((reference - golden).abs().max() / golden.abs().max().clamp(min=1.0)).item()
    reason = "twice what bfloat16 does to the reference itself: another order of operations rounds elsewhere"
    return Computed(computed, tolerances={"out.0": (2 * rounding, reason)})


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
