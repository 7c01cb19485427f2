"""Why a LoRA does not fit a network: everything in one message; and LoRAs that fit but were made for another model."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from wan_core.checkpoints.readers.sources import TensorSource
from wan_core.errors import CheckpointError

_SHOWN = 4
_WAN_22 = re.compile(r"wan[\s._-]?v?2[._-]?2", re.IGNORECASE)
_ANIMATE = re.compile(r"animate", re.IGNORECASE)
_SAYS = ("base", "model", "architecture", "title", "name", "trained", "network")


@dataclass
class Misfits:
    """Tensors of the LoRA ``source`` that have no place in ``native``, the wrong shape, or no counterpart."""

    source: TensorSource
    native: TensorSource
    unmatched: list[str] = field(default_factory=list)
    misshaped: list[str] = field(default_factory=list)
    incomplete: list[str] = field(default_factory=list)

    def check(self, *, force: bool) -> None:
        """Raise one CheckpointError for all of them; ``force`` passes over unmatched ones unless all are."""
        all_unmatched = len(self.unmatched) == len(self.source)
        unmatched = self.unmatched if all_unmatched or not force else []
        problems = [
            _listed(unmatched, "without a place in this model"),
            _listed(self.misshaped, "of another shape"),
            _listed(self.incomplete, "without the other half"),
        ]
        found = "; ".join(problem for problem in problems if problem)
        if found:
            raise CheckpointError(
                f"{self.source.path} does not fit {self.native.path}: {found}. {self._remedy(all_unmatched)}"
            )

    def _remedy(self, all_unmatched: bool) -> str:
        if self.incomplete and not self.unmatched and not self.misshaped:
            return "The file is incomplete; fetch it again"
        if self.misshaped or all_unmatched:
            return "It was made for another model; use one made for this"
        return "It was made for another model; use one made for this, or --force-lora to leave these tensors out"


def refuse_other_models(source: TensorSource, native: TensorSource) -> None:
    """Refuse a LoRA whose tensors fit but which says that it was made for a model that behaves differently.

    Wan-Animate has the layers of Wan2.1 and was trained further; its authors advise against LoRAs made for Wan2.2.
    Raises CheckpointError.
    """
    if not any(name.startswith(("face_adapter.", "pose_patch_embedding.")) for name in native):
        return
    says = [value for name, value in source.metadata.items() if any(word in name.lower() for word in _SAYS)]
    says.append(source.path.name)
    if any(_ANIMATE.search(text) for text in says):
        return
    proof = next((text for text in says if _WAN_22.search(text)), None)
    if proof is not None:
        raise CheckpointError(
            f"{source.path} was made for Wan2.2 ({proof.strip()[:60]!r}) and would spoil {native.path}, which is "
            "Wan-Animate; use one made for Wan-Animate or Wan2.1, or --force-lora to merge it anyway"
        )


def _listed(names: Sequence[str], kind: str) -> str:
    more = ", ..." if len(names) > _SHOWN else ""
    return f"{len(names)} {kind}: {', '.join(names[:_SHOWN])}{more}" if names else ""
