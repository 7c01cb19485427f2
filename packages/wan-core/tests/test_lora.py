"""LoRA files: every spelling merges into the same weights, and what does not fit is one error with names."""

import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from wan_core.checkpoints import LoRA, MemorySource, load_model, loras_for, with_loras
from wan_core.checkpoints.lora.merge import read_lora
from wan_core.checkpoints.lora.names import is_lora
from wan_core.checkpoints.lora.summary import lora_summary
from wan_core.errors import CheckpointError, RequestError

from .dit_networks import CONFIG, IMAGE
from .lora_files import (
    BASE,
    QUERY,
    SPELLINGS,
    assert_close,
    diffusers_name,
    layers_of,
    merged,
    read,
    spelt,
    updates,
    write,
)


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    spelling=st.sampled_from(sorted(SPELLINGS)),
    rank=st.integers(1, 9),
    alpha=st.none() | st.floats(0.03125, 64, width=32),
    strength=st.floats(-2, 2, width=32),
    chosen=st.sets(st.sampled_from(layers_of(BASE)), min_size=1),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
)
def test_every_spelling_merges_to_strength_times_alpha_by_rank(
    tmp_path: Path, spelling: str, rank: int, alpha: float | None, strength: float, chosen: set[str], dtype: torch.dtype
) -> None:
    halves = {
        layer: (down.to(dtype), up.to(dtype)) for layer, (down, up) in updates(BASE, rank).items() if layer in chosen
    }
    path = write(tmp_path / "lora.safetensors", spelt(halves, spelling, alpha))
    assert is_lora(read_lora(path).source.keys())
    assert list(lora_summary(read_lora(path).source).ranks) == [rank]
    scale = strength * (1.0 if alpha is None else alpha / rank)
    assert_close(read(path, strength), merged(BASE, halves, scale))


@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    parts=st.lists(
        st.tuples(st.sampled_from(sorted(SPELLINGS)), st.integers(1, 4), st.floats(-1, 1, width=32)),
        min_size=1,
        max_size=4,
    )
)
def test_several_add_up_in_any_order(tmp_path: Path, parts: list[tuple[str, int, float]]) -> None:
    loras, expected = [], dict(BASE)
    for index, (spelling, rank, strength) in enumerate(parts):
        halves = updates(BASE, rank, seed=index)
        path = write(tmp_path / f"{index}.safetensors", spelt(halves, spelling))
        loras.append(LoRA(path, strength))
        expected = merged(expected, halves, strength)
    for order in (loras, loras[::-1]):
        source = with_loras(MemorySource(BASE), order)
        assert_close({name: source.read(name) for name in source}, expected)


def test_changes_of_weights_biases_and_modulations_are_added(tmp_path: Path) -> None:
    targets = {
        "blocks.1.norm3.diff": "blocks.1.norm3.weight",
        "blocks.1.norm3.diff_b": "blocks.1.norm3.bias",
        "blocks.0.self_attn.norm_q.diff": "blocks.0.self_attn.norm_q.weight",
        "blocks.0.ffn.2.diff_b": "blocks.0.ffn.2.bias",
        "patch_embedding.diff": "patch_embedding.weight",
        "head.head.diff": "head.head.weight",
        "blocks.0.diff_m": "blocks.0.modulation",
        "blocks.1.modulation.diff": "blocks.1.modulation",
        "head.diff_m": "head.modulation",
    }
    changes = {name: torch.randn_like(BASE[target]) for name, target in targets.items()}
    tensors = {f"diffusion_model.{name}": change for name, change in changes.items()}
    halves = {QUERY: updates(BASE, 2)[QUERY]}
    path = write(tmp_path / "lora.safetensors", tensors | spelt(halves, "lightx2v", 4.0))
    expected = merged(BASE, halves, 0.5 * 2)
    for name, target in targets.items():
        expected[target] = expected[target] + 0.5 * changes[name]
    assert_close(read(path, 0.5), expected)


