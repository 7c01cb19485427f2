"""diffusers' names of Wan-Animate onto the official ones.

It keeps keys and values of a face apart, biases flat, and no weights of the blur, which are always the same.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from dataclasses import replace
from typing import TYPE_CHECKING

from wan_core.checkpoints.families.dit import DIFFUSERS_DIT, DIT, split_fused_attention
from wan_core.checkpoints.formats import Made, Renames

if TYPE_CHECKING:
    from torch import Tensor

_CONVS = "motion_encoder.enc.net_app.convs"
_THEIRS = "motion_encoder.res_blocks"

_RENAMES: Renames = (
    *DIFFUSERS_DIT,
    ("motion_encoder.conv_in.weight", f"{_CONVS}.0.0.weight"),
    ("motion_encoder.motion_network.{}", "motion_encoder.enc.fc.{}"),
    ("motion_encoder.motion_synthesis_weight", "motion_encoder.dec.direction.weight"),
    *(
        (f"face_encoder.{conv}.{kind}", f"face_encoder.{conv}.conv.{kind}")
        for conv in ("conv1_local", "conv2", "conv3")
        for kind in ("weight", "bias")
    ),
    ("face_adapter.{}.to_q", "face_adapter.fuser_blocks.{}.linear1_q"),
    ("face_adapter.{}.to_kv", "face_adapter.fuser_blocks.{}.linear1_kv"),
    ("face_adapter.{}.to_out", "face_adapter.fuser_blocks.{}.linear2"),
    ("face_adapter.{}.norm_q", "face_adapter.fuser_blocks.{}.q_norm"),
    ("face_adapter.{}.norm_k", "face_adapter.fuser_blocks.{}.k_norm"),
)

_BIAS = re.compile(r"motion_encoder\.(?:conv_in|res_blocks\.(\d+)\.(conv[12]))\.act_fn\.bias")
_NATIVE_BIAS = re.compile(rf"{re.escape(_CONVS)}\.(?:0|(\d+)\.(conv[12]))\.[12]\.bias")
_BLURRED = re.compile(r"motion_encoder\.res_blocks\.(\d+)\.(conv2|conv_skip)\.weight")
_NATIVE_BLURRED = re.compile(rf"{re.escape(_CONVS)}\.(\d+)\.(conv2|skip)\.1\.weight")
_PAIR = re.compile(r"face_adapter\.(\d+)\.to_k\.(weight|bias)")
_NATIVE_PAIR = re.compile(r"face_adapter\.fuser_blocks\.(\d+)\.linear1_kv\.(weight|bias)")


def _blocks(names: Collection[str]) -> Renames:
    """The blocks of the motion encoder, which are counted from one there, and the layer behind the last."""
    theirs = [int(match[1]) for name in names if (match := re.match(rf"{re.escape(_THEIRS)}\.(\d+)\.", name))]
    ours = [int(match[1]) for name in names if (match := re.match(rf"{re.escape(_CONVS)}\.(\d+)\.conv1\.", name))]
    count = max([*(index + 1 for index in theirs), *ours], default=0)
    first = ((f"{_THEIRS}.{index}.conv1.weight", f"{_CONVS}.{index + 1}.conv1.0.weight") for index in range(count))
    return (*first, ("motion_encoder.conv_out", f"{_CONVS}.{count + 1}"))


def _split(name: str, tensor: Tensor) -> dict[str, Tensor] | None:
    from wan_core.models.dit.motion_encoder import blur_kernel

    if match := _BIAS.fullmatch(name):
        place = "0.1" if match[1] is None else f"{int(match[1]) + 1}.{match[2]}.{match[2][-1]}"
        return {f"{_CONVS}.{place}.bias": tensor.view(1, -1, 1, 1)}
    if match := _BLURRED.fullmatch(name):
        place = f"{_CONVS}.{int(match[1]) + 1}.{match[2].removeprefix('conv_')}"
        return {f"{place}.1.weight": tensor, f"{place}.0.kernel": blur_kernel()}
    return split_fused_attention(name, tensor)


def _fuse(names: Collection[str]) -> dict[str, Made]:
    import torch

    def joined(*parts: Tensor) -> Tensor:
        return torch.cat(parts)

    made: dict[str, Made] = {}
    for name in names:
        if match := _PAIR.fullmatch(name):
            inputs = name, f"face_adapter.{match[1]}.to_v.{match[2]}"
            made[f"face_adapter.fuser_blocks.{match[1]}.linear1_kv.{match[2]}"] = (inputs, joined)
    return made


def _join(names: Collection[str]) -> dict[str, Made]:
    made: dict[str, Made] = {}
    for name in names:
        if match := _NATIVE_PAIR.fullmatch(name):
            for half, part in enumerate(("to_k", "to_v")):
                made[f"face_adapter.{match[1]}.{part}.{match[2]}"] = ((name,), _half(half))
        elif match := _NATIVE_BIAS.fullmatch(name):
            place = "conv_in" if match[1] is None else f"res_blocks.{int(match[1]) - 1}.{match[2]}"
            made[f"motion_encoder.{place}.act_fn.bias"] = ((name,), lambda bias: bias.flatten())
        elif match := _NATIVE_BLURRED.fullmatch(name):
            layer = {"conv2": "conv2", "skip": "conv_skip"}[match[2]]
            kernel = name.removesuffix("1.weight") + "0.kernel"
            made[f"{_THEIRS}.{int(match[1]) - 1}.{layer}.weight"] = ((name, kernel), lambda weight, kernel: weight)
    return made


def _half(index: int) -> Callable[..., Tensor]:
    return lambda pair: pair.chunk(2)[index]


DIFFUSERS_ANIMATE = replace(
    DIT.formats[0],
    marker=rf"{DIT.formats[0].marker}|(?:^|\.)face_adapter\.\d+\.",
    renames=_RENAMES,
    renames_for=_blocks,
    split=_split,
    fuse=_fuse,
    join=_join,
)
"""The names of WanAnimateTransformer3DModel."""
