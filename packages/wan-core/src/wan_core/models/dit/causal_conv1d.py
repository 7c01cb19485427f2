"""Convolutions along time that see no later frame: what the encoders of sound and of faces are made of."""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional

_KERNEL = 3
_EPS = 1e-6


class CausalConv1d(nn.Module):
    """Convolution along time that sees no later frame; before the first one it is repeated."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv1d(in_channels, out_channels, _KERNEL, stride)

    def forward(self, states: Tensor) -> Tensor:
        """[B, C, T] to [B, C', ceil(T / stride)]."""
        out: Tensor = self.conv(functional.pad(states, (_KERNEL - 1, 0), mode="replicate"))
        return out


def coarser(states: Tensor, convolutions: Sequence[nn.Module]) -> Tensor:
    """[B, C, T] through convolutions, before and after each of which the channels are normed and activated (SiLU)."""
    for convolution in convolutions:
        states = convolution(_normed(states))
    return _normed(states)


def _normed(states: Tensor) -> Tensor:
    """SiLU of a layer norm over the channels of [B, C, T]."""
    normed = functional.layer_norm(states.transpose(1, 2), (states.shape[1],), eps=_EPS)
    return functional.silu(normed).transpose(1, 2)
