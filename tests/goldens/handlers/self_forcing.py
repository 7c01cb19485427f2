"""Families sf_causal*, sf_teacher_forcing, sf_attention_masks and those of the causal transformer under poses."""

import re
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from selfforcing_unianimate import CAUSAL_DIT, CausalDiTConfig
from selfforcing_unianimate.causal_dit import CausalDiT, CausalInputs
from selfforcing_unianimate.frame_blocks import FrameBlocks
from selfforcing_unianimate.memory import CausalMemory
from tests.goldens.harness import Computed, GoldenCase, finished, handles
from wan_core.checkpoints import MemorySource, load_model
from wan_core.training import LoRASettings, attach_lora

POSE = "pose_proj.weight"


def build_causal(case: GoldenCase, weights: Mapping[str, Tensor], *, is_trained: bool = False) -> CausalDiT:
    """The causal network of a case; where it knows no poses, it is read as a file that lacks them."""
    known = {field.name for field in fields(CausalDiTConfig)}
    options = {name: value for name, value in case.config.items() if name in known}
    image = weights.get("img_emb.proj.0.weight")
    options["image_dim"] = None if image is None else image.shape[0]
    pose = weights[POSE].shape[1] if POSE in weights else 24
    config = CausalDiTConfig(**options, pose_dim=pose)
    network: CausalDiT = load_model(config, MemorySource(dict(weights)), family=CAUSAL_DIT)
    return finished(network, is_trained=is_trained)


def blocks_of(case: GoldenCase, call: Mapping[str, Any] | None = None) -> FrameBlocks:
    """The layout that config and call of a case tell."""
    said = {**case.config, **(case.call if call is None else call)}
    window = said.get("local_attn_size", -1)
    return FrameBlocks(
        size=said.get("num_frame_per_block", 1),
        first_alone=bool(said.get("independent_first_frame", False)) or said.get("kind") == "i2v",
        window=None if window == -1 else window,
        sink=said.get("sink_size", 0),
    )


def pose_tokens(case: GoldenCase, latents: Tensor) -> Tensor | None:
    """The pose tokens of a case frame by frame; ``latents`` [B, C, T, H, W] have T frames."""
    pose = case.inputs.get("add_condition")
    return None if pose is None else pose.unflatten(1, (latents.shape[2], -1))


def inputs_of(case: GoldenCase, latents: Tensor) -> CausalInputs:
    """The conditions of a forward of the whole video."""
    return CausalInputs(
        context=case.inputs["context"],
        image_context=case.inputs.get("clip_fea"),
        channel_concat=case.inputs.get("y"),
        add_condition=pose_tokens(case, latents),
        blocks=blocks_of(case),
    )


def rolled_out(network: CausalDiT, latents: Tensor, timesteps: Tensor, inputs: CausalInputs) -> Tensor:
    """The velocity of all blocks, one after the other, through the memory of ``inputs``."""
    inputs = replace(inputs.with_cache(), memory=inputs.memory or CausalMemory(inputs.blocks, latents.shape[2]))
    velocities = [
        network(latents[:, :, start:stop], timesteps[:, start:stop], inputs.frames(start, stop))
        for start, stop in inputs.blocks.spans(latents.shape[2])
    ]
    return torch.cat(velocities, dim=2)


def same(name: str, one: Tensor, other: Tensor) -> None:
    """Raises ValueError where two ways to one result differ by more than 1e-4."""
    difference = (one - other).abs().max().item()
    if difference > 1e-4 * max(1.0, other.abs().max().item()):
        raise ValueError(f"{name} differ by {difference:.1e}")


@handles("sf_attention_masks")
def attention_masks(case: GoldenCase) -> dict[str, Tensor]:
    results = {}
    for name, call in case.call.items():
        blocks, sizes = blocks_of(case, call), (call["num_frames"], call["frame_seqlen"])
        ranges = blocks.teacher_forcing_mask(*sizes) if call["kind"] == "tf" else blocks.causal_mask(*sizes)
        results[f"out.{name}"] = ranges.dense().to(torch.uint8)
    return results


@handles("sf_causal", "sfu_causal_i2v")
def causal(case: GoldenCase) -> dict[str, Tensor]:
    network = build_causal(case, case.weights)
    latents, timesteps = case.inputs["x"], case.inputs["t"]
    inputs = inputs_of(case, latents)
    memory = CausalMemory(inputs.blocks, latents.shape[2])
    results = {"out.flow": network(latents, timesteps, inputs)}
    same(
        "rollout and forward",
        rolled_out(network, latents, timesteps, replace(inputs, memory=memory)),
        results["out.flow"],
    )
    for name in case.expected:
        if name.startswith("mid.kv_cache."):
            layer, kind = name.split(".")[2:]
            results[name] = in_order(memory, int(layer), kind, case.call["frame_seqlen"])
    return results


