"""Hold real-size networks against the published lists of tensors: ``check_manifests.py DIR``; exit 1 on differences.

A manifest is a JSON file with ``tensors``: names to shapes. Each is compared with the network that the table below
names, built on the meta device, after its names went through the format tables. No weights are needed.
"""

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bindweave import BINDWEAVE, BindWeaveConfig
from bindweave.mllm import MLLM
from bindweave.mllm_config import MLLMConfig
from pi3 import Pi3Config, Pi3XConfig
from pi3.checkpoints import build
from poze import Pi3FeatureAdapter
from selfforcing_unianimate import CAUSAL_DIT, CausalDiTConfig
from selfforcing_unianimate.distillation.adversary import GANCritic
from selfforcing_unianimate.pose_config import PoseConfig
from selfforcing_unianimate.pose_weights import POSE_ENCODER
from wan_core.checkpoints import (
    ANIMATE,
    CLIP,
    DIT,
    S2V,
    UMT5,
    VAE,
    WAV2VEC2,
    Family,
    MemorySource,
    build_on_meta,
    native_weights,
)
from wan_core.checkpoints.lora.file import LoRAFile
from wan_core.checkpoints.lora.matching import Matching
from wan_core.errors import CheckpointError
from wan_core.models import (
    CLIP_VIT_H14,
    UMT5_XXL,
    WAN21_VAE,
    WAN22_VAE,
    WAV2VEC2_LARGE_XLSR_53,
    AnimateDiTConfig,
    S2VConfig,
)
from wan_core.presets import get_preset

SHOWN = 5


@dataclass(frozen=True)
class Expected:
    """What a manifest lists: a family of formats (None: the names are native), and how to build the network."""

    family: str | None
    build: Callable[[], nn.Module]


def expected(family: Family, config: Any) -> Expected:
    """A network of one of the core's families."""
    return Expected(family.name, partial(family.build, config))


DITS = {
    "wan2.1_i2v_14b": "i2v-14B-720P",
    "wan2.1_t2v_1.3b": "t2v-1.3B",
    "wan2.1_t2v_14b": "t2v-14B",
    "wan2.2_i2v_a14b": "i2v-A14B",
    "wan2.2_t2v_a14b": "t2v-A14B",
    "wan2.2_ti2v_5b": "ti2v-5B",
}
"""Presets of the transformers, by the name of their manifest."""


def dit(name: str) -> Expected:
    """The transformer of a preset."""
    return expected(DIT, get_preset(name).dit)


CAUSAL = CausalDiTConfig(**vars(get_preset("t2v-1.3B").dit))


S2V_DIT = S2VConfig(**vars(get_preset("t2v-A14B").dit))


ANIMATE_DIT = AnimateDiTConfig(**vars(get_preset("i2v-14B-720P").dit))


BINDWEAVE_DIT = BindWeaveConfig(**vars(get_preset("i2v-14B-720P").dit))


def connector() -> nn.Module:
    """What BindWeave's transformer adds to Wan's, and nothing else."""
    return nn.ModuleDict({"text_projector": BINDWEAVE.build(BINDWEAVE_DIT).get_submodule("text_projector")})


def pose_projection() -> nn.Module:
    """What the causal transformer adds to the official names, and nothing else."""
    return nn.ModuleDict({"pose_proj": CAUSAL_DIT.build(CAUSAL).get_submodule("pose_proj")})


def gan_critic_extras() -> nn.Module:
    """What the GAN critic has beside its transformer."""
    critic = GANCritic(CAUSAL_DIT.build(CAUSAL))
    return nn.ModuleDict({name: child for name, child in critic.named_children() if name != "model"})


