"""The tiny family's architecture, in one place: the package's presets, plus what only training needs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from tools.tiny.world import vocabulary
from wan_core.models import TextEncoder, UMT5Config, UMT5Encoder, VAEConfig, WanDiTConfig, load_tokenizer

Z_DIM = 24
TEXT_LEN = 24
VAE = VAEConfig(
    dim=24,
    dec_dim=24,
    z_dim=Z_DIM,
    dim_mult=(1, 2, 2),
    num_res_blocks=1,
    temporal_downsample=(True, True),
    patch_size=2,
    residual=True,
)
TEXT = UMT5Config(vocab_size=128, dim=96, dim_attn=96, dim_ffn=192, num_heads=4, num_layers=2)
DIT = WanDiTConfig(
    in_dim=Z_DIM,
    out_dim=Z_DIM,
    dim=128,
    ffn_dim=512,
    num_heads=4,
    num_layers=6,
    text_dim=TEXT.dim,
    text_len=TEXT_LEN,
    patch_size=(1, 1, 1),
)
I2V = replace(DIT, in_dim=2 * Z_DIM + 4)
BOUNDARY = 0.875
LATENT_FRAMES, LATENT_SIZE = 5, 8

WEIGHTS = Path(__file__).parents[2] / "packages/wan-core/src/wan_core/weights/tiny"
SPECIAL_WORDS = ("<pad>", "</s>", "<unk>")


def write_tokenizer(folder: Path) -> Path:
    """Write ``tokenizer.json``: one id per word of the world, lower case, marks apart; returns its path."""
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


def text_encoder(model: UMT5Encoder) -> TextEncoder:
    """The text model with the family's tokenizer."""
    return TextEncoder(model, load_tokenizer(WEIGHTS / "tokenizer"), TEXT_LEN)
