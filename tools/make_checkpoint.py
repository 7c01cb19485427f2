"""Write a checkpoint in the exact layout of a real one, with tiny dims and seeded weights: PRESET OUT.

File names, formats, shards, stored dtypes and tensor names are those of the published folders, so every loading path
runs in tests without a download. One addition: ``config.json`` also states ``text_dim``, which real ones leave out.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from selfforcing_unianimate.pose_config import PoseConfig
from selfforcing_unianimate.pose_weights import CHECKPOINT, POSE_ENCODER
from tools.small_tokenizer import VOCAB_SIZE, write_tokenizer
from wan_core.checkpoints import ANIMATE, FLF2V, S2V, UMT5, VAE, WAV2VEC2, Family, MemorySource, in_format, write_shards
from wan_core.checkpoints import CLIP as CLIP_FAMILY
from wan_core.checkpoints import DIT as DIT_FAMILY
from wan_core.checkpoints.families.wav2vec2 import transformers_config
from wan_core.models import (
    AnimateDiTConfig,
    CLIPConfig,
    FLF2VConfig,
    S2VConfig,
    UMT5Config,
    VAEConfig,
    WanDiTConfig,
    Wav2Vec2Config,
)

TEXT_ENCODER_FILE = "models_t5_umt5-xxl-enc-bf16.pth"
CLIP_FILE = "models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth"
TOKENIZER_FOLDER = "google/umt5-xxl"
CLIP_TOKENIZER_FOLDER = "xlm-roberta-large"
SPEECH_FOLDER = "wav2vec2-large-xlsr-53-english"
RELIGHTING_FILE = "relighting_lora.ckpt"
RANK = 4
EXPERTS = ("high_noise_model", "low_noise_model")
BLOCK_LAYERS = (*(f"{kind}.{name}" for kind in ("self_attn", "cross_attn") for name in "qkvo"), "ffn.0", "ffn.2")

DIT = WanDiTConfig(dim=64, ffn_dim=128, num_heads=4, num_layers=2, text_dim=32)
VAE_21 = VAEConfig(dim=8, z_dim=16)
VAE_22 = VAEConfig(dim=8, dec_dim=8, z_dim=48, patch_size=2, residual=True)
TEXT_ENCODER = UMT5Config(vocab_size=VOCAB_SIZE + 8, dim=32, dim_attn=32, dim_ffn=64, num_heads=2, num_layers=2)
# 80 channels a head, as in the real tower; 257 tokens an image, which the transformer counts on.
CLIP = CLIPConfig(dim=160, ffn_dim=320, num_heads=2, num_layers=2)
SPEECH_ENCODER = Wav2Vec2Config(
    dim=32, ffn_dim=64, num_heads=2, num_layers=3, conv_dims=(16,) * 7, position_kernel=16, position_groups=4
)


NETWORKS: Mapping[type, Family] = {
    WanDiTConfig: DIT_FAMILY, FLF2VConfig: FLF2V, VAEConfig: VAE, UMT5Config: UMT5, CLIPConfig: CLIP_FAMILY,
    PoseConfig: POSE_ENCODER, Wav2Vec2Config: WAV2VEC2, S2VConfig: S2V,
    AnimateDiTConfig: ANIMATE,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What a published folder holds: transformer folders, shards of each (None: one file), and the other parts."""

    model_type: str
    dit: WanDiTConfig = DIT
    folders: tuple[str, ...] = ("",)
    num_shards: int | None = 2
    vae: VAEConfig = VAE_21
    vae_file: str = "Wan2.1_VAE.pth"
    clip: CLIPConfig | None = None
    has_speech: bool = False


