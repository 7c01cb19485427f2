"""The Wan 2.1 and 2.2 video autoencoders."""

from wan_core.models.vae.config import WAN21_VAE, WAN22_VAE, VAEConfig
from wan_core.models.vae.video_vae import VideoVAE

__all__ = ["WAN21_VAE", "WAN22_VAE", "VAEConfig", "VideoVAE"]
