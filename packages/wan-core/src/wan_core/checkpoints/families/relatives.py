"""Models that are nearly ours: a Wan transformer with something more, told by its tensors or by its class.

Names are those of the published files, in the official and in diffusers' spelling; classes those in the ``config.json``
beside them and in the pipeline's ``model_index.json``. Where a model has exactly the tensors of ours (Phantom, MoCha)
and no class of its own, only its name can tell, and a note says so.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wan_core.errors import CheckpointError
from wan_core.files import plain_text

if TYPE_CHECKING:
    from wan_core.checkpoints.readers.sources import TensorSource


@dataclass(frozen=True)
class Relative:
    """A model by a pattern that only its tensors' names match, or one that only its ``classes`` do; ``needs`` is what
    running it would take, ``family`` the family that does. An empty pattern matches nothing."""

    pattern: str
    title: str
    needs: str
    classes: str = ""
    family: str = ""

    def __str__(self) -> str:
        """For messages."""
        return f"{self.title}, which needs {self.needs}"


RELATIVES = (
    Relative(r"^vace_(?:blocks|patch_embedding)\.", "Wan VACE", "a control branch with masked videos", "VACE"),
    Relative("", "Wan-Animate 2", "a driving video that the blocks attend to", "Animate2"),
    Relative(
        r"^(?:pose_patch_embedding|face_adapter|face_encoder|motion_encoder)\.",
        "Wan-Animate",
        "pose and face videos that drive the motion",
        "Animate",
        family="animate",
    ),
    Relative(
        r"^(?:casual_audio_encoder|audio_injector|cond_encoder|trainable_cond_mask|frame_packer)\.",
        "Wan S2V (speech to video)",
        "sound and its encoder",
        "S2V",
        family="s2v",
    ),
    Relative(r"^control_adapter\.", "Wan-Fun Camera", "a camera path"),
    Relative(r"^ref_conv\.", "Wan-Fun Control", "a control video and a reference image"),
    Relative(r"^fps_(?:embedding|projection)\.", "SkyReels-V2 diffusion forcing", "a frame rate as an input"),
    Relative("", "SkyReels-V2", "a schedule with a noise level for each frame", "SkyReels"),
    Relative("", "ChronoEdit", "frames of reasoning between two images, at times of their own", "ChronoEdit"),
    Relative("", "Lucy Edit", "the video that is edited", "Lucy"),
    Relative("", "Kiwi-Edit", "the video that is edited, read by a language model", "Kiwi"),
    Relative("", "LingBot-World", "actions and a camera path", "LingBot"),
    Relative(r"gate_compress\.", "FastWan with video sparse attention (VSA)", "that attention"),
    Relative(r"\.proj_l\.", "TurboDiffusion with sparse-linear attention (SLA)", "that attention"),
    Relative(r"^audio_proj\.audio_proj_glob_", "HuMo", "sound and reference images", "HuMo"),
    Relative(
        r"^blocks\.\d+\.(?:audio_cross_attn|norm_x)\.|^audio_proj\.proj1",
        "MultiTalk or InfiniteTalk",
        "sound and its encoder",
        "(?:Multi|Infinite)Talk",
    ),
    Relative(
        r"^proj_model\.|^blocks\.\d+\.cross_attn\.(?:processor\.)?[kv]_proj\.",
        "FantasyTalking",
        "sound and its encoder",
        "FantasyTalking",
    ),
    Relative(r"ip_adapter_single_stream|\.emo_[kv]_proj\.", "FantasyPortrait", "a portrait video", "FantasyPortrait"),
    Relative(r"\.cam_encoder\.", "ReCamMaster", "a source video and a camera path"),
    Relative(r"^patch_embedding_(?:pose|mask)\.", "SCAIL", "a pose video"),
    Relative(r"^(?:dwpose_embedding|randomref_embedding_pose)\.", "UniAnimate", "a pose video"),
    Relative(r"\.ref_adapter\.|\.ip_adapter\.", "Lynx", "a face"),
    Relative(r"\.motion_attn\.", "MTVCrafter", "motion tokens"),
    Relative(r"\.[kv]_fusion\.", "Ovi", "a second network, for sound"),
    Relative(r"\.ffn\.w[123]\.", "LongCat-Video", "another transformer block", "LongCat"),
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
    (96, 48): Relative("", "Lucy Edit 5B", "the video that is edited"),
    (100, 48): Relative("", "Wan2.2-Fun InP 5B", "first and last frames beside the latents"),
    (148, 48): Relative("", "Wan2.2-Fun Control 5B", "a control video"),
}
"""Models whose names are ours and whose input and output channels are not."""

_SAME_TENSORS = {
    r"phantom": "Phantom, whose tensors are those of Wan2.1 text to video: it runs as that, without reference images",
    r"mocha": "MoCha, whose tensors are those of Wan2.1 text to video: it runs as that, without the source video",
    r"magref": "MAGREF, whose tensors are those of Wan2.1 image to video: it runs as that, with one picture",
    r"(?<![a-z])ati(?![a-z])|wan[-_.]?move": "ATI or Wan-Move, whose tensors are those of Wan2.1 image to video: it "
    "runs as that, without trajectories",
    r"skyreels.*[-_.]df[-_.]": "SkyReels-V2 diffusion forcing: it runs as text to video, without its own schedule",
}


_OURS = re.compile(r"(?:Causal)?Wan(?:Model|(?:2_2)?Transformer3DModel)|Wan(?:ImageToVideo|VideoToVideo)?Pipeline")


def relative_of(names: Collection[str]) -> Relative | None:
    """The model nearly ours that has these native names, or None."""
    text = "\n".join(names)
    return next((each for each in RELATIVES if each.pattern and re.search(each.pattern, text, re.MULTILINE)), None)


def _classes(path: Path) -> list[tuple[Path, str]]:
    """The files that name classes beside weights and in their pipeline, each with that class where it is not ours."""
    from wan_core.checkpoints.readers.shards import read_json

    folder = path if path.is_dir() else path.parent
    pipeline = folder.parent if folder.name in ("transformer", "transformer_2") else folder
    files = [file for file in (folder / "config.json", pipeline / "model_index.json") if file.is_file()]
    named = [(file, read_json(file).get("_class_name")) for file in files]
    return [(file, name) for file, name in named if isinstance(name, str) and not _OURS.fullmatch(name)]


def _by_class(path: Path) -> Relative | None:
    for file, name in _classes(path):
        found = next(
            (each for each in RELATIVES if each.classes and re.search(each.classes, name, re.IGNORECASE)), None
        )
        if found is not None:
            return replace(found, title=f"{found.title} ({file.name} says {plain_text(name)[:60]})")
    return None


def refusing_relatives(
    infer: Callable[[Path, TensorSource], Any], family: str = ""
) -> Callable[[Path, TensorSource], Any]:
    """``infer`` of a ``family`` of transformers, which refuses other models by their names, before their config."""

    def checked(path: Path, source: TensorSource) -> Any:
        relative = relative_of(source.keys()) or _by_class(path)
        if relative is not None and relative.family != (family or None):
            raise _refusal(source, relative)
        config = infer(path, source)
        by_channels = _BY_CHANNELS.get((config.in_dim, config.out_dim))
        if by_channels is not None:
            raise _refusal(source, by_channels)
        return config

    return checked


def notes_of(path: Path) -> tuple[str, ...]:
    """What the name of a file or its folder, and an unknown class, say that the tensors of a transformer cannot."""
    text = f"{path.parent.name}/{path.name}".lower()
    names = [f"the name of {path} says {said}" for pattern, said in _SAME_TENSORS.items() if re.search(pattern, text)]
    classes = [
        f"{file} says that it is a {plain_text(name)[:60]}, which is not known here; it is read as Wan"
        for file, name in ([] if _by_class(path) else _classes(path))
    ]
    return tuple(f"note: {each}" for each in [*names[:1], *classes[:1]])


def _refusal(source: TensorSource, relative: Relative) -> CheckpointError:
    if relative.family:
        return CheckpointError(f"{source.path} is {relative}; take the task of that name, or weights of this one")
    return CheckpointError(f"{source.path} is {relative}; that is not done here. Use Wan T2V, I2V, TI2V or FLF2V")