LAYOUTS: Mapping[str, Layout] = {
    "t2v-A14B": Layout(model_type="t2v", folders=EXPERTS),
    "i2v-A14B": Layout(model_type="i2v", folders=EXPERTS, dit=replace(DIT, in_dim=36)),
    "ti2v-5B": Layout(
        model_type="ti2v", dit=replace(DIT, in_dim=48, out_dim=48), vae=VAE_22, vae_file="Wan2.2_VAE.pth", num_shards=3
    ),
    "t2v-1.3B": Layout(model_type="t2v", num_shards=None),
    "t2v-14B": Layout(model_type="t2v", num_shards=6),
    "i2v-14B-480P": Layout(model_type="i2v", dit=replace(DIT, in_dim=36, image_dim=CLIP.dim), clip=CLIP, num_shards=7),
    "flf2v-14B": Layout(
        model_type="flf2v",
        dit=FLF2VConfig(dim=64, ffn_dim=128, num_heads=4, num_layers=2, text_dim=32, image_dim=CLIP.dim),
        clip=CLIP,
        num_shards=7,
    ),
    "s2v-14B": Layout(
        model_type="s2v",
        dit=S2VConfig(
            dim=64,
            ffn_dim=128,
            num_heads=4,
            num_layers=3,
            text_dim=32,
            audio_dim=SPEECH_ENCODER.dim,
            audio_layers=SPEECH_ENCODER.states,
            audio_inject_layers=(0, 2),
            zero_init=False,
        ),
        has_speech=True,
        num_shards=4,
    ),
    "animate-14B": Layout(
        model_type="animate",
        dit=AnimateDiTConfig(
            dim=64,
            ffn_dim=128,
            num_heads=4,
            num_layers=5,
            text_dim=32,
            image_dim=CLIP.dim,
            motion_encoder_channels=(4, 6, 8, 8),
            motion_style_dim=24,
            motion_dim=5,
            motion_encoder_dim=24,
            face_encoder_hidden_dim=16,
        ),
        clip=CLIP,
        num_shards=4,
    ),
    "i2v-14B-720P": Layout(model_type="i2v", dit=replace(DIT, in_dim=36, image_dim=CLIP.dim), clip=CLIP, num_shards=7),
}
"""The published folders, by preset."""


TEACHER, TEACHER_BASE = "unianimate-14B", "i2v-14B-720P"
"""The teacher of sfu: the folder of its base, with UniAnimate's file in it."""


def make_checkpoint(preset: str, out: str | Path, seed: int = 0) -> Path:
    """Write the checkpoint of ``preset`` into the folder ``out`` and return it. Equal seeds give equal weights."""
    if preset == TEACHER:
        return write_unianimate(make_checkpoint(TEACHER_BASE, out, seed), seed)
    layout, out = LAYOUTS[preset], Path(out)
    out.mkdir(parents=True, exist_ok=True)
    for number, folder in enumerate(layout.folders):
        write_dit(layout, out / folder, seed + number)
    save(seeded(layout.vae, seed + 10).state_dict(), out / layout.vae_file)
    text_encoder = seeded(TEXT_ENCODER, seed + 11).to(torch.bfloat16)
    save(text_encoder.state_dict(), out / TEXT_ENCODER_FILE)
    write_tokenizer(out / TOKENIZER_FOLDER)
    if layout.clip is not None:
        save(original_clip(seeded(layout.clip, seed + 12).state_dict()), out / CLIP_FILE)
        write_tokenizer(out / CLIP_TOKENIZER_FOLDER)
    if layout.has_speech:
        write_speech_encoder(out / SPEECH_FOLDER, seed + 15)
    if layout.model_type == "animate":
        write_relighting(out / RELIGHTING_FILE, layout.dit, seed + 16)
    return out


def seeded(config: Any, seed: int) -> nn.Module:
    """The network of a config; the global random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return NETWORKS[type(config)].build(config)


def write_dit(layout: Layout, folder: Path, seed: int) -> None:
    """One transformer: ``config.json`` and its safetensors."""
    weights = MemorySource(seeded(layout.dit, seed).state_dict(), metadata={"format": "pt"})
    shard = weights.nbytes if layout.num_shards is None else shard_bytes(weights, layout.num_shards)
    write_shards(weights, folder, max_shard_bytes=shard)
    (folder / "config.json").write_text(json.dumps(official_config(layout), indent=2, sort_keys=True) + "\n")


def write_unianimate(folder: Path, seed: int) -> Path:
    """UniAnimate's file: a LoRA of ten layers a block, and the pose encoder beside it. Returns the folder."""
    dit = LAYOUTS[TEACHER_BASE].dit
    pose = PoseConfig(token_dim=dit.dim, reference_channels=VAE_21.z_dim + VAE_21.temporal_stride)
    tensors = seeded(pose, seed + 13).state_dict()
    pairs = lora_pairs(dit, BLOCK_LAYERS, seed + 14)
    tensors |= {f"pipe.dit.{layer}.lora_{half}.default.weight": pair for (layer, half), pair in pairs.items()}
    save(tensors, folder / CHECKPOINT)
    return folder


def write_relighting(path: Path, dit: WanDiTConfig, seed: int) -> None:
    """The relighting LoRA of Wan-Animate: all linear layers of the blocks, in a trainer's nesting."""
    pairs = lora_pairs(dit, (*BLOCK_LAYERS, "cross_attn.k_img", "cross_attn.v_img"), seed)
    torch.save({"state_dict": {f"{layer}.lora_{half}.weight": pair for (layer, half), pair in pairs.items()}}, path)


