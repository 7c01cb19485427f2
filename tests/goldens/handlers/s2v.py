"""Families of speech to video: its transformer, its encoder of sound, and the packing of frames."""

from collections.abc import Mapping
from dataclasses import fields

import torch
from torch import Tensor

from tests.goldens.handlers.dit import record_outputs
from tests.goldens.harness import GoldenCase, finished, handles
from wan_core.models import S2VConfig, S2VDiT, S2VInputs
from wan_core.models.dit.frame_packing import FramePacker
from wan_core.models.dit.sound_encoder import CausalSoundEncoder


def build_s2v(case: GoldenCase) -> S2VDiT:
    known = {field.name for field in fields(S2VConfig)}
    options = {name: value for name, value in case.config.items() if name in known}
    options["audio_layers"] = case.weights["casual_audio_encoder.weights"].shape[1]
    model = S2VDiT(S2VConfig(**options))
    model.load_state_dict(case.weights)
    return finished(model)


@handles("s2v_dit")
def check_s2v_dit(case: GoldenCase) -> dict[str, Tensor]:
    model, given = build_s2v(case), case.inputs
    computed: dict[str, Tensor] = {}
    context = torch.nn.utils.rnn.pad_sequence(
        [given[f"context.{index}"] for index in range(given["x"].shape[0])], batch_first=True
    )
    for name, variant in case.call["variants"].items():
        inputs = S2VInputs(
            context=context,
            audio=given["audio"] * 0 if variant.get("zero_audio") else given["audio"],
            reference_latents=given["ref"],
            motion_latents=None if variant.get("drop") else given["motion"],
            pose_latents=given["cond"],
            motion_frames=tuple(case.call["motion_frames"]),
            last_motion=variant.get("alm", 2),
        )
        timesteps = given["t"].expand(len(context))
        recorded: dict[str, list[Tensor]] = {}
        stop = record_outputs(model, [f"block{index}" for index in range(len(model.blocks))], recorded)
        computed[f"out.{name}"] = model(given["x"], timesteps, inputs)
        stop()
        computed |= {f"mid.{name}.{block}_out": tensors[0] for block, tensors in recorded.items()}
        sequence = model.embed_latents(given["x"], inputs)
        computed[f"mid.{name}.rope"] = sequence.rope.expand(len(context), -1, -1, -1)
        computed[f"mid.{name}.audio_emb"] = sequence.sound
        if sequence.mood is not None:
            computed[f"mid.{name}.audio_emb_global"] = sequence.mood
    return computed


@handles("s2v_framepack")
def check_framepack(case: GoldenCase) -> dict[str, Tensor]:
    computed: dict[str, Tensor] = {}
    for index, options in enumerate(case.config):  # one entry per case
        motion = case.inputs[f"{index}.motion"][None]
        packer = FramePacker(motion.shape[1], options["inner_dim"])
        packer.load_state_dict(case.named(f"weights.{index}."))
        tokens, rope = packer(
            motion,
            options["inner_dim"] // options["num_heads"],
            options["add_last_motion"],
            drop=options["drop_mode"] == "drop",
        )
        computed |= {f"out.{index}.tokens": tokens, f"out.{index}.rope": rope[None]}
    return computed


@handles("s2v_causal_audio_encoder")
def check_sound_encoder(case: GoldenCase) -> Mapping[str, Tensor]:
    computed: dict[str, Tensor] = {}
    for index, options in enumerate(case.config):
        config = S2VConfig(
            dim=options["out_dim"],
            num_heads=1,
            audio_dim=options["dim"],
            audio_layers=options["num_layers"],
            num_audio_token=options["num_token"],
            enable_adain=options["need_global"],
            audio_inject_layers=(),
        )
        encoder = CausalSoundEncoder(config)
        encoder.load_state_dict(case.named(f"weights.{index}."))
        local, whole = encoder(case.inputs[f"{index}.features"])
        computed[f"out.{index}.local"] = local
        if whole is not None:
            computed[f"out.{index}.global"] = whole
    return computed
