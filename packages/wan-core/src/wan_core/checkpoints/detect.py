"""What kind of weights a source holds, by the names of its tensors."""

from wan_core.checkpoints.formats import detect_family
from wan_core.checkpoints.lora.names import is_lora
from wan_core.checkpoints.readers.sources import TensorSource


def family_of(source: TensorSource) -> str:
    """A family of networks (``dit``, ``vae``, ``umt5``, ``clip``), ``lora``, or ``""`` for names that are not known."""
    return "lora" if is_lora(source.keys()) else detect_family(source.keys()) or ""
