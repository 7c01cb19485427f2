"""Text encoders and their tokenizers."""

from wan_core.models.text.encoder import TextEncoder
from wan_core.models.text.tokenizer import Tokenizer, load_tokenizer
from wan_core.models.text.umt5 import UMT5_XXL, UMT5Config, UMT5Encoder

__all__ = [
    "UMT5_XXL",
    "TextEncoder",
    "Tokenizer",
    "UMT5Config",
    "UMT5Encoder",
    "load_tokenizer",
]