def test_in_a_diffusers_file_norm2_is_our_norm3_and_in_others_it_is_not(tmp_path: Path) -> None:
    change = torch.ones(CONFIG.dim)
    halves = {QUERY: updates(BASE, 1)[QUERY]}
    path = write(tmp_path / "a.safetensors", spelt(halves, "diffusers") | {"transformer.blocks.1.norm2.diff": change})
    torch.testing.assert_close(read(path)["blocks.1.norm3.weight"], BASE["blocks.1.norm3.weight"] + 1)
    native = spelt(halves, "ComfyUI") | {"diffusion_model.blocks.1.norm2.diff": change}
    with pytest.raises(CheckpointError, match=r"1 without a place in this model: diffusion_model\.blocks\.1\.norm2"):
        read(write(tmp_path / "b.safetensors", native))


def test_the_bias_of_an_update_is_scaled_with_it(tmp_path: Path) -> None:
    halves = {QUERY: updates(BASE, 4)[QUERY]}
    names = {f"base_model.model.{QUERY}.lora_B.bias": torch.ones(IMAGE.dim)}
    path = write(tmp_path / "lora.safetensors", spelt(halves, "peft", 8.0) | names)
    torch.testing.assert_close(read(path, 0.5)[f"{QUERY}.bias"], BASE[f"{QUERY}.bias"] + 0.5 * 2)


def test_whole_layers_saved_by_peft_take_the_place_of_ours(tmp_path: Path) -> None:
    head = torch.randn_like(BASE["head.head.weight"])
    path = write(tmp_path / "lora.safetensors", {"base_model.model.head.head.modules_to_save.default.weight": head})
    torch.testing.assert_close(read(path)["head.head.weight"], head)
    torch.testing.assert_close(read(path, 0.25)["head.head.weight"], BASE["head.head.weight"].lerp(head, 0.25))


