"""Text encoders and their tokenizers."""

from typing import TYPE_CHECKING

from wan_core.lazy import on_demand

if TYPE_CHECKING:
    from wan_core.models.text.config import UMT5_XXL, UMT5Config
    from wan_core.models.text.encoder import TextEncoder
    from wan_core.models.text.tokenizer import Tokenizer, load_tokenizer
    from wan_core.models.text.umt5 import UMT5Encoder
else:
    __getattr__, __dir__ = on_demand(__name__)

__all__ = [
    "UMT5_XXL",
    "TextEncoder",
    "Tokenizer",
    "UMT5Config",
    "UMT5Encoder",
    "load_tokenizer",
]
