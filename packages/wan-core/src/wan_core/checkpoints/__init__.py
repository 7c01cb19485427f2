"""Weights on disk: read lazily, recognised by content, checked before they are used, written whole or not at all."""

from wan_core.checkpoints.configs import (
    infer_clip_config,
    infer_dit_config,
    infer_umt5_config,
    infer_vae_config,
    read_dit_config,
)
from wan_core.checkpoints.contents import FAMILY_NAMES, PARTS, Contents, Weights, find_weights
from wan_core.checkpoints.convert import ConversionReport, NativeWeights, in_format, native_weights
from wan_core.checkpoints.export import ExportOptions, Merge, Network, export_networks, networks_in
from wan_core.checkpoints.export_targets import Layout
from wan_core.checkpoints.formats import FORMATS, CheckpointFormat, detect_family, detect_format
from wan_core.checkpoints.inspection import Inspection, NetworkConfig, inspect_weights, tensor_rows
from wan_core.checkpoints.layout import CheckpointLayout, Part
from wan_core.checkpoints.load import load_model
from wan_core.checkpoints.lora.merge import (
    Expert,
    LoRA,
    LoRAFile,
    MergedWeights,
    loras_for,
    read_lora,
    with_delta,
    with_loras,
)
from wan_core.checkpoints.lora.names import is_lora
from wan_core.checkpoints.lora.summary import LoRASummary
from wan_core.checkpoints.meta import build_on_meta
from wan_core.checkpoints.readers.reader import read_weights
from wan_core.checkpoints.readers.sources import DerivedSource, MemorySource, Recipe, TensorInfo, TensorSource
from wan_core.checkpoints.writer import write_file, write_shards
from wan_core.checkpoints.written_configs import PipelineFacts

__all__ = [
    "FAMILY_NAMES",
    "FORMATS",
    "PARTS",
    "CheckpointFormat",
    "CheckpointLayout",
    "Contents",
    "ConversionReport",
    "DerivedSource",
    "Expert",
    "ExportOptions",
    "Inspection",
    "Layout",
    "LoRA",
    "LoRAFile",
    "LoRASummary",
    "MemorySource",
    "Merge",
    "MergedWeights",
    "NativeWeights",
    "Network",
    "NetworkConfig",
    "Part",
    "PipelineFacts",
    "Recipe",
    "TensorInfo",
    "TensorSource",
    "Weights",
    "build_on_meta",
    "detect_family",
    "detect_format",
    "export_networks",
    "find_weights",
    "in_format",
    "infer_clip_config",
    "infer_dit_config",
    "infer_umt5_config",
    "infer_vae_config",
    "inspect_weights",
    "is_lora",
    "load_model",
    "loras_for",
    "native_weights",
    "networks_in",
    "read_dit_config",
    "read_lora",
    "read_weights",
    "tensor_rows",
    "with_delta",
    "with_loras",
    "write_file",
    "write_shards",
]
