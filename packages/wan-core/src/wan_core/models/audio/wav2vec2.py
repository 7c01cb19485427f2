"""The speech encoder whose states condition Wan2.2 speech-to-video.

Paper: Baevski et al., "wav2vec 2.0: A Framework for Self-Supervised Learning of Speech Representations" (2020); the
weights are those of XLSR-53 (Conneau et al., 2020) tuned on English. The network is transformers' Wav2Vec2Model;
preprocessing and the choice of states are our own code.
"""

from typing import Any

import torch
from torch import Tensor, nn

from wan_core.errors import RequestError
from wan_core.models.audio.config import Wav2Vec2Config

_EPS = 1e-7  # of transformers' Wav2Vec2FeatureExtractor


def normalised(waveform: Tensor) -> Tensor:
    """Samples [B, N] as wav2vec2 hears them: float32 of mean 0 and variance 1."""
    waveform = waveform.float()
    variance, mean = torch.var_mean(waveform, dim=-1, keepdim=True, correction=0)
    return (waveform - mean) / (variance + _EPS).sqrt()


class Wav2Vec2(nn.Module):
    """Sound to states, in the dtype of the parameters. State-dict names are those of transformers without its head."""

    float32_modules: tuple[str, ...] = ()

    def __init__(self, config: Wav2Vec2Config) -> None:
        super().__init__()
        self.config = config
        model = _transformers_model(config)
        self.feature_extractor = model.feature_extractor
        self.feature_projection = model.feature_projection
        self.encoder = model.encoder

    def forward(self, waveform: Tensor) -> Tensor:
        """States [B, num_layers + 1, T, dim], 50 a second, of samples [B, N] at 16 kHz.

        They are those before the blocks and after each. The last ones are normed, as transformers 4 gave them, with
        which Wan2.2 S2V was trained; transformers 5 does not norm them. Raises RequestError for sound too short to
        have any.
        """
        if not self.config.num_moments(waveform.shape[-1]):
            raise RequestError(f"{waveform.shape[-1]} samples are too few for the speech encoder; give a longer sound")
        states = self.hidden_states(normalised(waveform))
        return torch.cat([states[:, :-1], self.encoder.layer_norm(states[:, -1:])], dim=1)

    def hidden_states(self, samples: Tensor) -> Tensor:
        """States [B, num_layers + 1, T, dim] before the blocks and after each, none normed, of normalised samples."""
        samples = samples.to(self.feature_projection.projection.weight.dtype)
        hidden, _ = self.feature_projection(self.feature_extractor(samples).mT)
        encoder = self.encoder
        hidden = hidden + encoder.pos_conv_embed(hidden)
        states = [hidden]
        for block in encoder.layers:
            result = block(hidden, attention_mask=None)
            hidden = result[0] if isinstance(result, tuple) else result  # transformers 4 gives a tuple
            states.append(hidden)
        return torch.stack(states, dim=1)


def _transformers_model(config: Wav2Vec2Config) -> Any:
    from transformers import Wav2Vec2Config as TransformersConfig
    from transformers import Wav2Vec2Model

    return Wav2Vec2Model(
        TransformersConfig(
            hidden_size=config.dim,
            intermediate_size=config.ffn_dim,
            num_attention_heads=config.num_heads,
            num_hidden_layers=config.num_layers,
            conv_dim=config.conv_dims,
            conv_kernel=config.conv_kernels,
            conv_stride=config.conv_strides,
            conv_bias=config.conv_bias,
            num_conv_pos_embeddings=config.position_kernel,
            num_conv_pos_embedding_groups=config.position_groups,
            layer_norm_eps=config.eps,
            feat_extract_norm="layer",
            do_stable_layer_norm=True,
            mask_time_prob=0.0,  # no network for training: it has no masked state
            mask_feature_prob=0.0,
        )
    )
