"""Families of Wan-Animate: its transformer, its encoders of motion and faces."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.goldens.handlers.dit import record_outputs
from tests.goldens.harness import GoldenCase, finished, handles
from wan_core.models import AnimateDiT, AnimateDiTConfig, AnimateInputs
from wan_core.models.dit.face_encoder import FaceBlock, FaceTower
from wan_core.models.dit.motion_encoder import MotionEncoder

_MIX = (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
_FULL = AnimateDiTConfig()


def motion_options(config: Mapping[str, Any]) -> dict[str, Any]:
    """Constructor arguments of the motion encoder in a golden's words; what it leaves out is the release's."""
    size = config.get("motion_size", config.get("size", _FULL.face_size))
    table = config.get("channels")
    sizes = [size >> index for index in range(size.bit_length() - 2)]  # down to 4
    released = {4 << index: width for index, width in enumerate(_FULL.motion_encoder_channels[::-1])}
    style = config.get("style_dim", _FULL.motion_style_dim)
    return {
        "motion_encoder_channels": tuple(table[str(each)] if table else released[each] for each in sizes),
        "motion_style_dim": style,
        "motion_dim": config.get("motion_dim", _FULL.motion_dim),
        "motion_encoder_dim": config.get("motion_encoder_dim", style),
    }


def build_animate(case: GoldenCase) -> AnimateDiT:
    config, constants = case.config, case.config.get("tiny_overrides", {})
    known = {field.name for field in fields(AnimateDiTConfig)}
    options = {name: value for name, value in config.items() if name in known} | motion_options(constants)
    options["motion_encoder_dim"] = config.get("motion_encoder_dim", _FULL.motion_encoder_dim)
    options["face_encoder_hidden_dim"] = constants.get("face_enc_dim", _FULL.face_encoder_hidden_dim)
    options["image_dim"] = constants.get("clip_dim", _FULL.image_dim) if config.get("use_img_emb", True) else None
    model = AnimateDiT(AnimateDiTConfig(**options))
    model.load_state_dict(case.weights)
    return finished(model)


@handles("animate_dit")
def check_animate_dit(case: GoldenCase) -> dict[str, Tensor]:
    model, given = build_animate(case), case.inputs
    batch = given["x"].shape[0]
    context = nn.utils.rnn.pad_sequence([given[f"context.{index}"] for index in range(batch)], batch_first=True)
    computed: dict[str, Tensor] = {}
    pixels = given["face"].transpose(1, 2).flatten(0, 1)
    computed["mid.motion_vec"] = model.motion_encoder(pixels)
    computed["mid.face_tokens"] = model.encode_face(given["face"])
    for name in case.call["variants"]:
        face = torch.full_like(given["face"], -1.0) if name == "face_uncond" else given["face"]
        inputs = AnimateInputs(
            context=context,
            image_context=given.get("clip_fea"),
            channel_concat=given["y"],
            pose_latents=given["pose"],
            face_tokens=model.encode_face(face),
        )
        recorded: dict[str, list[Tensor]] = {}
        blocks = {f"block{index}": f"mid.block{index}_out" for index in range(len(model.blocks))}
        adapters = range(len(model.face_adapter.fuser_blocks))
        blocks |= {f"face_adapter.fuser_blocks.{index}": f"mid.face_adapter{index}_out" for index in adapters}
        stop = record_outputs(model, [*blocks], recorded)
        computed[f"out.{name}"] = model(given["x"], given["t"].expand(batch), inputs)
        stop()
        if name == "cond":
            computed |= {
                blocks[each]: found[0].reshape(batch, -1, model.config.dim) for each, found in recorded.items()
            }
    return computed


def hashed(case: GoldenCase, network: nn.Module) -> None:
    """The weights of a case that holds none: numbers of a counter, by the recipe in its notes."""
    for index, (name, parameter) in enumerate(sorted(network.named_parameters())):
        values = uniform(parameter.numel(), case.config["stream_base"] + index)
        if name.endswith("bias"):
            scale = 0.1
        elif name.endswith("padding_tokens"):
            scale = 0.5
        else:
            scale = 1.732 if isinstance(network, MotionEncoder) else 1.732 / parameter[0].numel() ** 0.5
        parameter.data = (values * scale).view(parameter.shape).float()


def uniform(count: int, stream: int) -> Tensor:
    """``count`` numbers of splitmix64 in [-1, 1), float64; whole numbers wrap round at 64 bits."""
    signed = [constant - (1 << 64 if constant >> 63 else 0) for constant in _MIX]

    def shifted(numbers: Tensor, bits: int) -> Tensor:  # as if there were no sign
        return (numbers >> bits) & ((1 << (64 - bits)) - 1)

    state = (torch.arange(count, dtype=torch.int64) + (stream << 32) + 1) * signed[0]
    state = (state ^ shifted(state, 30)) * signed[1]
    state = (state ^ shifted(state, 27)) * signed[2]
    state = state ^ shifted(state, 31)
    return shifted(state, 40).double() * 2 / 2**24 - 1


@handles("animate_motion_encoder")
def check_motion_encoder(case: GoldenCase) -> dict[str, Tensor]:
    config = AnimateDiTConfig(**motion_options(case.config))
    encoder = MotionEncoder(config)
    if case.weights:
        encoder.load_state_dict(case.weights)
    else:
        hashed(case, encoder)
    images = case.inputs.get("image")
    if images is None:
        images = functional.interpolate(case.inputs["image_coarse"], size=(config.face_size,) * 2, mode="bilinear")
    appearance = encoder.enc.net_app(images)
    coefficients = encoder.enc.fc(appearance)
    motion = encoder(images) if case.weights else encoder.dec(coefficients)  # the whole takes seconds at full size
    return {"mid.appearance": appearance, "mid.motion_feat": coefficients, "out.motion": motion}


@handles("animate_face_encoder")
def check_face_encoder(case: GoldenCase) -> dict[str, Tensor]:
    options = case.config
    config = AnimateDiTConfig(
        dim=options["hidden_dim"],
        num_heads=options.get("heads", options["num_heads"]),
        motion_encoder_dim=options["in_dim"],
        motion_dim=1,
        face_encoder_hidden_dim=options.get("enc", _FULL.face_encoder_hidden_dim),
        face_encoder_num_heads=options["num_heads"],
    )
    encoder = FaceTower(config)
    if case.weights:
        encoder.load_state_dict(case.named("weights.encoder."))
    else:
        hashed(case, encoder)
    tokens = encoder(case.inputs["motion"])
    computed = {"out.tokens": tokens}
    if "hidden" in case.inputs:
        block = FaceBlock(config)
        block.load_state_dict(case.named("weights.block."))
        face, hidden = functional.pad(tokens, (0, 0, 0, 0, 1, 0)), case.inputs["hidden"]
        # The tokens of each frame are neighbours.
        by_frame = hidden.unflatten(1, (face.shape[1], -1)).flatten(0, 1)
        computed["out.block"] = block(by_frame, face.flatten(0, 1)).reshape(hidden.shape)
    return computed
