"""What a task says to the sampling loop: conditions of each branch, given frames, windows, and what is decoded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from wan_core.models import DecoderCache, DiTInputs
    from wan_core.sampling import Anchors


@dataclass(frozen=True, kw_only=True)
class DecodePlan:
    """How denoised latents become frames.

    ``prefix`` [B, C, t, h, w] is put before the latents, ``drop_latent_frames`` leading latent frames are removed
    first, ``drop_frames`` leading pixel frames last; with ``keep_frames`` no more come out than that. A ``cache`` is
    what the autoencoder remembers of the clip that this one goes on from; fresh at a start, and changed by decoding.
    """

    prefix: Tensor | None = None
    drop_latent_frames: int = 0
    drop_frames: int = 0
    keep_frames: int | None = None
    cache: DecoderCache | None = field(default=None, compare=False, repr=False)

    def apply(self, latents: Tensor) -> Tensor:
        """The latents to decode. [B, C, T, h, w] in and out."""
        import torch

        latents = latents[:, :, self.drop_latent_frames :]
        return latents if self.prefix is None else torch.cat([self.prefix.to(latents), latents], dim=2)


@dataclass(frozen=True, kw_only=True)
class Window:
    """Latent ``frames`` that are denoised together, in this order, under conditions of their own."""

    frames: tuple[int, ...]
    positive: DiTInputs
    negative: DiTInputs | None


@dataclass(frozen=True, kw_only=True)
class Outline:
    """A clip without what its network sees: latents of ``latent_shape`` (B, C, T, h, w) become frames by ``decode``.

    It is all that a clip needs whose latents are there already, and in a subclass what the next one goes on from.
    """

    latent_shape: tuple[int, ...]
    decode: DecodePlan = field(default_factory=DecodePlan)


@dataclass(frozen=True, kw_only=True)
class Conditioning(Outline):
    """Everything a task may say; nothing else reaches the sampling loop.

    ``negative`` is ``None`` for no guidance. With ``windows``, which cover all T frames and take no anchors, theirs are
    the conditions. A network that remembers what it has seen is shown the finished latents once more, at timestep
    ``revisit`` and if ``noised_revisit`` with the noise of that timestep in them; caches that the conditions have are
    kept. ``solver_options`` are further arguments of the request's solver. ``earlier_draws``: as many noises of this
    shape came from the same generator before, for earlier clips.
    """

    positive: DiTInputs
    negative: DiTInputs | None
    anchors: Anchors | None = None
    windows: tuple[Window, ...] = ()
    revisit: float | None = None
    noised_revisit: bool = False
    solver_options: Mapping[str, Any] = field(default_factory=dict)
    earlier_draws: int = 0