def in_order(memory: CausalMemory, layer: int, kind: str, tokens: int) -> Tensor:
    """A buffer of the memory with its frames in the order of their numbers, as the reference keeps them."""
    buffer = getattr(memory.layers[layer], "key" if kind == "k" else "value").unflatten(1, (-1, tokens))
    kept = memory.kept_frames
    order = sorted(range(len(kept)), key=kept.__getitem__)
    return torch.cat([buffer[:, order], buffer[:, len(kept) :]], dim=1).flatten(1, 2)


def made_of(term: str, inputs: Mapping[str, Tensor]) -> Tensor:
    """A term of a pass, such as ``0.5*x+0.1``."""
    match = re.fullmatch(r"(?:([\d.]+)\*)?(\w+)([+-][\d.]+)?", term.replace(" ", ""))
    if match is None:
        raise ValueError(f"pass {term!r} is not understood")
    return float(match[1] or 1) * inputs[match[2]] + float(match[3] or 0)


@handles("sf_causal_sink")
def causal_sink(case: GoldenCase) -> dict[str, Tensor]:
    """Several passes per block, each of which writes over what the one before it left."""
    network, tokens = build_causal(case, case.weights), case.call["frame_seqlen"]
    latents, blocks = case.inputs["x"], blocks_of(case)
    memory = CausalMemory(blocks, latents.shape[2])
    inputs = replace(inputs_of(case, latents).with_cache(), memory=memory)
    passes = {
        name: tuple(made_of(term, case.inputs) for term in terms.split(","))
        for name, terms in case.call.items()
        if name.startswith("pass")
    }
    results: dict[str, list[Tensor]] = {name: [] for name in passes}
    index = []
    for start, stop in blocks.spans(latents.shape[2]):
        for name, (frames, times) in passes.items():
            velocity = network(frames[:, :, start:stop], times[:, start:stop], inputs.frames(start, stop))
            results[name].append(velocity)
        index.append([len(memory.kept_frames) * tokens, memory.end * tokens])
    caches = {
        name: in_order(memory, int(name.split(".")[2]), name.split(".")[3], tokens)
        for name in case.expected
        if name.startswith("out.kv_cache.")
    }
    joined = {f"out.{name}": torch.cat(parts, dim=2) for name, parts in results.items()}
    return {**joined, **caches, "out.index": torch.tensor(index)}


@handles("sf_teacher_forcing")
def teacher_forcing(case: GoldenCase) -> dict[str, Tensor]:
    network = build_causal(case, case.weights)
    latents, timesteps, clean = (case.inputs[name] for name in ("x", "t", "clean_x"))
    inputs = replace(inputs_of(case, latents), clean_latents=clean)
    results = {"out.flow": network(latents, timesteps, inputs)}
    if "aug_t" in case.inputs:
        augmented = replace(inputs, clean_timesteps=case.inputs["aug_t"])
        results["out.flow_aug"] = network(latents, timesteps, augmented)
    return results


@handles("sfu_pose_add_condition")
def pose_add_condition(case: GoldenCase) -> Computed:
    network = build_causal(case, case.weights)
    latents, timesteps = case.inputs["x"], case.inputs["t"]
    inputs = inputs_of(case, latents)
    flow = network(latents, timesteps, inputs)
    same("rollout and forward", rolled_out(network, latents, timesteps, inputs), flow)
    return Computed(
        {"out.flow": flow},
        skipped={"out.flow_teacher_forcing_fork": "a defect of the fork: its clean half gets no pose"},
    )


@handles("sfu_runtime_lora")
def runtime_lora(case: GoldenCase) -> dict[str, Tensor]:
    """Adapters beside the layers, as training attaches them."""
    plain = {name: tensor for name, tensor in case.weights.items() if ".lora_" not in name}
    network = build_causal(case, plain, is_trained=True)
    targets = [f"*.{target}" for target in case.call["targets"]]
    names = attach_lora(network, LoRASettings(rank=case.call["rank"], alpha=case.call["alpha"], targets=targets))
    if len(names) != case.call["replaced_layers"]:
        raise ValueError(f"{len(names)} layers got an adapter, the reference has {case.call['replaced_layers']}")
    for name in names:
        adapter = network.get_submodule(name)
        for part in ("lora_A", "lora_B"):
            adapter.get_parameter(part).copy_(case.weights[f"{name}.{part}.weight"])
    latents = case.inputs["x"]
    return {"out.flow": network(latents, case.inputs["t"], inputs_of(case, latents))}
