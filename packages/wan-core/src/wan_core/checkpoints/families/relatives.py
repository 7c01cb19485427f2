"""Models that are nearly ours: a Wan transformer with something more, told by the names of its tensors.

Names are those of the published files, in the official and in diffusers' spelling. Where a model has exactly the
tensors of ours (Phantom, MoCha), only its name can tell, and a note says so.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wan_core.errors import CheckpointError

if TYPE_CHECKING:
    from wan_core.checkpoints.readers.sources import TensorSource


@dataclass(frozen=True)
class Relative:
    """A model by a pattern that only its names match; ``needs`` is what running it would take."""

    pattern: str
    title: str
    needs: str

    def __str__(self) -> str:
        """For messages."""
        return f"{self.title}, which needs {self.needs}"


RELATIVES = (
    Relative(r"^vace_(?:blocks|patch_embedding)\.", "Wan VACE", "a control branch with masked videos"),
    Relative(
        r"^(?:pose_patch_embedding|face_adapter|face_encoder|motion_encoder)\.",
        "Wan-Animate",
        "pose and face videos that drive the motion",
    ),
    Relative(
        r"^(?:casual_audio_encoder|audio_injector|cond_encoder|trainable_cond_mask|frame_packer)\.",
        "Wan S2V (speech to video)",
        "sound and its encoder",
    ),
    Relative(r"^control_adapter\.", "Wan-Fun Camera", "a camera path"),
    Relative(r"^ref_conv\.", "Wan-Fun Control", "a control video and a reference image"),
    Relative(r"^fps_(?:embedding|projection)\.", "SkyReels-V2 diffusion forcing", "a frame rate as an input"),
    Relative(r"gate_compress\.", "FastWan with video sparse attention (VSA)", "that attention"),
    Relative(r"\.proj_l\.", "TurboDiffusion with sparse-linear attention (SLA)", "that attention"),
    Relative(r"^audio_proj\.audio_proj_glob_", "HuMo", "sound and reference images"),
    Relative(
        r"^blocks\.\d+\.(?:audio_cross_attn|norm_x)\.|^audio_proj\.proj1",
        "MultiTalk or InfiniteTalk",
        "sound and its encoder",
    ),
    Relative(
        r"^proj_model\.|^blocks\.\d+\.cross_attn\.(?:processor\.)?[kv]_proj\.",
        "FantasyTalking",
        "sound and its encoder",
    ),
    Relative(r"ip_adapter_single_stream|\.emo_[kv]_proj\.", "FantasyPortrait", "a portrait video"),
    Relative(r"\.cam_encoder\.", "ReCamMaster", "a source video and a camera path"),
    Relative(r"^patch_embedding_(?:pose|mask)\.", "SCAIL", "a pose video"),
    Relative(r"^(?:dwpose_embedding|randomref_embedding_pose)\.", "UniAnimate", "a pose video"),
    Relative(r"\.ref_adapter\.|\.ip_adapter\.", "Lynx", "a face"),
    Relative(r"\.motion_attn\.", "MTVCrafter", "motion tokens"),
    Relative(r"\.[kv]_fusion\.", "Ovi", "a second network, for sound"),
    Relative(r"\.ffn\.w[123]\.", "LongCat-Video", "another transformer block"),
    Relative(
        r"(?:^|\.)_?flat_param(?:_\d+)?$",
        "an FSDP checkpoint with flat parameters, one process's piece",
        "saving again as a full state dict",
    ),
    Relative(r"^_?(?:gan_ca_blocks|cls_pred_branch)\.", "the discriminator of Self-Forcing", "a trainer"),
)

_BY_CHANNELS = {
    (48, 16): Relative("", "Wan2.1-Fun Control", "a control video"),
    (52, 16): Relative("", "Wan2.2-Fun Control", "a control video"),
    (100, 48): Relative("", "Wan2.2-Fun InP 5B", "first and last frames beside the latents"),
    (148, 48): Relative("", "Wan2.2-Fun Control 5B", "a control video"),
}
"""Models whose names are ours and whose input and output channels are not."""

_SAME_TENSORS = {
    r"phantom": "Phantom, whose tensors are those of Wan2.1 text to video: it runs as that, without reference images",
    r"mocha": "MoCha, whose tensors are those of Wan2.1 text to video: it runs as that, without the source video",
    r"skyreels.*[-_.]df[-_.]": "SkyReels-V2 diffusion forcing: it runs as text to video, without its own schedule",
}


def relative_of(names: Collection[str]) -> Relative | None:
    """The model nearly ours that has these native names, or None."""
    text = "\n".join(names)
    return next((each for each in RELATIVES if re.search(each.pattern, text, re.MULTILINE)), None)


def refusing_relatives(infer: Callable[[Path, TensorSource], Any]) -> Callable[[Path, TensorSource], Any]:
    """``infer`` of a family of transformers, which refuses models nearly ours by their names, before their config."""

    def checked(path: Path, source: TensorSource) -> Any:
        relative = relative_of(source.keys())
        if relative is not None:
            raise _refusal(source, relative)
        config = infer(path, source)
        by_channels = _BY_CHANNELS.get((config.in_dim, config.out_dim))
        if by_channels is not None:
            raise _refusal(source, by_channels)
        return config

    return checked


def note_of(path: Path) -> str | None:
    """What the name of a file or its folder says that its tensors cannot; None for nothing."""
    text = f"{path.parent.name}/{path.name}".lower()
    found = next((said for pattern, said in _SAME_TENSORS.items() if re.search(pattern, text)), None)
    return None if found is None else f"note: the name of {path} says {found}"


def _refusal(source: TensorSource, relative: Relative) -> CheckpointError:
    return CheckpointError(f"{source.path} is {relative}; that is not done here. Use Wan T2V, I2V, TI2V or FLF2V")
