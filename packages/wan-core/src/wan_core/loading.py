"""From a preset name and a checkpoint folder to a ready :class:`Pipeline`. Weights are read when first needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.resources import files as package_files
from pathlib import Path
from typing import Any

import torch
from torch import nn

from wan_core import models, runtime
from wan_core.checkpoints import (
    CLIP,
    TOKENIZER,
    CheckpointLayout,
    Division,
    Expert,
    Family,
    Part,
    TensorSource,
    check_network,
    load_model,
    loras_for,
    native_weights,
    read_weights,
    weights_fingerprint,
    with_delta,
    with_loras,
)
from wan_core.errors import CheckpointError, RequestError
from wan_core.files import WEIGHT_ENDINGS
from wan_core.memory import part_name
from wan_core.models import WanDiTConfig
from wan_core.pipeline import Pipeline
from wan_core.presets import Preset, get_preset
from wan_core.run_options import RuntimeOptions as RuntimeOptions
from wan_core.run_options import check_guidance, check_loras, check_tea_cache, run_facts
from wan_core.runtime import Between, HostCopy, Placed, Together, resolve_device
from wan_core.tasks import Components, Experts


def load_pipeline(
    preset: str | Preset,
    checkpoint_dir: str | Path | None = None,
    options: RuntimeOptions | None = None,
) -> Pipeline:
    """A pipeline for a preset and its checkpoint folder; bundled presets need no folder.

    File names, configs and tensor shapes are checked here; weights are read at first use. Raises ``RequestError``
    (unknown preset, no folder, a LoRA for an expert that there is not), ``CheckpointError`` (missing, damaged or other
    model's files), ``ConfigError`` and ``BackendError`` (impossible or unavailable options).
    """
    preset = get_preset(preset) if isinstance(preset, str) else preset
    folder = checkpoint_folder(preset, checkpoint_dir)
    if checkpoint_dir is not None:  # a whole model in one folder, as training writes it
        preset = replace(preset, parts=tuple(replace(part, file=part.place) for part in preset.parts))
    return _Loader(preset, folder, options or RuntimeOptions()).pipeline()


def checkpoint_folder(preset: Preset, checkpoint_dir: str | Path | None) -> Path:
    """The folder to read: the given one, or the bundled one. Raises ``RequestError`` when there is none."""
    if checkpoint_dir is not None:
        return Path(checkpoint_dir)
    if preset.bundled is None:
        raise RequestError(
            f"{preset.name} needs its weights: give their folder with --ckpt-dir, or fetch them with "
            f"'wan download {preset.name}'"
        )
    return Path(str(package_files("wan_core") / "weights" / preset.bundled))


class _Loader:
    """Turns the files of one checkpoint into components that load themselves."""

    def __init__(self, preset: Preset, folder: Path, options: RuntimeOptions) -> None:
        self.preset = preset
        self.folder = folder
        self.is_bundled = preset.bundled is not None and folder == checkpoint_folder(preset, None)
        self.layout = CheckpointLayout(folder, preset.name, preset.bundled is not None)
        self.places = _places(preset, options)
        self.layout.require(part for part in preset.parts if part.name not in self.places)
        check_loras(preset, options.loras)
        check_tea_cache(preset, options.sampling.tea_cache)
        check_guidance(preset, options.sampling.batched_guidance)
        self.device = resolve_device(options.device)
        self.run = run_facts(preset, options)
        self.dtype = self.run.dtype
        attention = runtime.choose_attention_backend(options.attention, self.device)
        self.attention = attention.name
        self.options = options
        self.tokenizer = models.load_tokenizer(self._path(preset.part("tokenizer")))
        self.notes = [attention.note] if attention.note else []
        # What is not needed leaves the memory, and is read again from its file.
        self.between = Between.KEEP if options.offload is False else Between.DROP

    def pipeline(self) -> Pipeline:
        """All parts, checked against each other."""
        opened = self._needed([self._open(part) for part in self.preset.parts if self._is_there(part)])
        dits = [each for each in opened if each.part.name == "dit"]
        if len(dits) == 2 and dits[0].config != dits[1].config:
            raise CheckpointError(f"the experts in {self.folder} differ in size; they belong to different models")
        configs = {each.part.name: each.config for each in opened}
        self._check_widths(opened, dits[0].config)
        together = self._together = Together(
            self.options.processes, device=self.device, num_heads=dits[0].config.num_heads
        )
        placed = [self._placed(each, dits[0].config) for each in opened]
        parts: dict[str, Any] = {each.part.name: made for each, made in zip(opened, placed, strict=True)}
        if len(dits) == 2:
            high, low = (made for each, made in zip(opened, placed, strict=True) if each in dits)
            parts["dit"] = Experts(high=high, low=low)
        found = {each.part.name: each.path or str(each.part.source) for each in opened}
        components = Components(
            device=self.device,
            parts=parts,
            configs=configs,
            found=found,
            tokenizer=self.tokenizer,
            loras=self.options.lora_paths,
        )
        return Pipeline(
            self.preset,
            components,
            latent_spec=self.preset.latent_spec,
            options=self.options.sampling,
            record=self._record(together) | {"weights": self._hashes(opened)},
            notes=self.notes,
            together=together,
            run=replace(self.run, configs=configs, reads=_reads(opened)),
        )

    def _is_there(self, part: Part) -> bool:
        """Whether a part is among the components: the tokenizer is none, and an optional one may be nowhere."""
        if part.family is TOKENIZER:
            return False
        return not part.is_optional or part.name in self.places or part.source is not None or self.layout.has(part)

    def _needed(self, opened: list[_Opened]) -> list[_Opened]:
        """Without an image encoder that nobody asked for and whose states the network does not take."""
        if any(each.part.name == "dit" and each.config.image_dim is not None for each in opened):
            return opened
        return [
            each
            for each in opened
            if each.part.name != "image_encoder" or not each.part.is_optional or each.part.name in self.places
        ]

    def _record(self, together: Together) -> dict[str, Any]:
        record: dict[str, Any] = {
            "device": self.device.type,
            "dtype": str(self.dtype).removeprefix("torch."),
            "attention": self.attention,
            "noise_device": torch.device(self.options.sampling.noise_device).type,
        }
        if self.run.vae_dtype is not torch.float32:
            record["vae_dtype"] = str(self.run.vae_dtype).removeprefix("torch.")
        if self.options.sampling.batched_guidance:
            record["cfg"] = "batched"
        if together.plan.sequence > 1:  # it rounds as several processes do
            record |= {"ring": together.plan.ring, "ulysses": together.plan.ulysses}
        if self.options.sampling.tea_cache is not None:
            record["tea_cache"] = self.options.sampling.tea_cache
        if not self.preset.bundled:
            record["checkpoint"] = self.folder.resolve().name
        if self.options.parts:
            record["parts"] = {name: Path(place).name for name, place in self.options.parts.items()}
        if self.options.loras:
            record["lora"] = [str(replace(lora, path=Path(lora.path.name))) for lora in self.options.loras]
            record["force_lora"] = self.options.force_lora
        return record

    def _hashes(self, opened: Sequence[_Opened]) -> dict[str, Any]:
        """The weights of each part by their content."""
        parts = {part_name(each.part): weights_fingerprint(each.path or Path(str(each.part.source))) for each in opened}
        loras = [weights_fingerprint(lora.path) for lora in self.options.loras]
        return {**parts, "lora": loras} if loras else parts

    def _open(self, part: Part) -> _Opened:
        """What a part's files say; a part that is still to be fetched is opened when it is first used."""
        place = self.places.get(part.name, part.source)
        is_remote = place is not None and part.family.find is not None and not Path(place).exists()
        if is_remote and Path(place or "").suffix not in WEIGHT_ENDINGS:
            if not part.family.is_repository(place or ""):
                raise CheckpointError(f"there is no file or folder {place}, and a repository is OWNER/NAME")
            return _Opened(part, None, None, part.config)
        return self._read(part, self._path(part))

    def _path(self, part: Part) -> Path:
        """Where a part is; one that its family can fetch is fetched. Raises CheckpointError."""
        place = self.places.get(part.name, part.source)
        if place is None:
            return self.layout.find(part)
        if part.family.find is not None:
            return part.family.find(place)
        if not Path(place).exists():
            raise CheckpointError(f"{place} does not exist; check the name of the part's file or folder")
        self._refuse_whole_model(part, Path(place))
        return Path(place)

    def _refuse_whole_model(self, part: Part, folder: Path) -> None:
        """Raises CheckpointError naming the part inside for the folder of a whole model, given as one part of it."""
        layout = CheckpointLayout(folder)
        if not folder.is_dir() or layout.missing(replace(each, file=each.place) for each in self.preset.parts):
            return
        inside = layout.find(replace(part, file=part.place))
        if inside != folder:
            raise CheckpointError(f"{folder} is a whole model; name the part in it: --part {part.name}={inside}")

    def _read(self, part: Part, path: Path) -> _Opened:
        if part.family.load is not None:
            return _Opened(part, path, None, part.config)
        source = self._source(path, part.family, part.expert)
        config = part.family.read_config(path, source)
        if part.name == "dit":
            self._check_channels(config, path)
        # Transformers builds CLIP, and importing that takes seconds: it is compared when it is loaded.
        is_known = self.is_bundled and part.name not in self.places
        if not (is_known or part.family is CLIP):
            check_network(config, source, part.family)
        return _Opened(part, path, self._merged(source, part) if part.name == "dit" else source, config)

    def _source(self, path: Path, family: Family, expert: Expert | None = None) -> TensorSource:
        weights = read_weights(path, mmap=self.options.mmap)
        base = weights.metadata.get("base") if self.preset.bundled else None
        if base is None:
            native = native_weights(weights, family, expert=expert)
            self.notes += [note for note in native.notes if note not in self.notes]
            return native
        # The base is in the package, wherever the change itself was copied to.
        return with_delta(self._source(checkpoint_folder(self.preset, None) / base, family), weights)

    def _merged(self, source: TensorSource, part: Part) -> TensorSource:
        loras = loras_for(self.options.loras, part.expert)
        if not loras:
            return source
        merged = with_loras(
            source, loras, force=self.options.force_lora, dtype=self.dtype, family=part.family, expert=part.expert
        )
        self.notes += [note for note in merged.notes if note not in self.notes]
        return merged

    def _placed(self, opened: _Opened, network: WanDiTConfig) -> Placed[Any]:
        part, family = opened.part, opened.part.family
        dtype = self.run.dtype_of(part)
        tokenizer = self.tokenizer if part.name == "text_encoder" else None

        def load(
            device: torch.device,
            dtype: torch.dtype = dtype,
            division: Division | None = None,
            *,
            inference: bool = True,
            host: HostCopy | None = None,
        ) -> Any:
            found = self._read(part, self._path(part)) if opened.path is None else opened
            if found.source is None:  # another library reads it
                return family.open(self._path(part), dtype, device)
            apply = partial(self._prepare, part, inference=inference)
            divided = inference and self._is_divided(part)
            if divided:
                division = runtime.DividedReading(self._together.video, apply)
            model = load_model(
                found.config,
                found.source,
                family=family,
                dtype=dtype,
                device=device,
                place=None if host is None else host.place,
                division=division,
            )
            if host is not None:
                host.bind(model)
            if not divided:
                apply(model)
            return model if tokenizer is None else models.TextEncoder(model, tokenizer, network.text_len)

        on_cpu = part.name == "text_encoder" and self.options.text_encoder_on_cpu
        device = torch.device("cpu") if on_cpu else self.device
        # The VAE is small and used at both ends of a run: on the CPU it stays in memory.
        stays = part.name == "vae" and self.device.type == "cpu"
        between = Between.KEEP if stays else self.between
        is_read_whole = family.load is None and not self._is_divided(part)
        through = (lambda host: load(device, host=host)) if is_read_whole else None
        trainable = partial(load, device, inference=False)
        return Placed(load, device, between=between, load_through=through, load_trainable=trainable)

    def _is_divided(self, part: Part) -> bool:
        """Whether the processes that make a video divide the weights of a part among them."""
        processes = self.options.processes
        return (processes.divides_dit and part.family.is_denoiser) or (
            processes.divides_text and part.name == "text_encoder"
        )

    def _prepare(self, part: Part, model: nn.Module, shard: runtime.Shard | None = None, *, inference: bool) -> None:
        """What is done to a network for its use, in the one order."""
        is_denoiser, shares = part.family.is_denoiser, self._together.plan.sequence > 1
        runtime.prepare_model(
            model,
            inference=inference,
            attention=self.attention if is_denoiser else None,
            sequence=self._together.mesh if is_denoiser and inference and shares else None,
            shard=shard,
            step_cache=inference and is_denoiser and self.options.sampling.tea_cache is not None,
        )

    def _check_channels(self, config: WanDiTConfig, path: Path) -> None:
        if self.preset.task.takes(config, self.preset.dit, self.preset.latent_spec):
            return
        wanted = self.preset.task.channels(self.preset.latent_spec)
        branch = "without" if config.image_dim is None else "with"
        raise CheckpointError(
            f"{path} is another model than {self.preset.name}: it has {config.in_dim} input and {config.out_dim} "
            f"output channels {branch} image branch; {self.preset.name} has {wanted[0]} and {wanted[1]}"
        )

    def _check_widths(self, opened: Sequence[_Opened], network: WanDiTConfig) -> None:
        """What the parts hand to each other must have one width."""
        by_name = {each.part.name: each for each in opened}
        vae, expected = by_name["vae"].config, self.preset.vae
        if (vae.z_dim, vae.spatial_stride) != (expected.z_dim, expected.spatial_stride):
            raise CheckpointError(
                f"{by_name['vae'].path} is another VAE than that of {self.preset.name}: it has {vae.z_dim} latent "
                f"channels at stride {vae.spatial_stride}, not {expected.z_dim} at stride {expected.spatial_stride}"
            )
        for name, what, wanted in (
            ("text_encoder", "text", network.text_dim),
            ("image_encoder", "image", network.image_dim),
        ):
            if name in by_name and by_name[name].config.dim != wanted:
                raise CheckpointError(
                    f"{by_name[name].path} makes {what} states of width {by_name[name].config.dim}, the network in "
                    f"{self.folder} takes {wanted}; these files belong to different models"
                )


@dataclass(frozen=True)
class _Opened:
    """One part of a checkpoint whose header was read; ``path`` None is still to be fetched."""

    part: Part
    path: Path | None
    source: TensorSource | None
    config: Any


def _reads(opened: Sequence[_Opened]) -> dict[str, int]:
    """The bytes that reading each part touches."""
    return {part_name(each.part): each.source.read_bytes for each in opened if each.source is not None}


def _places(preset: Preset, options: RuntimeOptions) -> dict[str, str]:
    """Where the options put parts. Raises RequestError for a part that the model does not have."""
    for name in options.parts:
        if name not in preset.part_names:
            raise RequestError(f"{preset.name} has no part {name!r}; it has {', '.join(preset.part_names)}")
        if name == "dit" and preset.has_experts:
            raise RequestError(f"{preset.name} has two networks, which one part cannot replace; put both into a folder")
    return {name: str(place) for name, place in options.parts.items()}
