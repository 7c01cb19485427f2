"""The Wan 2.1 and 2.2 video autoencoders."""

from typing import TYPE_CHECKING

from wan_core.lazy import on_demand

if TYPE_CHECKING:
    from wan_core.models.vae.causal import DecoderCache
    from wan_core.models.vae.config import WAN21_VAE, WAN22_VAE, VAEConfig
    from wan_core.models.vae.tiling import Tiling
    from wan_core.models.vae.video_vae import VideoVAE
else:
    __getattr__, __dir__ = on_demand(__name__)

__all__ = ["WAN21_VAE", "WAN22_VAE", "DecoderCache", "Tiling", "VAEConfig", "VideoVAE"]
