"""Weights on disk: read lazily, recognised by content, checked before they are used, written whole or not at all."""

from typing import TYPE_CHECKING

from wan_core.checkpoints.families import families  # a module is called so too: the function must come after it
from wan_core.lazy import on_demand

if TYPE_CHECKING:
    from wan_core.checkpoints.contents import Contents, find_weights
    from wan_core.checkpoints.convert import in_format, native_weights
    from wan_core.checkpoints.export import ExportOptions, export_networks
    from wan_core.checkpoints.export_targets import Layout, write_json
    from wan_core.checkpoints.families import (
        ANIMATE,
        CLIP,
        DIT,
        FLF2V,
        S2V,
        SAM2,
        UMT5,
        VAE,
        WAV2VEC2,
        Expert,
        Family,
        dit_config_reader,
        title_of,
    )
    from wan_core.checkpoints.families.dit import official_config
    from wan_core.checkpoints.families.sam2 import SAM2_MODEL_TYPE
    from wan_core.checkpoints.families.shapes import Shapes, build_config
    from wan_core.checkpoints.formats import CheckpointFormat
    from wan_core.checkpoints.inspection import Inspection, inspect_weights, tensor_rows
    from wan_core.checkpoints.layout import TOKENIZER, CheckpointLayout
    from wan_core.checkpoints.load import (
        Division,
        assign_tensor,
        block_of,
        check_fit,
        check_network,
        load_model,
        passing_bytes,
        stays_float32,
        weight_bytes,
    )
    from wan_core.checkpoints.lora.merge import LoRA, loras_for, with_delta, with_loras
    from wan_core.checkpoints.lora.summary import LoRASummary
    from wan_core.checkpoints.meta import build_on_meta
    from wan_core.checkpoints.networks import Network, networks_in
    from wan_core.checkpoints.parts import Part
    from wan_core.checkpoints.pipeline_files import PipelineFacts
    from wan_core.checkpoints.readers.reader import read_weights
    from wan_core.checkpoints.readers.shards import read_json, weights_fingerprint
    from wan_core.checkpoints.readers.sources import DerivedSource, MemorySource, Recipe, TensorSource
    from wan_core.checkpoints.torch_writer import write_torch_file
    from wan_core.checkpoints.writer import write_file, write_shards
else:
    __getattr__, __dir__ = on_demand(__name__)

__all__ = [
    "ANIMATE",
    "CLIP",
    "DIT",
    "FLF2V",
    "S2V",
    "SAM2",
    "SAM2_MODEL_TYPE",
    "TOKENIZER",
    "UMT5",
    "VAE",
    "WAV2VEC2",
    "CheckpointFormat",
    "CheckpointLayout",
    "Contents",
    "DerivedSource",
    "Division",
    "Expert",
    "ExportOptions",
    "Family",
    "Inspection",
    "Layout",
    "LoRA",
    "LoRASummary",
    "MemorySource",
    "Network",
    "Part",
    "PipelineFacts",
    "Recipe",
    "Shapes",
    "TensorSource",
    "assign_tensor",
    "block_of",
    "build_config",
    "build_on_meta",
    "check_fit",
    "check_network",
    "dit_config_reader",
    "export_networks",
    "families",
    "find_weights",
    "in_format",
    "inspect_weights",
    "load_model",
    "loras_for",
    "native_weights",
    "networks_in",
    "official_config",
    "passing_bytes",
    "read_json",
    "read_weights",
    "stays_float32",
    "tensor_rows",
    "title_of",
    "weight_bytes",
    "weights_fingerprint",
    "with_delta",
    "with_loras",
    "write_file",
    "write_json",
    "write_shards",
    "write_torch_file",
]