def lora_pairs(dit: WanDiTConfig, layers: Sequence[str], seed: int) -> dict[tuple[str, str], Tensor]:
    """Both halves, A and B, of a LoRA of these layers of each block, by their layer."""
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in NETWORKS[type(dit)].build(dit).state_dict().items()}
    generator = torch.Generator().manual_seed(seed)
    pairs: dict[tuple[str, str], Tensor] = {}
    for layer in (f"blocks.{block}.{layer}" for block in range(dit.num_layers) for layer in layers):
        wide, narrow = shapes[f"{layer}.weight"]
        pairs[layer, "A"] = torch.randn(RANK, narrow, generator=generator) / 8
        pairs[layer, "B"] = torch.randn(wide, RANK, generator=generator) / 8
    return pairs


def write_speech_encoder(folder: Path, seed: int) -> Path:
    """S2V's speech encoder as it is published: transformers' older names, the head for text, both JSON files."""
    encoder = MemorySource(seeded(SPEECH_ENCODER, seed).state_dict())
    named = in_format(encoder, "wav2vec2", "weight_norm")
    tensors = {f"wav2vec2.{name}": named.read(name) for name in named}
    tensors["wav2vec2.masked_spec_embed"] = torch.zeros(SPEECH_ENCODER.dim)
    tensors |= {"lm_head.weight": torch.zeros(33, SPEECH_ENCODER.dim), "lm_head.bias": torch.zeros(33)}
    write_shards(MemorySource(tensors, metadata={"format": "pt"}), folder, stem="model")
    config = {**transformers_config(SPEECH_ENCODER), "architectures": ["Wav2Vec2ForCTC"], "vocab_size": 33}
    processor = {"do_normalize": True, "feature_size": 1, "return_attention_mask": True, "sampling_rate": 16_000}
    for name, content in (("config.json", config), ("preprocessor_config.json", processor)):
        (folder / name).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
    return folder


def shard_bytes(weights: MemorySource, count: int) -> int:
    """The smallest shard size that gives ``count`` shards, or the next lower possible count."""
    low, high = max(weights.info(name).nbytes for name in weights), weights.nbytes
    while low < high:
        middle, shards, filled = (low + high) // 2, 1, 0
        for name in weights:
            size = weights.info(name).nbytes
            shards, filled = (shards + 1, size) if filled + size > middle else (shards, filled + size)
        low, high = (low, middle) if shards <= count else (middle + 1, high)
    return low


def official_config(layout: Layout) -> dict[str, object]:
    """The keys of a published ``config.json``, and ``text_dim``."""
    dit = layout.dit
    if isinstance(dit, S2VConfig):
        off = dict.fromkeys(("enable_motioner", "enable_tsm", "trainable_token_pos_emb"), False)
        return {**dict(S2V.official_config(dit)), **off, "motion_token_num": 1024, "zero_init": True}
    if isinstance(dit, AnimateDiTConfig):
        return {**dict(ANIMATE.official_config(dit)), "use_context_parallel": False}
    return {
        "_class_name": "WanModel",
        "_diffusers_version": "0.30.0",
        "model_type": layout.model_type,
        "in_dim": dit.in_dim,
        "out_dim": dit.out_dim,
        "dim": dit.dim,
        "ffn_dim": dit.ffn_dim,
        "freq_dim": dit.freq_dim,
        "num_heads": dit.num_heads,
        "num_layers": dit.num_layers,
        "text_len": dit.text_len,
        "text_dim": dit.text_dim,
        "eps": dit.eps,
    }


def original_clip(tower: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The whole original file: the tower under its names there, and the halves that Wan does not use."""
    original = in_format(MemorySource(tower), "clip", "official")
    tensors = {name: original.read(name) for name in original}
    width = tensors["visual.pre_norm.weight"].shape[0]
    return tensors | {
        "visual.head": torch.zeros(width, 16),
        "log_scale": torch.tensor(2.6592),
        "textual.model.token_embedding.weight": torch.zeros(8, 16),
        "textual.head.0.weight": torch.zeros(16, 16),
    }


def save(tensors: Mapping[str, Tensor], path: Path) -> None:
    """A ``.pth`` as the published ones: a plain dict of tensors."""
    torch.save({name: tensor.clone() for name, tensor in tensors.items()}, path)


def main(arguments: list[str] | None = None) -> int:
    """Make one checkpoint. Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("preset", choices=[*LAYOUTS, TEACHER])
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    folder = make_checkpoint(options.preset, options.out, options.seed)
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        print(f"{path.stat().st_size:>10}  {path.relative_to(folder)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
