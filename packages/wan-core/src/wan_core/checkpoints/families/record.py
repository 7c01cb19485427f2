"""What there is to know of a family of networks: one record that reader, exporter, inspection and loading use."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from wan_core.checkpoints.folds import Fold
from wan_core.checkpoints.formats import CheckpointFormat
from wan_core.files import WEIGHT_ENDINGS

if TYPE_CHECKING:
    import torch
    from torch import nn

    from wan_core.checkpoints.readers.sources import TensorSource

Expert = Literal["high", "low"]
"""One of the two networks of a mixture by noise level."""

Container = Literal["shards", "file", "torch"]
"""Sharded safetensors with an index in a folder, one safetensors file, or one torch file."""

WEIGHT_FILES = tuple(f"*{ending}" for ending in WEIGHT_ENDINGS)


@dataclass(frozen=True, kw_only=True)
class Places:
    """Where a family's weights lie in each layout.

    ``official`` gives the path below a checkpoint folder, kept as ``container``; ``diffusers`` is the folder there
    (``second`` that of the low-noise expert), ``stem`` how its files begin; ``single`` the folder of single files,
    which ``also`` may lie in other folders; ``single_name`` names a file there, ``single_format`` its tensors, which
    have ``single_prefix`` before them.
    """

    official: Callable[[Any, Expert | None], str]
    container: Container = "shards"
    diffusers: str
    second: str = ""
    stem: str = "diffusion_pytorch_model"
    single: str
    also: tuple[str, ...] = ()
    single_name: Callable[[Any, Expert | None], str] = lambda config, expert: "model"
    single_format: str = "official"
    single_prefix: str = ""


@dataclass(frozen=True, kw_only=True)
class Family:
    """A family of networks.

    ``title`` is for messages. ``network`` builds a network of a config; ``infer`` reads the config from a path and the
    tensors there, under native names. ``formats`` are its namings, most particular first, the last one is assumed when
    no marker occurs; ``signature`` is a regular expression that only names of this family match, from the network's own
    level on. A network whose tensors lie beside those of others at one level has ``owns`` in place of it: a regular
    expression that finds where each of its own names begins, and only those are read. ``folds`` are native tensors that
    other programs store with fewer dimensions. ``usual`` are the values of released models for what shapes do not tell:
    a config's others are written into the file. ``official_config`` and ``diffusers_config`` make the ``config.json``
    of a layout. ``half_dtype`` names what it runs in where a run is in 16 bits (None: as the run).
    ``is_denoiser`` tells the network that a sampler calls: there may be two experts, and LoRAs are made for it.
    Files of ``base``, a family that this one adds to, serve too; the tensors ``begins_at_zero``, which those have not,
    are zero then: without any, or with all of them. ``at_zero`` says in words what a network does not do then.
    ``keeps_rest`` copies what the network does not use along, ``carries_tokenizer`` tells single files that hold one.

    A part that another library reads has no ``network`` but ``load``, from a path, a dtype and a device; ``files`` are
    patterns of which one must match in its folder. ``find`` looks a part up outside of a checkpoint folder, and
    ``is_repository`` tells names of repositories from those of files.
    """

    name: str
    title: str
    network: Callable[[Any], nn.Module] | None = None
    infer: Callable[[Path, TensorSource], Any] | None = None
    formats: tuple[CheckpointFormat, ...] = (CheckpointFormat(name="official"),)
    signature: str = ""
    owns: str = ""
    folds: tuple[Fold, ...] = ()
    usual: Callable[[Any], Mapping[str, Any]] = lambda config: {}
    official_config: Callable[[Any], Mapping[str, Any]] | None = None
    diffusers_config: Callable[[Any], Mapping[str, Any]] | None = None
    places: Places | None = None
    half_dtype: Literal["float32", "bfloat16", "float16"] | None = None
    is_denoiser: bool = False
    base: Family | None = None
    begins_at_zero: tuple[str, ...] = ()
    at_zero: str = ""
    keeps_rest: bool = False
    carries_tokenizer: bool = False
    load: Callable[[Path, torch.dtype, torch.device], Any] | None = None
    files: tuple[str, ...] = WEIGHT_FILES
    find: Callable[[str], Path] | None = None
    is_repository: Callable[[str], bool] = lambda name: name.count("/") == 1

    @property
    def where(self) -> Places:
        """The places; by default a file or folder of the family's name."""
        if self.places is not None:
            return self.places
        path = f"{self.name}.safetensors"
        return Places(
            official=lambda config, expert: path, container="file", diffusers=self.name, stem="model", single=self.name
        )

    def build(self, config: Any) -> nn.Module:
        """The network of a config with random weights. Raises TypeError for a part that another library reads."""
        if self.network is None:
            raise TypeError(f"{self.name} is read by another library")
        return self.network(config)

    def read_config(self, path: Path, native: TensorSource) -> Any:
        """The config of weights under native names; ``path`` is their file or folder. Raises CheckpointError."""
        if self.infer is None:
            raise TypeError(f"{self.name} is read by another library")
        return self.infer(path, native)

    def open(self, path: Path, dtype: torch.dtype, device: torch.device) -> Any:
        """A part that another library reads. Raises TypeError for one that we read."""
        if self.load is None:
            raise TypeError(f"{self.name} has no reader of its own")
        return self.load(path, dtype, device)

    def dtype_in(self, run: torch.dtype) -> torch.dtype:
        """The dtype that it is loaded in, in a run of dtype ``run``."""
        import torch

        dtype: torch.dtype = run if self.half_dtype is None else getattr(torch, self.half_dtype)
        return run if run is torch.float32 else dtype
