"""The tiny family as its recipes use it: what the package's presets say, its bundled parts, its tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from tools.tiny.world import vocabulary
from wan_core.checkpoints import load_model, read_weights
from wan_core.loading import checkpoint_folder
from wan_core.media import VideoGeometry
from wan_core.models import TextEncoder, UMT5Config, UMT5Encoder, VideoVAE, load_tokenizer
from wan_core.presets import get_preset

PRESET = get_preset("tiny-t2v")
VAE, DIT = PRESET.vae, PRESET.dit
TEXT: UMT5Config = PRESET.part("text_encoder").config
I2V = get_preset("tiny-i2v").dit
BOUNDARY = get_preset("tiny-moe").boundary or 0.0
SAMPLING = PRESET.sampling
GEOMETRY = VideoGeometry.for_video(
    PRESET.latent_spec, num_frames=SAMPLING.num_frames, height=SAMPLING.height, width=SAMPLING.width
)

WEIGHTS = checkpoint_folder(PRESET, None)
SPECIAL_WORDS = ("<pad>", "</s>", "<unk>")


def write_tokenizer(folder: Path) -> Path:
    """Write ``tokenizer.json``: one id per word of the world, lower case, punctuation apart; returns its path."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

    words = {word: index for index, word in enumerate((*SPECIAL_WORDS, *vocabulary()))}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Lowercase(), normalizers.Replace(Regex(r"\bgrey\b"), "gray"), normalizers.Replace(".", " ")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(list(SPECIAL_WORDS))
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(json.loads(tokenizer.to_str()), indent=1) + "\n")
    return path


def load_bundled(name: str) -> Any:
    """The network of a bundled part (``dit``, ``vae``, ``text_encoder``) in float32; it may be trained further."""
    part = PRESET.part(name)
    return load_model(part.config, read_weights(WEIGHTS / part.file), family=part.family, dtype=torch.float32)


def load_frozen() -> tuple[VideoVAE, TextEncoder]:
    """The bundled autoencoder and text encoder, as a DiT stage uses them."""
    return load_bundled("vae"), text_encoder(load_bundled("text_encoder"))


def text_encoder(model: UMT5Encoder) -> TextEncoder:
    """The text model with the family's tokenizer."""
    return TextEncoder(model, load_tokenizer(WEIGHTS / "tokenizer"), DIT.text_len)
