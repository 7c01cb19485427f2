"""Why a LoRA does not fit a network: everything in one message; and LoRAs that fit but were made for another model."""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from wan_core.checkpoints.families.relatives import relative_of
from wan_core.checkpoints.readers.sources import TensorSource
from wan_core.errors import CheckpointError
from wan_core.files import plain_text

_SHOWN = 4
_IMAGE_BRANCH = re.compile(
    r"[._](?:k_img|v_img|norm_k_img|add_[kv]_proj|norm_added_[kq]|to_added_kv)\.|(?:^|[._])(?:img_emb|image_embedder)[._]"
)
# Or a preset of it.
_WAN_22 = re.compile(r"wan[\s._-]?v?2[._-]?2|^(?:[ti]2v-A14B|ti2v-5B|s2v-14B)", re.IGNORECASE)
_WAN_21 = re.compile(r"wan[\s._-]?v?2[._-]?1|^(?:t2v|i2v|flf2v)-14B", re.IGNORECASE)
_ANIMATE = re.compile(r"animate(?!d)|relight", re.IGNORECASE)  # not of animated films
_OF_ANIMATE = re.compile(r"(?:^|[._])(?:face_adapter|face_encoder|motion_encoder|pose_patch_embedding)[._]")
_HALF = re.compile(r"(?:^|[._])(?:high|low)_?noise|(?:^|\.)(?:transformer|dit)_?2\.")
_BASE = ("base", "architecture", "trained", "model", "network")
_TITLE = ("title", "name")


@dataclass
class Misfits:
    """Tensors of a LoRA without a place in ``native``, misshapen, incomplete, or ``whole`` numbers.

    ``nothing_fits`` says that no other tensor changes anything.
    """

    source: TensorSource
    native: TensorSource
    nothing_fits: bool = False
    unmatched: list[str] = field(default_factory=list)
    misshaped: list[str] = field(default_factory=list)
    incomplete: list[str] = field(default_factory=list)
    whole: list[str] = field(default_factory=list)

    def check(self, *, force: bool) -> None:
        """Raise one CheckpointError for all of them; ``force`` passes over unmatched ones unless all are."""
        unmatched = self.unmatched if self.nothing_fits or not force else []
        problems = [
            _listed(unmatched, "without a place in this model"),
            _listed(self.misshaped, "of another shape"),
            _listed(self.incomplete, "without the other half"),
            _listed(self.whole, "stored as whole numbers"),
        ]
        found = "; ".join(problem for problem in problems if problem)
        if found:
            raise CheckpointError(f"{self.source.path} does not fit {self.native.path}: {found}. {self._remedy()}")

    def without_image_branch(self) -> list[str]:
        """Forgive a LoRA for image to video of Wan2.1 what only that has: layers for the image's CLIP states.

        Wan2.2 has images in channels alone, as Wan2.1 has besides. Returns the names, which have no place.
        """
        found = [name for name in self.unmatched if _IMAGE_BRANCH.search(name)]
        if not found or self.nothing_fits or not _has_images_in_channels_alone(self.native):
            return []
        self.unmatched = [name for name in self.unmatched if name not in set(found)]
        return found

    def _remedy(self) -> str:
        if self.incomplete and not self.unmatched and not self.misshaped:
            return "The file is incomplete; fetch it again"
        if self.whole:
            return "Nothing says how they are packed; get the 16-bit file of the LoRA"
        if self.misshaped or self.nothing_fits:
            return "It was made for another model; use one made for this"
        return "It was made for another model; use one made for this, or --force-lora to leave these tensors out"


def refuse_other_models(source: TensorSource, native: TensorSource) -> None:
    """Refuse a LoRA whose tensors fit but which says that it was made for a model that behaves differently.

    Wan-Animate has the layers of Wan2.1 and was trained further; its authors advise against LoRAs made for Wan2.2. What
    a file has counts first: layers of Wan-Animate alone, or of an image branch, which Wan2.2 does not have, make it
    welcome, halves for two experts do not. Then what it says of its base, then its title, and its name as the last
    hint. Raises CheckpointError.
    """
    relative = relative_of(native.keys())
    if relative is None or not _ANIMATE.search(relative.title):
        return
    told = _told_by_layers(source) or next((found for texts in _said(source) if (found := _told(texts))), None)
    if told is None:
        raise CheckpointError(
            f"{source.path} does not say which model it was made for, and one of Wan2.2 would spoil {native.path}, "
            "which is Wan-Animate; use one that says Wan-Animate or Wan2.1, or --force-lora to merge it anyway"
        )
    is_welcome, proof = told
    if not is_welcome:
        raise CheckpointError(
            f"{source.path} was made for Wan2.2 ({plain_text(proof.strip())[:60]!r}) and would spoil {native.path}, "
            "which is Wan-Animate; use one made for Wan-Animate or Wan2.1, or --force-lora to merge it anyway"
        )


def _told_by_layers(source: TensorSource) -> tuple[bool, str] | None:
    """Whether a LoRA is welcome on Wan-Animate by a layer, and which one; None where none tells."""
    own = next((name for name in source if _IMAGE_BRANCH.search(name) or _OF_ANIMATE.search(name)), None)
    half = next((name for name in source if _HALF.search(name)), None)
    return (True, own) if own is not None else (False, half) if half is not None else None


def _told(texts: Sequence[str]) -> tuple[bool, str] | None:
    """The same by what is said."""
    for is_welcome, words in ((True, _ANIMATE), (False, _WAN_22), (True, _WAN_21)):
        proof = next((text for text in texts if words.search(text)), None)
        if proof is not None:
            return is_welcome, proof
    return None


def _said(source: TensorSource) -> Iterator[list[str]]:
    """What a file says of its model, what counts most first: its base, its title, its name."""
    keys = {name: name.rpartition(".")[2].lower() for name in source.metadata}
    for words in (_BASE, _TITLE):
        yield [source.metadata[name] for name, key in keys.items() if any(word in key for word in words)]
    yield [source.path.name]


def _has_images_in_channels_alone(native: TensorSource) -> bool:
    sizes = [native.info(name).shape for name in ("patch_embedding.weight", "head.head.weight") if name in native]
    if len(sizes) < 2 or any(name.startswith("img_emb.") for name in native):
        return False
    (_, channels, *patch), (out, *_) = sizes
    return channels * math.prod(patch) > out


def _listed(names: Sequence[str], kind: str) -> str:
    more = ", ..." if len(names) > _SHOWN else ""
    return f"{len(names)} {kind}: {', '.join(names[:_SHOWN])}{more}" if names else ""
