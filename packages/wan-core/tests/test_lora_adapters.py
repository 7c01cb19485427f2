"""LoHa, LoKr and DoRA as lycoris and ComfyUI name them: merged by their definitions, one tensor at a time."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from wan_core.checkpoints import LoRA, MemorySource, read_weights, with_loras, write_file
from wan_core.checkpoints.lora.summary import lora_summary
from wan_core.errors import CheckpointError

from .dit_networks import IMAGE, network
from .lora_files import SPELLINGS, diffusers_name, updates, write
from .memory import peak_memory, reset_peak

BASE = {name: tensor.clone() for name, tensor in network(IMAGE).state_dict().items()}
QUERY, FFN, PATCH = "blocks.0.self_attn.q", "blocks.1.ffn.0", "patch_embedding"  # 24 x 24, 20 x 24, 24 x 5 x 1 x 2 x 2
RANK = 2
Factors = dict[str, Tensor]


def random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape) + len(shape))) * 0.3


def starts() -> dict[str, Callable[[str], str]]:
    """What stands before a role in the spellings in which such files are written."""
    return {
        "lycoris": lambda layer: "lycoris_" + layer.replace(".", "_"),
        "lycoris of diffusers": lambda layer: "lycoris_" + diffusers_name(layer).replace(".", "_"),
        "kohya": lambda layer: "lora_unet_" + layer.replace(".", "_"),
        "ComfyUI": lambda layer: f"diffusion_model.{layer}",
        "peft": lambda layer: f"base_model.model.{layer}",
        "diffusers": lambda layer: f"transformer.{diffusers_name(layer)}",
        "a program of next year": lambda layer: f"wrapper.net.{layer}",
    }


def hada(out: int, inside: int) -> tuple[Factors, Tensor]:
    factors = {
        "hada_w1_a": random(out, RANK), "hada_w1_b": random(RANK, inside),
        "hada_w2_a": random(out, RANK) + 0.1, "hada_w2_b": random(RANK, inside) - 0.1,
    }  # fmt: skip
    one, other = (factors[f"hada_w{index}_a"] @ factors[f"hada_w{index}_b"] for index in "12")
    return factors, one * other


def kron(out: tuple[int, int], inside: tuple[int, int], first: bool, second: bool) -> tuple[Factors, Tensor]:
    """Factors ``[out[0], inside[0]]`` and ``[out[1], inside[1]]``; low-rank ones where ``first`` or ``second``."""
    factors: Factors = {}
    for index, (rows, columns), is_low in (("1", (out[0], inside[0]), first), ("2", (out[1], inside[1]), second)):
        if is_low:
            factors |= {f"lokr_w{index}_a": random(rows, RANK), f"lokr_w{index}_b": random(RANK, columns)}
        else:
            factors[f"lokr_w{index}"] = random(rows, columns)
    one, other = (
        factors[f"lokr_w{i}"] if f"lokr_w{i}" in factors else factors[f"lokr_w{i}_a"] @ factors[f"lokr_w{i}_b"]
        for i in "12"
    )
    return factors, torch.kron(one, other)


def pair(layer: str) -> tuple[Factors, Tensor]:
    down, up = updates(BASE, RANK)[layer]
    return {"lora_down.weight": down, "lora_up.weight": up}, up.flatten(1) @ down.flatten(1)


def through_core(core: Tensor, first: Tensor, second: Tensor) -> Tensor:
    return torch.einsum("ijtkl,ip,jr->prtkl", core, first, second)


def hada_core() -> tuple[Factors, Tensor]:
    factors = {
        f"hada_{name}": random(*shape)
        for name, shape in {
            "w1_a": (RANK, 24), "w1_b": (RANK, 5), "t1": (RANK, RANK, 1, 2, 2),
            "w2_a": (RANK, 24), "w2_b": (RANK, 5), "t2": (RANK, RANK, 1, 2, 2),
        }.items()
    }  # fmt: skip
    one, other = (through_core(factors[f"hada_t{i}"], factors[f"hada_w{i}_a"], factors[f"hada_w{i}_b"]) for i in "12")
    return factors, one * other


def kron_core() -> tuple[Factors, Tensor]:
    factors = {
        "lokr_w1": random(4, 1), "lokr_w2_a": random(RANK, 6), "lokr_w2_b": random(RANK, 5),
        "lokr_t2": random(RANK, RANK, 1, 2, 2),
    }  # fmt: skip
    other = through_core(factors["lokr_t2"], factors["lokr_w2_a"], factors["lokr_w2_b"])
    return factors, torch.kron(factors["lokr_w1"][:, :, None, None, None], other)


# name: (layer, its factors and what they make, the rank that alpha is divided by; None: alpha has no meaning)
KINDS: dict[str, tuple[str, tuple[Factors, Tensor], int | None]] = {
    "LoRA": (QUERY, pair(QUERY), RANK),
    "LoHa": (QUERY, hada(24, 24), RANK),
    "LoHa, wider than tall": (FFN, hada(20, 24), RANK),
    "LoHa of a convolution": (PATCH, hada(24, 20), RANK),
    "LoHa of a convolution, through cores": (PATCH, hada_core(), RANK),
    "LoKr of whole matrices": (QUERY, kron((4, 6), (3, 8), False, False), None),
    "LoKr, unequal": (FFN, kron((4, 5), (2, 12), False, False), None),
    "LoKr, second low-rank": (QUERY, kron((4, 6), (4, 6), False, True), RANK),
    "LoKr, first low-rank": (FFN, kron((4, 5), (3, 8), True, False), RANK),
    "LoKr, both low-rank": (FFN, kron((4, 5), (3, 8), True, True), RANK),
    "LoKr of a convolution": (PATCH, kron((4, 6), (1, 20), False, True), RANK),
    "LoKr of a convolution, through a core": (PATCH, kron_core(), RANK),
}


def merged(path: Path, strength: float = 1.0) -> dict[str, Tensor]:
    source = with_loras(MemorySource(BASE), [LoRA(path, strength)])
    return {name: source.read(name) for name in source}


def assert_only(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    for name, tensor in (BASE | dict(expected)).items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-5, msg=lambda text, name=name: name + text)


@pytest.mark.parametrize("alpha", [None, 5.0])
@pytest.mark.parametrize("name", KINDS)
def test_each_kind_merges_by_its_definition(tmp_path: Path, name: str, alpha: float | None) -> None:
    layer, (factors, change), rank = KINDS[name]
    tensors = {f"lora_unet_{layer.replace('.', '_')}.{role}": tensor for role, tensor in factors.items()}
    if alpha is not None:
        tensors[f"lora_unet_{layer.replace('.', '_')}.alpha"] = torch.tensor(alpha)
    path = write(tmp_path / "lora.safetensors", tensors)
    scale = 1.0 if alpha is None or rank is None else alpha / rank
    weight = BASE[f"{layer}.weight"]
    assert_only(merged(path, 0.5), {f"{layer}.weight": weight + 0.5 * scale * change.view(weight.shape)})
    assert set(lora_summary(read_weights(path)).ranks) == (set() if rank is None else {rank})


@pytest.mark.parametrize("spelling", starts())
@pytest.mark.parametrize("name", ["LoHa", "LoKr, second low-rank", "LoKr of whole matrices"])
def test_each_kind_is_read_in_every_spelling(tmp_path: Path, name: str, spelling: str) -> None:
    layer, (factors, change), _ = KINDS[name]
    start = starts()[spelling](layer)
    path = write(tmp_path / "lora.safetensors", {f"{start}.{role}": tensor for role, tensor in factors.items()})
    assert_only(merged(path), {f"{layer}.weight": BASE[f"{layer}.weight"] + change})


def lengths(weight: Tensor, axis: int) -> Tensor:
    """Of the rows (axis 0) or columns (axis 1) of a weight, in a shape that can be multiplied with it."""
    other = [each for each in range(weight.dim()) if each != axis]
    return torch.linalg.vector_norm(weight, dim=other, keepdim=True)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("strength", [1.0, 0.4, -0.5])
@pytest.mark.parametrize(
    "name", ["LoRA", "LoHa, wider than tall", "LoKr, both low-rank", "LoKr of whole matrices", "LoHa of a convolution"]
)
def test_a_dora_scales_the_changed_weight_to_its_lengths(tmp_path: Path, name: str, strength: float, axis: int) -> None:
    layer, (factors, change), rank = KINDS[name]
    weight = BASE[f"{layer}.weight"]
    wanted = lengths(weight, axis) * 1.5 + 0.2
    start = f"lycoris_{layer.replace('.', '_')}"
    tensors = {f"{start}.{role}": tensor for role, tensor in factors.items()}
    path = write(
        tmp_path / "a.safetensors", tensors | {f"{start}.dora_scale": wanted, f"{start}.alpha": torch.tensor(3.0)}
    )
    full = weight + (1.0 if rank is None else 3.0 / rank) * change.view(weight.shape)
    scaled = full * wanted / lengths(full, axis)
    assert_only(merged(path, strength), {f"{layer}.weight": weight + strength * (scaled - weight)})


@pytest.mark.parametrize("kind", ["LoRA", "LoHa", "LoKr", "DoRA"])
def test_fused_projections_are_cut_up_for_every_kind(tmp_path: Path, kind: str) -> None:
    down, up = random(RANK, 24), random(72, RANK)
    factors, change = {
        "LoRA": ({"lora_A.weight": down, "lora_B.weight": up}, up @ down),
        "DoRA": ({"lora_A.weight": down, "lora_B.weight": up}, up @ down),
        "LoHa": hada(72, 24),
        "LoKr": kron((8, 9), (4, 6), False, True),
    }[kind]
    parts = [f"blocks.0.self_attn.{part}.weight" for part in "qkv"]
    tensors = {f"transformer.blocks.0.attn1.to_qkv.{role}": tensor for role, tensor in factors.items()}
    expected = {part: BASE[part] + piece for part, piece in zip(parts, change.chunk(3), strict=True)}
    if kind == "DoRA":
        wanted = random(72).abs() + 1
        tensors["transformer.blocks.0.attn1.to_qkv.lora_magnitude_vector"] = wanted
        expected = {
            part: weight * piece[:, None] / lengths(weight, 0)
            for (part, weight), piece in zip(expected.items(), wanted.chunk(3), strict=True)
        }
    assert_only(merged(write(tmp_path / "lora.safetensors", tensors)), expected)


def test_norms_and_values_of_lycoris_are_taken(tmp_path: Path) -> None:
    change, value = random(24), random(24, 24)
    tensors = {
        "diffusion_model.blocks.0.norm3.w_norm": change,
        "diffusion_model.blocks.0.norm3.b_norm": change + 1,
        f"diffusion_model.{QUERY}.set_weight": value,
    }
    norm = {f"blocks.0.norm3.{kind}": BASE[f"blocks.0.norm3.{kind}"] for kind in ("weight", "bias")}
    expected = {
        "blocks.0.norm3.weight": norm["blocks.0.norm3.weight"] + change,
        "blocks.0.norm3.bias": norm["blocks.0.norm3.bias"] + change + 1,
        f"{QUERY}.weight": value,
    }
    assert_only(merged(write(tmp_path / "lora.safetensors", tensors)), expected)


START = f"diffusion_model.{QUERY}"
ROWS = f"{START}.dora_scale"
LORA = {f"{START}.{role}": tensor for role, tensor in pair(QUERY)[0].items()}
HADA = {f"{START}.{role}": tensor for role, tensor in hada(24, 24)[0].items()}
KRON = {f"{START}.{role}": tensor for role, tensor in kron((4, 6), (4, 6), False, True)[0].items()}


def without(tensors: Mapping[str, Tensor], role: str) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if not name.endswith(f".{role}")}


# name: (tensors, words that the message must have)
REFUSED: dict[str, tuple[dict[str, Tensor], tuple[str, ...]]] = {
    "a LoHa without a factor": (without(HADA, "hada_w2_b"), ("without the other half", "hada_w1_a")),
    "a LoHa with one core": (HADA | {f"{START}.hada_t1": random(2, 2, 1, 1)}, ("without the other half", "hada_t1")),
    "a LoKr without a factor": (without(KRON, "lokr_w1"), ("without the other half", "lokr_w2_a")),
    "a LoKr without half a factor": (without(KRON, "lokr_w2_b"), ("without the other half", "lokr_w2_a")),
    "a LoHa of unlike factors": (HADA | {f"{START}.hada_w2_b": random(3, 24)}, ("are no LoHa", "[3, 24]")),
    "a LoKr of unlike factors": (KRON | {f"{START}.lokr_w2_b": random(3, 6)}, ("are no LoKr", "[3, 6]")),
    "a LoKr of vectors": (KRON | {f"{START}.lokr_w1": random(16)}, ("are no LoKr", "[16]")),
    "a LoHa of another width": (
        {f"{START}.{role}": tensor for role, tensor in hada(24, 30)[0].items()}, ("[24, 30] instead of [24, 24]",),
    ),
    "a LoKr of another width": (
        {f"{START}.{role}": tensor for role, tensor in kron((4, 6), (5, 6), False, False)[0].items()},
        ("[24, 30] instead of [24, 24]",),
    ),
    "lengths of another width": (LORA | {ROWS: random(23, 1)}, ("another shape", "dora_scale", "[23, 1]")),
    "lengths of nothing": (LORA | {ROWS: random(1, 24, 2)}, ("another shape", "dora_scale", "[1, 24, 2]")),
    "one length": (LORA | {ROWS: random(1)}, ("another shape", "dora_scale", "[1]")),
    "lengths alone": (KRON | {"diffusion_model.blocks.1.ffn.0.dora_scale": random(20, 1)}, ("the other half",)),
    "a LoRA and a LoKr of one layer": (LORA | KRON, ("without a place", "lokr_w1")),
    "OFT": ({f"{START}.oft_blocks": random(2, 4, 4)}, ("OFT", "oft_blocks", "cannot be merged")),
    "BOFT": ({f"{START}.oft_blocks": random(2, 2, 4, 4)}, ("BOFT", "cannot be merged")),
    "GLoRA": ({f"{START}.a1.weight": random(2, 24), f"{START}.b1.weight": random(2, 24)}, ("is GLoRA",)),
    "IA3": ({f"{START}.on_input": torch.tensor(True), f"{START}.weight": random(24)}, ("IA3", "cannot be merged")),
    "VeRA": ({f"base_model.model.{QUERY}.vera_lambda_b": random(24)}, ("VeRA", "cannot be merged")),
    "LoCon through a core": (LORA | {f"{START}.lora_mid.weight": random(2, 2, 3, 3)}, ("middle", "cannot be merged")),
    "numbers that are none": (KRON | {f"{START}.lokr_w1": random(4, 4) / 0}, ("lokr_w1 holds NaN or infinity",)),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_adapter_of_these_is_refused_by_name(name: str, tmp_path: Path) -> None:
    tensors, words = REFUSED[name]
    path = write(tmp_path / "lora.safetensors", tensors)
    with pytest.raises(CheckpointError) as caught:
        merged(path)
    message = str(caught.value)
    assert str(path) in message
    assert len(message) < 700
    for word in words:
        assert word in message, message


@pytest.mark.parametrize("kind", ["LoHa", "LoKr", "DoRA"])
def test_memory_stays_that_of_a_few_tensors(tmp_path: Path, kind: str) -> None:
    width, names = 2 * 1024, [f"blocks.{index}.ffn.0" for index in range(6)]
    save_file({f"{name}.weight": torch.ones(width, width, dtype=torch.bfloat16) for name in names}, tmp_path / "net")
    halves = {"lora_A.weight": torch.ones(8, width), "lora_B.weight": torch.ones(width, 8)}
    factors = {
        "LoHa": {"hada_w1_a": torch.ones(width, 4), "hada_w1_b": torch.ones(4, width),
                 "hada_w2_a": torch.ones(width, 4), "hada_w2_b": torch.ones(4, width)},
        "LoKr": {"lokr_w1": torch.ones(32, 32), "lokr_w2": torch.ones(64, 64)},
        "DoRA": {**halves, "lora_magnitude_vector": torch.ones(width)},
    }[kind]  # fmt: skip
    tensors = {f"diffusion_model.{name}.{role}": tensor.clone() for name in names for role, tensor in factors.items()}
    lora = write(tmp_path / "lora.safetensors", tensors)
    source = with_loras(read_weights(tmp_path / "net"), [LoRA(lora, 0.5)])
    torch.ones(8, 8) @ torch.ones(8, 8)  # whatever the first product starts
    before = reset_peak()
    write_file(source, tmp_path / "out.safetensors")
    largest = width * width * 2  # in bfloat16; twice that in float32
    assert peak_memory() - before < 7 * largest
    assert read_weights(tmp_path / "out.safetensors").read(f"{names[5]}.weight").isfinite().all()


def test_spellings_of_the_tests_begin_as_published() -> None:
    assert SPELLINGS["lycoris"](QUERY)[0].startswith(starts()["lycoris"](QUERY))