@pytest.mark.parametrize("fused", ["attn1.to_qkv", "attn2.to_kv"])
def test_an_update_of_fused_projections_is_cut_into_theirs(tmp_path: Path, fused: str) -> None:
    attention, parts = ("self_attn", "qkv") if fused == "attn1.to_qkv" else ("cross_attn", "kv")
    halves = updates(BASE, 3)
    down = halves[f"blocks.0.{attention}.k"][0]
    ups = [halves[f"blocks.0.{attention}.{part}"][1] for part in parts]
    name = f"transformer.blocks.0.{fused}"
    path = write(
        tmp_path / "lora.safetensors", {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": torch.cat(ups)}
    )
    expected = {f"blocks.0.{attention}.{part}": (down, up) for part, up in zip(parts, ups, strict=True)}
    assert_close(read(path), merged(BASE, expected, 1.0))


PEFT = {"r": 2, "lora_alpha": 6, "alpha_pattern": {"ffn.0": 1}, "use_rslora": False}


@pytest.mark.parametrize("use_rslora", [False, True])
def test_pefts_settings_beside_the_file_give_the_scale(tmp_path: Path, use_rslora: bool) -> None:
    chosen = {layer: updates(BASE, 2)[layer] for layer in (QUERY, "blocks.0.ffn.0")}
    write(tmp_path / "adapter_model.safetensors", spelt(chosen, "peft"))
    (tmp_path / "adapter_config.json").write_text(json.dumps(PEFT | {"use_rslora": use_rslora}))
    divisor = math.sqrt(2) if use_rslora else 2
    expected = merged(BASE, {QUERY: chosen[QUERY]}, 6 / divisor)
    expected = merged(expected, {"blocks.0.ffn.0": chosen["blocks.0.ffn.0"]}, 1 / divisor)
    assert_close(read(tmp_path), expected)


def test_diffusers_keeps_the_scale_in_the_metadata(tmp_path: Path) -> None:
    halves = {QUERY: updates(BASE, 2)[QUERY]}
    metadata = {"lora_adapter_metadata": json.dumps({f"transformer.{name}": value for name, value in PEFT.items()})}
    write(tmp_path / "pytorch_lora_weights.safetensors", spelt(halves, "diffusers"), metadata)
    assert_close(read(tmp_path), merged(BASE, halves, 3.0))


def test_a_file_of_torch_save_is_read(tmp_path: Path) -> None:
    halves = updates(BASE, 2)
    torch.save({"state_dict": spelt(halves, "DiffSynth")}, tmp_path / "relighting_lora.ckpt")
    assert_close(read(tmp_path / "relighting_lora.ckpt"), merged(BASE, halves, 1.0))


def test_16_bit_weights_are_merged_in_float32_and_rounded_once(tmp_path: Path) -> None:
    base = {name: tensor.bfloat16() for name, tensor in BASE.items()}
    loras = []
    for index in range(3):
        halves = {QUERY: updates(BASE, 2, seed=index)[QUERY]}
        loras.append(LoRA(write(tmp_path / f"{index}.safetensors", spelt(halves, "ComfyUI")), 0.01))
    weight = base[f"{QUERY}.weight"].float()
    for index in range(3):
        down, up = updates(BASE, 2, seed=index)[QUERY]
        weight = weight + 0.01 * up @ down
    found = with_loras(MemorySource(base), loras)
    assert found.info(f"{QUERY}.weight").dtype is torch.bfloat16
    torch.testing.assert_close(found.read(f"{QUERY}.weight"), weight.bfloat16(), rtol=0, atol=0)
    wide = with_loras(MemorySource(base), loras, dtype=torch.float32)
    torch.testing.assert_close(wide.read(f"{QUERY}.weight"), weight)


def test_strength_zero_leaves_every_bit_and_reading_twice_gives_the_same(tmp_path: Path) -> None:
    path = write(tmp_path / "lora.safetensors", spelt(updates(BASE, 2), "ComfyUI"))
    assert all(torch.equal(tensor, BASE[name]) for name, tensor in read(path, 0.0).items())
    source = with_loras(MemorySource(BASE), [LoRA(path)])
    assert torch.equal(source.read(f"{QUERY}.weight"), source.read(f"{QUERY}.weight"))


def test_a_merged_source_loads_like_any_other(tmp_path: Path) -> None:
    halves = updates(BASE, 2)
    path = write(tmp_path / "lora.safetensors", spelt(halves, "kohya and musubi", 1.0))
    model = load_model(IMAGE, with_loras(MemorySource(BASE), [LoRA(path)]), family="dit")
    assert_close(model.state_dict(), merged(BASE, halves, 0.5))


def test_a_lora_for_one_expert_goes_only_there() -> None:
    high, both = LoRA(Path("a"), 1.0, "high"), LoRA(Path("b"), 0.5)
    assert loras_for([high, both], "high") == [high, both]
    assert loras_for([high, both], "low") == [both]
    assert loras_for([both], None) == [both]
    assert str(high) == "high=a"
    assert str(both) == "b:0.5"
    with pytest.raises(RequestError, match="no high-noise expert"):
        loras_for([both, high], None)


# -- what does not fit -------------------------------------------------------------------------------------------------

GOOD = spelt({QUERY: updates(BASE, 2)[QUERY]}, "ComfyUI", 2.0)
DOWN, UP, ALPHA = GOOD
NAN = torch.full((2, IMAGE.dim), math.nan)

# name: (tensors, words that the message must have)
MISFITS: dict[str, tuple[dict[str, Tensor], tuple[str, ...]]] = {
    "a layer that there is not": (
        GOOD | spelt({"blocks.7.self_attn.q": updates(BASE, 2)[QUERY]}, "ComfyUI"),
        ("2 without a place", "blocks.7.self_attn.q.lora_A", "--force-lora"),
    ),
    "another width": (
        {DOWN: torch.ones(2, 99), UP: torch.ones(77, 2)},
        ("1 of another shape", UP, "[77, 99] instead of [24, 24]", "another model"),
    ),
    "only the lower half": ({DOWN: GOOD[DOWN]}, ("1 without the other half", DOWN, "fetch it again")),
    "only the upper half": ({UP: GOOD[UP], ALPHA: GOOD[ALPHA]}, ("2 without the other half", UP)),
    "only an alpha": (GOOD | {"diffusion_model.head.alpha": torch.tensor(1.0)}, ("without the other half", "head")),
    "halves of two ranks": ({DOWN: torch.ones(2, 24), UP: torch.ones(24, 3)}, ("no pair", "[2, 24]", "[24, 3]")),
    "halves that are vectors": ({DOWN: torch.ones(24), UP: torch.ones(24)}, ("no pair",)),
    "rank zero": ({DOWN: torch.ones(0, 24), UP: torch.ones(24, 0)}, ("no pair",)),
    "an alpha of NaN": (GOOD | {ALPHA: torch.tensor(math.nan)}, (ALPHA, "finite", "damaged")),
    "an alpha of two": (GOOD | {ALPHA: torch.ones(2)}, (ALPHA, "one finite number")),
    "a whole model": (dict(BASE), ("not a LoRA", "none of its")),
    "a pose encoder that LoRAs come with": (
        {"dwpose_embedding.0.weight": torch.ones(2)}, ("not a LoRA", "none of its 1 tensors", "dwpose_embedding.0"),
    ),
    "a network of other layers": (
        {"lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight": torch.ones(2, 24),
         "lora_unet_double_blocks_0_img_attn_qkv.lora_up.weight": torch.ones(72, 2)},
        ("without a place", "double_blocks_0", "another model; use one made for this"),
    ),
    "a text encoder's": (
        GOOD | {"lora_te1_blocks_0_attn_q.lora_down.weight": torch.ones(2, 9),
                "lora_te1_blocks_0_attn_q.lora_up.weight": torch.ones(9, 2)},
        ("2 without a place", "lora_te1"),
    ),
    "a bias change of another width": ({f"diffusion_model.{QUERY}.diff_b": torch.ones(9)}, ("another shape", "[9]")),
    "the same tensor twice": (
        GOOD | {f"{QUERY}.lora_A.default.weight": GOOD[DOWN] + 1}, (DOWN, "lora_A.default", "same tensor"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MISFITS)
def test_what_does_not_fit_is_named(name: str, tmp_path: Path) -> None:
    tensors, words = MISFITS[name]
    path = write(tmp_path / "lora.safetensors", tensors)
    with pytest.raises(CheckpointError) as caught:
        with_loras(MemorySource(BASE, path=Path("network")), [LoRA(path)])
    message = str(caught.value)
    assert str(path) in message
    assert len(message) < 700
    assert "\n" not in message
    for word in words:
        assert word in message, message


def test_damaged_numbers_are_named_when_they_are_read(tmp_path: Path) -> None:
    path = write(tmp_path / "lora.safetensors", GOOD | {DOWN: NAN})
    with pytest.raises(CheckpointError, match=r"lora_A.weight holds NaN or infinity"):
        read(path)


def test_damaged_settings_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "adapter_model.safetensors", GOOD)
    for text in (
        "{",
        "[]",
        '{"lora_alpha": "much"}',
        '{"lora_alpha": 1e999}',
        '{"alpha_pattern": 3}',
        '{"r": 1, "r": 2}',
    ):
        (tmp_path / "adapter_config.json").write_text(text)
        with pytest.raises(CheckpointError, match=r"adapter_config\.json are damaged"):
            read(tmp_path)


def test_force_leaves_out_what_has_no_place_and_says_so(tmp_path: Path) -> None:
    extra = spelt({"blocks.7.self_attn.q": updates(BASE, 2)[QUERY]}, "ComfyUI")
    path = write(tmp_path / "lora.safetensors", GOOD | extra)
    source = with_loras(MemorySource(BASE), [LoRA(path)], force=True)
    assert source.left_out == {path: tuple(sorted(extra))}
    halves = {QUERY: (GOOD[DOWN], GOOD[UP])}
    assert_close({name: source.read(name) for name in source}, merged(BASE, halves, 1.0))


def test_force_does_not_help_where_nothing_or_no_shape_fits(tmp_path: Path) -> None:
    nothing = spelt({"blocks.7.self_attn.q": updates(BASE, 2)[QUERY]}, "ComfyUI")
    for index, tensors in enumerate((nothing, {DOWN: torch.ones(2, 99), UP: torch.ones(77, 2)})):
        with pytest.raises(CheckpointError, match="another model; use one made for this"):
            read(write(tmp_path / f"{index}.safetensors", tensors), force=True)


ANIMATE = BASE | {"face_adapter.fuser_blocks.0.linear1_q.weight": torch.ones(2, 2)}


@pytest.mark.parametrize(
    ("file", "metadata"),
    [
        ("style.safetensors", {"ss_base_model_version": "wan2.2_i2v_a14b"}),
        ("style.safetensors", {"modelspec.architecture": "Wan-2.2-T2V-A14B/lora"}),
        ("Wan2.2-T2V-style_high_noise.safetensors", {}),
        ("Wan2.2_animated_film.safetensors", {}),
        ("animate_me.safetensors", {"ss_base_model_version": "wan2.2_t2v_a14b"}),  # its name is no proof
        ("animate_me.safetensors", {"base_model": "i2v-A14B"}),
        ("animate_me.safetensors", {"modelspec.title": "Wan 2.2 style"}),
    ],
)
def test_a_wan22_lora_on_animate_is_refused_unless_forced(tmp_path: Path, file: str, metadata: dict[str, str]) -> None:
    path = write(tmp_path / file, GOOD, metadata | {"format": "pt"})
    source = MemorySource(ANIMATE)
    with pytest.raises(CheckpointError, match=r"made for Wan2\.2.*--force-lora"):
        with_loras(source, [LoRA(path)])
    assert len(with_loras(source, [LoRA(path)], force=True)) == len(ANIMATE)
    assert len(with_loras(MemorySource(BASE), [LoRA(path)])) == len(BASE)


def test_a_lora_of_no_said_model_on_animate_is_refused_unless_forced(tmp_path: Path) -> None:
    path = write(tmp_path / "style.safetensors", GOOD, {"base_model": "my-own"})
    with pytest.raises(CheckpointError, match=r"does not say which model.*--force-lora"):
        with_loras(MemorySource(ANIMATE), [LoRA(path)])
    assert len(with_loras(MemorySource(ANIMATE), [LoRA(path)], force=True)) == len(ANIMATE)


@pytest.mark.parametrize(
    ("name", "metadata"),
    [
        ("relighting_lora.safetensors", {}),
        ("Wan2.2-Animate-dance.safetensors", {}),
        ("lora.safetensors", {"base_model": "animate-14B"}),  # as training here writes it
        ("lora.safetensors", {"base_model": "t2v-14B"}),
        ("wan2.1_style.safetensors", {}),
        ("Wan2.2-style.safetensors", {"base_model": "Wan2.2-Animate-14B"}),
    ],
)
def test_loras_of_animate_and_of_what_it_comes_from_are_welcome(
    tmp_path: Path, name: str, metadata: dict[str, str]
) -> None:
    path = write(tmp_path / name, GOOD, metadata)
    assert len(with_loras(MemorySource(ANIMATE), [LoRA(path)])) == len(ANIMATE)


def test_a_lora_with_an_image_branch_is_not_of_wan22_and_welcome_on_animate(tmp_path: Path) -> None:
    wide, narrow = ANIMATE["blocks.0.cross_attn.k_img.weight"].shape
    shapes = {"A": (2, narrow), "B": (wide, 2)}
    halves = {f"blocks.0.cross_attn.k_img.lora_{half}.weight": torch.ones(shape) for half, shape in shapes.items()}
    path = write(tmp_path / "wan2.2_style.safetensors", halves)
    assert len(with_loras(MemorySource(ANIMATE), [LoRA(path)])) == len(ANIMATE)


def test_layers_tell_more_than_what_is_said(tmp_path: Path) -> None:
    face = {"face_adapter.fuser_blocks.0.linear1_q": (torch.ones(2, 2), torch.ones(2, 2))}
    own = write(tmp_path / "wan2.2.safetensors", spelt(face, "ComfyUI"), {"base_model": "Wan2.2"})
    assert len(with_loras(MemorySource(ANIMATE), [LoRA(own)])) == len(ANIMATE)
    half = {f"high_noise_model.{name}": tensor for name, tensor in GOOD.items()}
    path = write(tmp_path / "animate.safetensors", half, {"base_model": "animate-14B"})
    with pytest.raises(CheckpointError, match=r"made for Wan2\.2 \('high_noise_model"):
        with_loras(MemorySource(ANIMATE), [LoRA(path)])


def test_diffusers_names_of_the_tests_are_the_published_ones() -> None:
    assert diffusers_name("blocks.3.cross_attn.k_img") == "blocks.3.attn2.add_k_proj"
    assert diffusers_name("head.head") == "proj_out"