MANIFESTS: Mapping[str, Expected] = {
    **{f"dit_{name}": dit(preset) for name, preset in DITS.items()},
    **{f"diffusers_dit_{name}": dit(preset) for name, preset in DITS.items()},
    "wan21_i2v_14b": dit("i2v-14B-720P"),
    "wan2.1_vae": expected(VAE, WAN21_VAE),
    "wan2.1_vae_diffusers": expected(VAE, WAN21_VAE),
    "wan2.2_vae": expected(VAE, WAN22_VAE),
    "wan2.2_vae_diffusers": expected(VAE, WAN22_VAE),
    "umt5_xxl_encoder_original": expected(UMT5, UMT5_XXL),
    "umt5_xxl_encoder_transformers": expected(UMT5, UMT5_XXL),
    "clip_vit_h14_visual_original": expected(CLIP, CLIP_VIT_H14),
    "clip_vit_h14_visual_transformers": expected(CLIP, CLIP_VIT_H14),
    "clip_xlm_roberta_vit_h14_full_original": expected(CLIP, CLIP_VIT_H14),
    "wav2vec2_large_xlsr_53_english": expected(WAV2VEC2, WAV2VEC2_LARGE_XLSR_53),
    "bindweave_14b": expected(BINDWEAVE, BINDWEAVE_DIT),
    "bindweave_14b_mm": expected(BINDWEAVE, BINDWEAVE_DIT),
    "bindweave_connector": Expected(None, connector),
    "pi3": Expected(None, partial(build, Pi3Config())),
    "pi3x": Expected(None, partial(build, Pi3XConfig())),
    "pose_proj_1_3b": Expected(None, pose_projection),
    "self_forcing_causal_1_3b": dit("t2v-1.3B"),
    "self_forcing_gan_critic_extras": Expected(None, gan_critic_extras),
    "s2v_14b": expected(S2V, S2V_DIT),
    "animate_14b": expected(ANIMATE, ANIMATE_DIT),
    "selfforcing_unianimate_causal_1_3b": expected(CAUSAL_DIT, CAUSAL),
    "qwen2_5_vl_7b": expected(MLLM, MLLMConfig()),
    "unianimate_pose_modules": expected(POSE_ENCODER, PoseConfig()),
    "poze_adapter_ti2v5b": Expected(None, lambda: Pi3FeatureAdapter(2048, 3072)),
}
"""The manifests that some code answers for, by file name."""

LORAS = {"unianimate_lora_14b": "unianimate-14B"}
"""Those that list a LoRA, with the preset whose transformer it changes."""


def unused_pairs(manifest: Mapping[str, list[int]], preset: str) -> list[str]:
    """What a LoRA of these tensors does not change of a transformer. Raises CheckpointError for what has no place."""
    native = MemorySource(build_on_meta(partial(DIT.build, get_preset(preset).dit)).state_dict())
    source = MemorySource({name: torch.empty(shape, device="meta") for name, shape in manifest.items()})
    file = LoRAFile(source, DIT.formats, native.keys())
    matching = Matching(file, file.layers, native, DIT)
    matching.misfits.check(force=False)
    count, pairs = len({update.target for update in matching.updates}), len(manifest) // 2
    return [] if count == pairs else [f"{pairs} pairs change {count} weights"]


def differences(manifest: Mapping[str, list[int]], expected: Expected) -> list[str]:
    """One line for each tensor that is missing, unexpected or of another shape."""
    tensors = {name: torch.empty(shape, device="meta") for name, shape in manifest.items()}
    source = MemorySource(tensors)
    listed = source if expected.family is None else native_weights(source, expected.family)
    built = {name: tuple(tensor.shape) for name, tensor in build_on_meta(expected.build).state_dict().items()}
    return [
        *(f"the network lacks {name}" for name in listed if name not in built),
        *(f"the manifest lacks {name}" for name in built if name not in listed),
        *(
            f"{name} is {list(built[name])}, the manifest says {list(listed.info(name).shape)}"
            for name in listed
            if name in built and built[name] != listed.info(name).shape
        ),
    ]


def check(path: Path) -> bool:
    """Check one manifest and say what came out; whether it passed."""
    content = json.loads(path.read_text(encoding="utf-8"))
    expected, lora = MANIFESTS.get(path.stem), LORAS.get(path.stem)
    if expected is None and lora is None:
        print(f"UNKNOWN {path.stem}: no code answers for it yet")
        return True
    try:
        tensors = content["tensors"]
        found = unused_pairs(tensors, lora) if lora else differences(tensors, expected) if expected else []
    except CheckpointError as error:
        found = [str(error)]
    print(f"{'FAIL' if found else 'PASS'}    {path.stem}: {len(content['tensors'])} tensors")
    for line in found[:SHOWN]:
        print(f"        {line}")
    if len(found) > SHOWN:
        print(f"        and {len(found) - SHOWN} more")
    return not found


def main(arguments: list[str] | None = None) -> int:
    """Check every manifest of a folder. Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="folder of manifests (*.json)")
    folder = parser.parse_args(arguments).folder
    paths = sorted(folder.glob("*.json"))
    if not paths:
        print(f"no manifests in {folder}")
        return 1
    passed = [check(path) for path in paths]
    unknown = sum(path.stem not in {**MANIFESTS, **LORAS} for path in paths)
    print(f"{sum(passed) - unknown} passed, {passed.count(False)} failed, {unknown} unknown")
    return 0 if all(passed) else 1


if __name__ == "__main__":
    sys.exit(main())
