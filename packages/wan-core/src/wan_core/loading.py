"""From a preset name and a checkpoint folder to a ready :class:`Pipeline`. Weights are read when first needed."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch

from wan_core.checkpoints import (
    CheckpointLayout,
    Expert,
    LoRA,
    Part,
    TensorSource,
    infer_clip_config,
    infer_umt5_config,
    infer_vae_config,
    load_model,
    loras_for,
    native_weights,
    read_dit_config,
    read_weights,
    with_delta,
    with_loras,
)
from wan_core.errors import CheckpointError, RequestError
from wan_core.models import CLIPVision, TextEncoder, VideoVAE, WanDiT, WanDiTConfig, load_tokenizer
from wan_core.pipeline import Pipeline, SamplingOptions
from wan_core.presets import Preset, get_preset
from wan_core.runtime import (
    Between,
    Placed,
    apply_attention_backend,
    choose_attention_backend,
    resolve_device,
    resolve_dtype,
)
from wan_core.tasks import Components, Experts


@dataclass(frozen=True, kw_only=True)
class RuntimeOptions:
    """Where and how a model runs; ``None`` lets the machine decide.

    ``offload`` sends each part off the device after use (on the CPU: out of memory); by default it is on, as with
    the original for one process. ``text_encoder_on_cpu`` keeps the text encoder on the CPU. ``mmap=False`` reads
    files instead of mapping them. ``loras`` are merged into the network while it is read; ``force_lora`` allows those
    made for another model.
    """

    device: str | None = None
    dtype: str | None = None
    offload: bool | None = None
    text_encoder_on_cpu: bool = False
    attention: str = "auto"
    mmap: bool | None = None
    loras: tuple[LoRA, ...] = ()
    force_lora: bool = False
    sampling: SamplingOptions = field(default_factory=SamplingOptions)


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
    return Path(str(files("wan_core") / "weights" / preset.bundled))


def check_loras(preset: Preset, loras: Sequence[LoRA]) -> None:
    """Raises ``RequestError`` when a LoRA is for one of two experts and the model has only one network."""
    for expert in ("high", "low") if isinstance(preset.files.dit, Experts) else (None,):
        loras_for(loras, expert)


def parts_of(preset: Preset) -> list[tuple[Part, str]]:
    """The parts of a model and their official paths inside its checkpoint folder."""
    names = preset.files
    dits = (names.dit.high, names.dit.low) if isinstance(names.dit, Experts) else (names.dit,)
    parts: list[tuple[Part, str]] = [("dit", name) for name in dits]
    parts += [("vae", names.vae), ("text_encoder", names.text_encoder), ("tokenizer", names.tokenizer)]
    return parts if names.image_encoder is None else [*parts, ("image_encoder", names.image_encoder)]


class _Loader:
    """Turns the files of one checkpoint into components that load themselves."""

    def __init__(self, preset: Preset, folder: Path, options: RuntimeOptions) -> None:
        self.preset = preset
        self.folder = folder
        self.layout = CheckpointLayout(folder, preset.name)
        self.layout.require(parts_of(preset))
        check_loras(preset, options.loras)
        self.device = resolve_device(options.device)
        self.dtype = resolve_dtype(options.dtype, self.device)
        self.attention = choose_attention_backend(options.attention, self.device)
        self.options = options
        self.notes: list[str] = []
        offload = options.offload is not False
        # On the CPU there is nowhere to move a part to: what is not needed leaves the memory.
        self.between = (Between.DROP if self.device.type == "cpu" else Between.HOST) if offload else Between.KEEP

    def pipeline(self) -> Pipeline:
        """All parts, checked against each other."""
        names = self.preset.files.dit
        if isinstance(names, Experts):
            high, low = self._network(names.high, "high"), self._network(names.low, "low")
            if high.config != low.config:
                raise CheckpointError(f"the experts in {self.folder} differ in size; they belong to different models")
            network = high
            dit: Placed[WanDiT] | Experts[Placed[WanDiT]] = Experts(high=high.placed, low=low.placed)
        else:
            network = self._network(names)
            dit = network.placed
        components = Components(
            device=self.device,
            text_encoder=self._text_encoder(network.config),
            vae=self._vae(),
            dit=dit,
            image_encoder=self._image_encoder(network.config),
        )
        record: dict[str, Any] = {
            "device": self.device.type,
            "dtype": str(self.dtype).removeprefix("torch."),
            "attention": self.attention,
            "noise_device": torch.device(self.options.sampling.noise_device).type,
        }
        if not self.preset.bundled:
            record["checkpoint"] = self.folder.resolve().name
        if self.options.loras:
            record["lora"] = [str(replace(lora, path=Path(lora.path.name))) for lora in self.options.loras]
            record["force_lora"] = self.options.force_lora
        trained = network.source.metadata.get("trained") != "false"
        if not trained:
            self.notes.append(f"note: the bundled {self.preset.name} is not trained yet; it makes coloured noise")
        return Pipeline(
            self.preset,
            components,
            latent_spec=self.preset.latent_spec,
            options=self.options.sampling,
            record=record,
            notes=self.notes,
        )

    def _source(self, path: Path, family: str) -> TensorSource:
        weights = read_weights(path, mmap=self.options.mmap)
        base = weights.metadata.get("base") if self.preset.bundled else None
        if base is None:
            return native_weights(weights, family)
        return with_delta(self._source(self.layout.dit(base), family), weights)

    def _network(self, name: str, expert: Expert | None = None) -> "_Network":
        path = self.layout.dit(name)
        source = self._source(path, "dit")
        config = read_dit_config(path, source)
        self._check_channels(config, path)
        source = self._merged(source, loras_for(self.options.loras, expert))

        def load(device: torch.device) -> WanDiT:
            model: WanDiT = load_model(config, source, family="dit", dtype=self.dtype, device=device)
            if self.preset.adapt is not None:
                model = self.preset.adapt(model)
            apply_attention_backend(model, self.attention, device)
            return model

        return _Network(config, source, Placed(load, self.device, between=self.between))

    def _merged(self, source: TensorSource, loras: Sequence[LoRA]) -> TensorSource:
        if not loras:
            return source
        merged = with_loras(source, loras, force=self.options.force_lora, dtype=self.dtype)
        self.notes += [note for note in merged.notes if note not in self.notes]
        return merged

    def _check_channels(self, config: WanDiTConfig, path: Path) -> None:
        wanted = self.preset.task.channels(self.preset.latent_spec)
        found = (config.in_dim, config.out_dim)
        has_image_branch = config.image_dim is not None
        if found == wanted and has_image_branch == (self.preset.dit.image_dim is not None):
            return
        branch = "with" if has_image_branch else "without"
        raise CheckpointError(
            f"{path} is another model than {self.preset.name}: it has {found[0]} input and {found[1]} "
            f"output channels {branch} image branch; {self.preset.name} has {wanted[0]} and {wanted[1]}"
        )

    def _vae(self) -> Placed[VideoVAE]:
        source = self._source(self.layout.vae(self.preset.files.vae), "vae")
        expected = self.preset.vae
        config = expected if self.preset.bundled else infer_vae_config(source)
        if (config.z_dim, config.spatial_stride) != (expected.z_dim, expected.spatial_stride):
            raise CheckpointError(
                f"{source.path} is another VAE than that of {self.preset.name}: it has {config.z_dim} latent channels "
                f"at stride {config.spatial_stride}, not {expected.z_dim} at stride {expected.spatial_stride}"
            )

        def load(device: torch.device) -> VideoVAE:
            # float32 as in the original: the encoded picture seeds the whole trajectory.
            model: VideoVAE = load_model(config, source, family="vae", dtype=torch.float32, device=device)
            return model

        # Small, and used at both ends of a run: on the CPU it stays in memory.
        return Placed(load, self.device, between=Between.KEEP if self.device.type == "cpu" else self.between)

    def _text_encoder(self, network: WanDiTConfig) -> Placed[TextEncoder]:
        source = self._source(self.layout.text_encoder(self.preset.files.text_encoder), "umt5")
        config = self.preset.text_encoder if self.preset.bundled else infer_umt5_config(source)
        if config.dim != network.text_dim:
            raise CheckpointError(
                f"{source.path} makes text states of width {config.dim}, the network in {self.folder} takes "
                f"{network.text_dim}; these files belong to different models"
            )
        tokenizer = load_tokenizer(self.layout.tokenizer(self.preset.files.tokenizer))
        device = torch.device("cpu") if self.options.text_encoder_on_cpu else self.device
        dtype = torch.float32 if self.dtype is torch.float32 else torch.bfloat16

        def load(target: torch.device) -> TextEncoder:
            model = load_model(config, source, family="umt5", dtype=dtype, device=target)
            return TextEncoder(model, tokenizer, network.text_len)

        return Placed(load, device, between=self.between)

    def _image_encoder(self, network: WanDiTConfig) -> Placed[CLIPVision] | None:
        if self.preset.files.image_encoder is None:
            return None
        source = self._source(self.layout.image_encoder(self.preset.files.image_encoder), "clip")
        config = infer_clip_config(source)
        if config.dim != network.image_dim:
            raise CheckpointError(
                f"{source.path} makes image states of width {config.dim}, the network in {self.folder} takes "
                f"{network.image_dim}; these files belong to different models"
            )
        dtype = torch.float32 if self.dtype is torch.float32 else torch.float16

        def load(device: torch.device) -> CLIPVision:
            model: CLIPVision = load_model(config, source, family="clip", dtype=dtype, device=device)
            return model

        return Placed(load, self.device, between=self.between)


@dataclass(frozen=True)
class _Network:
    """One DiT of a checkpoint: what it is, where it is read from, and how it loads."""

    config: WanDiTConfig
    source: TensorSource
    placed: Placed[WanDiT]
