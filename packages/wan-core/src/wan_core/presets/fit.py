"""Which models a network can be, by its dims."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from wan_core.models import CLIPConfig, UMT5Config, VAEConfig, WanDiTConfig
from wan_core.presets import get_preset, list_presets
from wan_core.presets.base import Preset


@dataclass(frozen=True)
class Fit:
    """Names of the presets whose network has exactly these dims (``same``), and of those that would also load it.

    What decides about loading are input and output channels and the image branch: the dims of a network are read from
    its files.
    """

    same: tuple[str, ...]
    loadable: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Those of the same dims, or all that would load it where there are none."""
        return self.same or self.loadable


def fitting_presets(config: WanDiTConfig, num_networks: int | None = None) -> Fit:
    """The presets for a network; ``num_networks`` 1 or 2 leaves out those with another number of them."""
    same, loadable = [], []
    for preset in _presets():
        if num_networks is not None and preset.has_experts != (num_networks == 2):
            continue
        wanted = preset.dit
        if type(config) is not type(wanted):
            continue
        if not preset.task.takes(config, wanted, preset.latent_spec):
            continue
        loadable.append(preset.name)
        # Lengths are no dims, and files do not always tell them.
        if replace(wanted, text_len=config.text_len, eps=config.eps, image_tokens=config.image_tokens) == config:
            same.append(preset.name)
    return Fit(tuple(same), tuple(loadable))


def part_presets(config: Any) -> tuple[str, ...]:
    """The presets that would load a part of these dims: a VAE, a text or image encoder, or one of a project."""
    return tuple(preset.name for preset in _presets() if _takes(preset, config))


def _takes(preset: Preset, config: Any) -> bool:
    if isinstance(config, VAEConfig):
        return (config.z_dim, config.spatial_stride) == (preset.vae.z_dim, preset.vae.spatial_stride)
    if isinstance(config, UMT5Config):
        return config.dim == preset.dit.text_dim
    if isinstance(config, CLIPConfig):
        return config.dim == preset.dit.image_dim
    return any(type(part.config) is type(config) and part.config == config for part in preset.parts)


def lora_presets(
    width: int | None, num_blocks: int, has_image_branch: bool, *, has_halves: bool = False
) -> tuple[str, ...]:
    """The presets whose network a LoRA of this width, reaching this block, can be for.

    One with an image branch is also for networks that have the image in channels alone, which leave the branch out. One
    that ``has_halves`` is for two experts.
    """
    return tuple(
        preset.name
        for preset in _presets()
        if width == preset.dit.dim
        and num_blocks <= preset.dit.num_layers
        and (preset.dit.image_dim is not None or preset.dit.in_dim > preset.dit.out_dim or not has_image_branch)
        and (preset.has_experts or not has_halves)
    )


def _presets() -> Sequence[Preset]:
    # Project packages add variants of ours: their networks are listed like any other.
    return [get_preset(name) for name in list_presets()]
