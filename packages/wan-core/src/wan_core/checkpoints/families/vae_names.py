"""Names of the video autoencoders: diffusers' ``AutoencoderKLWan`` onto the official ones.

Wan 2.1 numbers the decoder's blocks through all stages, Wan 2.2 nests them by stage. Which index is a residual block
and which a resampling depends on the blocks per stage, so the table is made for the names at hand.
"""

import re
from collections.abc import Collection
from dataclasses import dataclass

_RESIDUAL = (
    ("norm1", "residual.0"),
    ("conv1", "residual.2"),
    ("norm2", "residual.3"),
    ("conv2", "residual.6"),
    ("conv_shortcut", "shortcut"),
)
_Rules = list[tuple[str, str | None]]


@dataclass(frozen=True)
class Stages:
    """Stages of each half, residual blocks of an encoder stage, and whether the stages are nested (Wan 2.2)."""

    count: int
    blocks: int
    nested: bool

    def encoder_block(self, stage: int, block: int) -> str:
        """The official name of a block; number ``blocks`` is the resampling."""
        inside = f"{stage}.downsamples.{block}" if self.nested else f"{stage * (self.blocks + 1) + block}"
        return f"encoder.downsamples.{inside}"

    def decoder_block(self, stage: int, block: int) -> str:
        """The official name of a block; number ``blocks`` + 1 is the resampling."""
        inside = f"{stage}.upsamples.{block}" if self.nested else f"{stage * (self.blocks + 2) + block}"
        return f"decoder.upsamples.{inside}"


def vae_renames(names: Collection[str]) -> tuple[tuple[str, str | None], ...]:
    """The table for these names, which may be diffusers' or official ones."""
    stages = stages_of(names)
    rules: _Rules = [("quant_conv", "conv1"), ("post_quant_conv", "conv2")]
    for half in ("encoder", "decoder"):
        rules += [
            (f"{half}.conv_in", f"{half}.conv1"),
            (f"{half}.norm_out", f"{half}.head.0"),
            (f"{half}.conv_out", f"{half}.head.2"),
            (f"{half}.mid_block.attentions.0", f"{half}.middle.1"),
            *_residual(f"{half}.mid_block.resnets.0", f"{half}.middle.0"),
            *_residual(f"{half}.mid_block.resnets.1", f"{half}.middle.2"),
        ]
    for stage in range(stages.count):
        rules += _stage(stages, stage)
    return tuple(rules)


def _residual(theirs: str, ours: str) -> _Rules:
    return [(f"{theirs}.{a}", f"{ours}.{b}") for a, b in _RESIDUAL]


def _stage(stages: Stages, stage: int) -> _Rules:
    rules: _Rules = []
    last = stages.blocks
    for block in range(last):
        place = f"{stage}.resnets.{block}" if stages.nested else f"{stage * (last + 1) + block}"
        rules += _residual(f"encoder.down_blocks.{place}", stages.encoder_block(stage, block))
    place = f"{stage}.downsampler" if stages.nested else f"{stage * (last + 1) + last}"
    rules += _resample(f"encoder.down_blocks.{place}", stages.encoder_block(stage, last))
    theirs = f"decoder.up_blocks.{stage}"
    for block in range(last + 1):
        rules += _residual(f"{theirs}.resnets.{block}", stages.decoder_block(stage, block))
    upsampler = "upsampler" if stages.nested else "upsamplers.0"
    return [*rules, *_resample(f"{theirs}.{upsampler}", stages.decoder_block(stage, last + 1))]


def _resample(theirs: str, ours: str) -> _Rules:
    return [(f"{theirs}.resample", f"{ours}.resample"), (f"{theirs}.time_conv", f"{ours}.time_conv")]


def stages_of(names: Collection[str]) -> Stages:
    """Counts read off either naming; 1 stage of 1 block where nothing tells."""
    theirs = _highest(names, r"decoder\.up_blocks\.(\d{1,2})\.")
    if theirs is not None:
        blocks = _highest(names, r"decoder\.up_blocks\.0\.resnets\.(\d{1,2})\.") or 1
        nested = any(re.match(r"encoder\.down_blocks\.\d+\.resnets\.", name) for name in names)
        return Stages(theirs + 1, blocks, nested)
    last = _highest(names, r"decoder\.upsamples\.(\d{1,2})\.") or 0
    inside = _highest(names, r"decoder\.upsamples\.0\.upsamples\.(\d{1,2})\.residual\.")
    if inside is not None:
        return Stages(last + 1, inside, True)
    resamples = [int(m[1]) for name in names if (m := re.match(r"decoder\.upsamples\.(\d{1,2})\.resample\.", name))]
    blocks = min(resamples, default=last + 1) - 1
    return Stages(last // (blocks + 2) + 1, max(blocks, 1), False)


def _highest(names: Collection[str], pattern: str) -> int | None:
    found = [int(match[1]) for name in names if (match := re.match(pattern, name))]
    return max(found, default=None)
