"""Names and shapes of the real-size networks, as digests of the published lists; the tool names differences."""

import hashlib
from pathlib import Path

import pytest

from tools.check_manifests import MANIFESTS, main
from wan_core.checkpoints import MemorySource, build_on_meta, in_format

# sha256 over the sorted lines "name [d0, d1]" of a manifest, its first 16 digits, and the format of its names.
DIGESTS = {
    "dit_wan2.1_i2v_14b": ("129391da486fe9b9", "official"),
    "dit_wan2.1_t2v_1.3b": ("83f3237464a545f0", "official"),
    "dit_wan2.1_t2v_14b": ("7ca52b13faf083dc", "official"),
    "dit_wan2.2_i2v_a14b": ("9dc5a4e7268a050f", "official"),
    "dit_wan2.2_t2v_a14b": ("7ca52b13faf083dc", "official"),
    "dit_wan2.2_ti2v_5b": ("e6aa5b3ad4910537", "official"),
    "diffusers_dit_wan2.1_i2v_14b": ("6f9e922dc3f6045c", "diffusers"),
    "diffusers_dit_wan2.1_t2v_1.3b": ("9d8d318b706fd638", "diffusers"),
    "diffusers_dit_wan2.1_t2v_14b": ("ab252b4e983d6fac", "diffusers"),
    "diffusers_dit_wan2.2_i2v_a14b": ("f94b5ceec79cc138", "diffusers"),
    "diffusers_dit_wan2.2_t2v_a14b": ("ab252b4e983d6fac", "diffusers"),
    "diffusers_dit_wan2.2_ti2v_5b": ("b18313d780176301", "diffusers"),
    "s2v_14b": ("592dbea2c006b487", "official"),
    "wan21_i2v_14b": ("129391da486fe9b9", "official"),
    "wan2.1_vae": ("6d12bd5199d9dcd5", "official"),
    "wan2.1_vae_diffusers": ("6157cf3f708d689b", "diffusers"),
    "wan2.2_vae": ("d6eb318580d7756b", "official"),
    "wan2.2_vae_diffusers": ("cb562a5311e92765", "diffusers"),
    "umt5_xxl_encoder_original": ("d6379851fe159f73", "official"),
    "clip_vit_h14_visual_original": ("9504e81272db4bfe", "official"),
    "clip_vit_h14_visual_transformers": ("dd9acb6c8105dfc0", "diffusers"),
}  # fmt: skip


def digest(shapes: dict[str, tuple[int, ...]]) -> str:
    lines = "\n".join(f"{name} {list(shapes[name])}" for name in sorted(shapes))
    return hashlib.sha256(lines.encode()).hexdigest()[:16]


@pytest.mark.parametrize("name", DIGESTS)
def test_every_real_size_network_has_the_published_tensors(name: str) -> None:
    expected, form = DIGESTS[name]
    network = MANIFESTS[name]
    native = MemorySource(build_on_meta(network.build).state_dict())
    listed = in_format(native, network.family, form)
    assert digest({tensor: listed.info(tensor).shape for tensor in listed}) == expected


def test_a_difference_is_named_and_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "wan2.1_vae.json").write_text('{"tensors": {"conv1.weight": [1], "odd.weight": [2]}}')
    (tmp_path / "unheard_of.json").write_text('{"tensors": {"x": [1]}}')
    assert main([str(tmp_path)]) == 1
    printed = capsys.readouterr().out
    assert "UNKNOWN unheard_of" in printed
    assert "FAIL    wan2.1_vae" in printed
    assert "the network lacks odd.weight" in printed
    assert "0 passed, 1 failed, 1 unknown" in printed


def test_a_folder_without_manifests_fails(tmp_path: Path) -> None:
    assert main([str(tmp_path)]) == 1
