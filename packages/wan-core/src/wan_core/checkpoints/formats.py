"""The layouts in which Wan weights are found, as tables over one converter.

Native names are the official ones (of the CLIP tower: transformers'), so their tables are nearly empty. A format is
chosen once per file, by a name that only it has; every table leaves native names as they are. Correspondences: the
published state dicts of Wan and of diffusers 0.35 and transformers 4 and 5.
"""

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from torch import Tensor

from wan_core.checkpoints.families.clip_names import CLIP_ORIGINAL_RENAMES, join_clip_tensors, split_clip_tensor
from wan_core.checkpoints.families.vae_names import vae_renames
from wan_core.errors import CheckpointError

Renames = tuple[tuple[str, str | None], ...]
"""Pairs of module-path prefixes, foreign then native; ``{}`` is one index, ``None`` means dropped on purpose."""

Split = Callable[[str, Tensor], dict[str, Tensor] | None]
"""A foreign tensor to its native ones where a prefix table cannot say it; ``None`` where it can."""

Join = Callable[[Collection[str]], Mapping[str, tuple[tuple[str, ...], Callable[..., Tensor]]]]
"""Of native names, those foreign tensors that are made of several or reshaped: inputs and a function of them."""

WRAPPERS = ("_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "_orig_mod.")
"""What training wrappers put anywhere into a name."""


@dataclass(frozen=True, kw_only=True)
class CheckpointFormat:
    """One naming of one family of networks.

    ``marker`` is a regular expression that occurs only in names of this format. ``unwrap`` lists groups of which the
    first present one is the model and everything outside is left out; ``strip_prefixes`` are cut where they occur.
    ``renames_for`` makes a table from the names at hand, where indices depend on their count. ``duplicates`` are native
    names that a file may hold twice; the first rule wins.
    """

    name: str
    marker: str = ""
    renames: Renames = ()
    renames_for: Callable[[Collection[str]], Renames] | None = None
    strip_prefixes: tuple[str, ...] = ()
    unwrap: tuple[str, ...] = ()
    duplicates: frozenset[str] = frozenset()
    split: Split | None = None
    join: Join | None = None

    def table(self, names: Collection[str]) -> Renames:
        """The whole table for a set of names, in either naming."""
        return self.renames if self.renames_for is None else (*self.renames, *self.renames_for(names))


def rename(name: str, rules: Mapping[str, str | None]) -> str | None:
    """The name after the rule with the longest matching prefix of whole segments; unchanged without one."""
    segments = name.split(".")
    for length in range(len(segments), 0, -1):
        head = segments[:length]
        candidates: list[tuple[str, str | None]] = [(".".join(head), None)]
        for position, segment in enumerate(head):
            if segment.isdigit():
                candidates.append((".".join([*head[:position], "{}", *head[position + 1 :]]), segment))
        for pattern, index in candidates:
            if pattern in rules:
                target = rules[pattern]
                if target is None:
                    return None
                return ".".join([target if index is None else target.replace("{}", index), *segments[length:]])
    return name


DIFFUSERS_DIT: Renames = (
    ("condition_embedder.time_embedder.linear_1", "time_embedding.0"),
    ("condition_embedder.time_embedder.linear_2", "time_embedding.2"),
    ("condition_embedder.time_proj", "time_projection.1"),
    ("condition_embedder.text_embedder.linear_1", "text_embedding.0"),
    ("condition_embedder.text_embedder.linear_2", "text_embedding.2"),
    ("condition_embedder.image_embedder.norm1", "img_emb.proj.0"),
    ("condition_embedder.image_embedder.ff.net.0.proj", "img_emb.proj.1"),
    ("condition_embedder.image_embedder.ff.net.2", "img_emb.proj.3"),
    ("condition_embedder.image_embedder.norm2", "img_emb.proj.4"),
    ("proj_out", "head.head"),
    ("scale_shift_table", "head.modulation"),
    ("blocks.{}.scale_shift_table", "blocks.{}.modulation"),
    ("blocks.{}.norm2", "blocks.{}.norm3"),  # only this file format: a native norm2 has no weights
    ("blocks.{}.ffn.net.0.proj", "blocks.{}.ffn.0"),
    ("blocks.{}.ffn.net.2", "blocks.{}.ffn.2"),
    *(
        (f"blocks.{{}}.{theirs}.{part}", f"blocks.{{}}.{ours}.{name}")
        for theirs, ours in (("attn1", "self_attn"), ("attn2", "cross_attn"))
        for part, name in (("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("to_out.0", "o"),
                           ("norm_q", "norm_q"), ("norm_k", "norm_k"))
    ),
    ("blocks.{}.attn2.add_k_proj", "blocks.{}.cross_attn.k_img"),
    ("blocks.{}.attn2.add_v_proj", "blocks.{}.cross_attn.v_img"),
    ("blocks.{}.attn2.norm_added_k", "blocks.{}.cross_attn.norm_k_img"),
    ("blocks.{}.attn2.norm_added_q", None),
)  # fmt: skip

TRANSFORMERS_UMT5: Renames = (
    ("shared", "token_embedding"),
    ("encoder.embed_tokens", "token_embedding"),
    ("encoder.final_layer_norm", "norm"),
    ("encoder.block.{}.layer.0.layer_norm", "blocks.{}.norm1"),
    *((f"encoder.block.{{}}.layer.0.SelfAttention.{part}", f"blocks.{{}}.attn.{part}") for part in "qkvo"),
    ("encoder.block.{}.layer.0.SelfAttention.relative_attention_bias", "blocks.{}.pos_embedding.embedding"),
    ("encoder.block.{}.layer.1.layer_norm", "blocks.{}.norm2"),
    ("encoder.block.{}.layer.1.DenseReluDense.wi_0", "blocks.{}.ffn.gate.0"),
    ("encoder.block.{}.layer.1.DenseReluDense.wi_1", "blocks.{}.ffn.fc1"),
    ("encoder.block.{}.layer.1.DenseReluDense.wo", "blocks.{}.ffn.fc2"),
    ("decoder", None),
    ("lm_head", None),
    ("spiece_model", None),  # the tokenizer, which single files carry along
    ("logit_scale", None),
)

TRANSFORMERS_CLIP: Renames = (
    ("embeddings.position_ids", None),
    ("visual_projection", None),
    ("text_projection", None),
    ("text_model", None),
    ("logit_scale", None),
)

_FUSED = re.compile(r"(blocks\.\d+)\.(?:attn1\.to_qkv|attn2\.to_kv|attn2\.to_added_kv)\.(weight|bias)")
_FUSED_PARTS = {
    "attn1.to_qkv": ("self_attn.q", "self_attn.k", "self_attn.v"),
    "attn2.to_kv": ("cross_attn.k", "cross_attn.v"),
    "attn2.to_added_kv": ("cross_attn.k_img", "cross_attn.v_img"),
}


def split_fused_attention(name: str, tensor: Tensor) -> dict[str, Tensor] | None:
    """diffusers' fused projections (``fuse_qkv_projections``): equal parts along the output axis, in order q, k, v."""
    match = _FUSED.fullmatch(name)
    if match is None:
        return None
    block, kind = match.groups()
    parts = _FUSED_PARTS[name.removeprefix(f"{block}.").removesuffix(f".{kind}")]
    return {f"{block}.{part}.{kind}": piece for part, piece in zip(parts, tensor.chunk(len(parts)), strict=True)}


LLAMA_CPP_UMT5: Renames = (
    ("token_embd", "token_embedding"),
    ("enc.output_norm", "norm"),
    ("enc.blk.{}.attn_norm", "blocks.{}.norm1"),
    *((f"enc.blk.{{}}.attn_{part}", f"blocks.{{}}.attn.{part}") for part in "qkvo"),
    ("enc.blk.{}.attn_rel_b", "blocks.{}.pos_embedding.embedding"),
    ("enc.blk.{}.ffn_norm", "blocks.{}.norm2"),
    ("enc.blk.{}.ffn_gate", "blocks.{}.ffn.gate.0"),
    ("enc.blk.{}.ffn_up", "blocks.{}.ffn.fc1"),
    ("enc.blk.{}.ffn_down", "blocks.{}.ffn.fc2"),
)

PARTS_OF_ONE_FILE: Mapping[str, tuple[str, ...]] = {
    "dit": ("model.diffusion_model.",),
    "vae": ("first_stage_model.", "vae."),
    "umt5": ("text_encoders.", "cond_stage_model."),
    "clip": ("clip_vision.",),
}
"""Prefixes of a whole model in a single file, by family: reading one part leaves the others out."""

_DIT_PREFIXES = ("model.diffusion_model.", "diffusion_model.", "transformer.", "pipe.dit.", "dit.", "model.")
_NESTS = ("generator_ema.", "generator.", "state_dict.", "module.")

OFFICIAL = CheckpointFormat(name="official", strip_prefixes=("model.",), unwrap=("state_dict.", "module."))

FORMATS: Mapping[str, tuple[CheckpointFormat, ...]] = {
    "dit": (
        CheckpointFormat(
            name="diffusers",
            marker=r"(?:^|\.)condition_embedder\.|\.attn[12]\.|\.ffn\.net\.",
            renames=DIFFUSERS_DIT,
            strip_prefixes=_DIT_PREFIXES,
            split=split_fused_attention,
        ),
        CheckpointFormat(name="official", strip_prefixes=_DIT_PREFIXES, unwrap=_NESTS),
    ),
    "vae": (
        CheckpointFormat(
            name="diffusers",
            marker=r"\.mid_block\.",
            renames_for=vae_renames,
            strip_prefixes=("first_stage_model.", "vae."),
        ),
        CheckpointFormat(
            name="official", strip_prefixes=("first_stage_model.", "vae.", "model."), unwrap=("state_dict.",)
        ),
    ),
    "umt5": (
        CheckpointFormat(
            name="diffusers",
            marker=r"\.SelfAttention\.",
            renames=TRANSFORMERS_UMT5,
            strip_prefixes=("text_encoders.umt5xxl.transformer.", "text_encoders.umt5xxl.", "text_encoder."),
            duplicates=frozenset({"token_embedding.weight"}),
        ),
        CheckpointFormat(name="llama.cpp", marker=r"(?:^|\.)enc\.blk\.", renames=LLAMA_CPP_UMT5),
        OFFICIAL,
    ),
    "clip": (
        CheckpointFormat(
            name="official",
            marker=r"(?:^|\.)visual\.",
            renames=CLIP_ORIGINAL_RENAMES,
            strip_prefixes=("model.",),
            split=split_clip_tensor,
            join=join_clip_tensors,
        ),
        CheckpointFormat(
            name="diffusers",
            renames=TRANSFORMERS_CLIP,
            strip_prefixes=("clip_vision.", "image_encoder.", "vision_model."),
        ),
    ),
}
"""Formats by family, most particular first; the last one is assumed when no marker occurs."""

_SIGNATURES = {
    "dit": r"(?:^|\.)blocks\.0\.(?:self_attn|attn1)\.",
    "vae": r"(?:^|\.)decoder\.(?:middle|mid_block)\.",
    "umt5": r"(?:^|\.)(?:blocks\.0\.attn\.q|SelfAttention\.q|enc\.blk\.0\.attn_q)\.weight$",
    "clip": r"(?:^|\.)(?:visual\.pre_norm|pre_layrnorm)\.weight$",
}


def formats_of(family: str) -> tuple[CheckpointFormat, ...]:
    """The formats of a family. Raises KeyError for an unknown one."""
    return FORMATS[family]


def groups_of(names: Collection[str], family: str) -> tuple[str, ...]:
    """The models beside each other in a trainer's file: ``generator_ema``, ``generator`` ..., the one taken first."""
    nests = dict.fromkeys(nest for candidate in FORMATS[family] for nest in candidate.unwrap)
    return tuple(nest.removesuffix(".") for nest in nests if any(name.startswith(nest) for name in names))


def get_format(family: str, name: str) -> CheckpointFormat:
    """The format called ``name``. Raises CheckpointError naming those there are."""
    for candidate in FORMATS[family]:
        if candidate.name == name:
            return candidate
    raise CheckpointError(
        f"there is no format {name!r} of {family}; known: {', '.join(f.name for f in FORMATS[family])}"
    )


def detect_format(names: Collection[str], family: str) -> CheckpointFormat:
    """The format of a file with these names."""
    candidates = FORMATS[family]
    for candidate in candidates[:-1]:
        if any(re.search(candidate.marker, name) for name in names):
            return candidate
    return candidates[-1]


def detect_family(names: Collection[str]) -> str | None:
    """The family whose weights these names are, or None."""
    return next((f for f, mark in _SIGNATURES.items() if any(re.search(mark, name) for name in names)), None)
