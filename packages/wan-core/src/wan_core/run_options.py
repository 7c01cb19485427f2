"""Where and how a model runs, checked without a file of weights, and what the memory of a run follows from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from wan_core.checkpoints import LoRA, loras_for
from wan_core.denoising import SamplingOptions
from wan_core.errors import ConfigError, RequestError
from wan_core.memory import TILED_PHASES, RunFacts
from wan_core.presets import Preset, get_preset, list_presets
from wan_core.runtime import Processes, resolve_device, resolve_dtype

if TYPE_CHECKING:
    import torch

_MAX_TEA_CACHE = 10.0
VAE_TILING: Mapping[str, frozenset[str] | None] = {
    "auto": None,
    "on": TILED_PHASES,
    "off": frozenset(),
    "encode": frozenset({"encode"}),
    "decode": frozenset({"decode"}),
}


@dataclass(frozen=True, kw_only=True)
class RuntimeOptions:
    """Where and how a model runs; ``None`` lets the machine decide.

    ``offload`` sends parts off the device after use (on the CPU: out of memory), as far as it lowers the memory of a
    run; by default those stay that fit into what is free. With ``in_blocks`` the blocks of the denoising network pass
    through a GPU, from a copy in host memory. ``text_encoder_on_cpu`` keeps the text encoder on the CPU.
    ``vae_dtype`` is that of the autoencoder: ``auto`` is float32 on every device. ``vae_tiling``: ``on``, ``off``,
    ``encode`` or ``decode`` for these alone, or ``auto``, where it would not fit otherwise. ``mmap=False`` reads files
    instead of mapping them. ``loras`` are merged into the network while it is read; ``force_lora`` allows those made
    for another model. ``parts`` puts a part elsewhere than the checkpoint folder, by name: a file, a folder, or a
    repository where its family fetches from one. ``processes`` make the videos, together or each its own.
    """

    device: str | None = None
    dtype: str | None = None
    offload: bool | None = None
    in_blocks: bool = False
    text_encoder_on_cpu: bool = False
    attention: str = "auto"
    vae_dtype: str = "auto"
    vae_tiling: str = "auto"
    mmap: bool | None = None
    loras: tuple[LoRA, ...] = ()
    force_lora: bool = False
    parts: Mapping[str, str | Path] = field(default_factory=dict)
    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    processes: Processes = field(default_factory=Processes)

    @property
    def lora_paths(self) -> tuple[Path, ...]:
        """The files of the LoRAs."""
        return tuple(lora.path for lora in self.loras)


def check_loras(preset: Preset, loras: Sequence[LoRA]) -> None:
    """Raises ``RequestError`` when a LoRA is for one of two experts and the model has only one network."""
    for part in preset.dits:
        loras_for(loras, part.expert)


def check_tea_cache(preset: Preset, threshold: float | None) -> None:
    """Raises ``RequestError`` for a step cache on a model of which no coefficients are known, or a threshold that is
    not above 0."""
    if threshold is None:
        return
    if not preset.tea_cache:
        known = ", ".join(name for name in list_presets() if get_preset(name).tea_cache)
        raise RequestError(f"tea-cache needs numbers that {preset.name} does not have; leave it out, or take {known}")
    if not 0 < threshold <= _MAX_TEA_CACHE:
        raise RequestError(f"the threshold of tea-cache is above 0 and at most {_MAX_TEA_CACHE}, got {threshold}")


def check_guidance(preset: Preset, batched: bool) -> None:
    """Raises ``ConfigError`` for branches in one batch on a model that remembers what each has seen."""
    if batched and preset.task.streams:
        raise ConfigError(
            f"{preset.name} remembers what it has seen and runs the branches of guidance one after the other; "
            "leave out --cfg batched"
        )


def vae_dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype of the autoencoder: ``auto`` is float32 on the CPU and on every GPU.

    So the released models compute it: an encoded image is in all that follows from it. Raises ``RequestError`` for an
    unknown name.
    """
    try:
        return resolve_dtype("float32" if name == "auto" else name, device)
    except RequestError as error:
        raise RequestError(f"vae-dtype must be auto, float32, bfloat16 or float16, got {name!r}") from error


def vae_tiling(name: str) -> frozenset[str] | None:
    """The phases in which the autoencoder works tile by tile; None: where memory needs it. Raises ``RequestError``."""
    if name not in VAE_TILING:
        raise RequestError(f"vae-tiling must be {', '.join(VAE_TILING)}, got {name!r}")
    return VAE_TILING[name]


def run_facts(preset: Preset, options: RuntimeOptions) -> RunFacts:
    """What the memory of a run follows from, as far as no file of weights tells it. Raises as `resolve_device` does."""
    device, processes = resolve_device(options.device), options.processes
    is_divided = {"dit": processes.divides_dit, "text_encoder": processes.divides_text}
    if options.in_blocks and processes.divides_dit:
        raise ConfigError("--dit_fsdp divides the blocks among the processes; leave out --offload_model blocks or it")
    return RunFacts(
        preset=preset,
        dtype=resolve_dtype(options.dtype, device),
        vae_dtype=vae_dtype(options.vae_dtype, device),
        tiling=vae_tiling(options.vae_tiling),
        offload=options.offload,
        in_blocks=options.in_blocks and device.type != "cpu",
        on_host=frozenset({"text_encoder"} if options.text_encoder_on_cpu and device.type != "cpu" else ()),
        always=frozenset({"vae"} if device.type == "cpu" else ()),
        batched=options.sampling.batched_guidance,
        tea_cache=options.sampling.tea_cache is not None,
        shares_tokens=processes.sequence,
        splits_guidance=processes.guidance > 1,
        divided={name: processes.per_video for name, divided in is_divided.items() if divided},
    )
