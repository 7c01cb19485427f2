"""Which tokens this process holds. The identity here; sequence parallelism replaces the module."""

from torch import Tensor, nn


class TokenLayout(nn.Module):
    """All tokens in one place."""

    def shard(self, tokens: Tensor, axis: int = 1) -> Tensor:
        """The part of a full-sequence tensor that this process works on."""
        return tokens

    def gather(self, tokens: Tensor, axis: int = 1) -> Tensor:
        """The full sequence from every process's part."""
        return tokens

    def spread(self, rows: Tensor, length: int) -> Tensor:
        """Modulation rows [B, S, C] for the local tokens of a sequence of ``length``; here S divides ``length``."""
        return rows
