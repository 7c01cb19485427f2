"""Pi3 and Pi3X: point maps, depth, camera poses and confidence from unordered images.

Names are imported when they are first used, so that ``pi3 --help`` and the errors need no torch.
"""

from typing import TYPE_CHECKING

from wan_core.lazy import on_demand

if TYPE_CHECKING:
    from pi3.checkpoints import load_pi3
    from pi3.conditions import Conditions
    from pi3.config import DinoConfig, Pi3Config, Pi3XConfig
    from pi3.edges import keep_mask
    from pi3.images import pictures_to_tensor
    from pi3.model import Pi3, Pi3Latents, Pi3Output
    from pi3.pi3x import Pi3X
    from pi3.ply import write_ply
else:
    __getattr__, __dir__ = on_demand(__name__)

__all__ = [
    "Conditions",
    "DinoConfig",
    "Pi3",
    "Pi3Config",
    "Pi3Latents",
    "Pi3Output",
    "Pi3X",
    "Pi3XConfig",
    "keep_mask",
    "load_pi3",
    "pictures_to_tensor",
    "write_ply",
]
