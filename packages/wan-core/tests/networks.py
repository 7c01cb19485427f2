"""Networks of configs, and configs of tensors, for tests that go through every family."""

from typing import Any

from torch import nn

from wan_core.checkpoints import CLIP, DIT, UMT5, VAE, WAV2VEC2, TensorSource
from wan_core.models import CLIPConfig, UMT5Config, VAEConfig, WanDiTConfig, Wav2Vec2Config

FAMILIES = {WanDiTConfig: DIT, VAEConfig: VAE, UMT5Config: UMT5, CLIPConfig: CLIP, Wav2Vec2Config: WAV2VEC2}


def build(config: Any) -> nn.Module:
    """The network of a config with random weights."""
    return FAMILIES[type(config)].build(config)


def infer_dit_config(source: TensorSource) -> Any:
    return DIT.read_config(source.path, source)


def infer_vae_config(source: TensorSource) -> Any:
    return VAE.read_config(source.path, source)


def infer_umt5_config(source: TensorSource) -> Any:
    return UMT5.read_config(source.path, source)


def infer_wav2vec2_config(source: TensorSource) -> Any:
    return WAV2VEC2.read_config(source.path, source)


def infer_clip_config(source: TensorSource) -> Any:
    return CLIP.read_config(source.path, source)
