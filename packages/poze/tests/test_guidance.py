"""Adapter, guidance, fusion: shapes, silence before training, files, and what the network sees."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pi3 import DinoConfig, Pi3, Pi3Config, Pi3Latents
from pi3.checkpoints import build
from poze import TINY_POZE, GuidedImageToVideo, Pi3FeatureAdapter, guidance_tokens, load_adapter, save_adapter
from poze.guidance import check_adapter, image_views, is_silent, look
from poze.outputs import Findings, write_findings
from poze.task import guide
from tests.crash_points import crash_everywhere
from wan_core import CheckpointError, ConfigError
from wan_core.models import DiTInputs
from wan_core.sampling import Anchors
from wan_core.tasks import Conditioning

CONFIG = Pi3Config(
    encoder=DinoConfig(image_size=56, dim=32, num_layers=1, num_heads=2),
    decoder_layers=2, decoder_heads=2, head_dim=32, head_heads=2, head_layers=1, camera_dim=16, pixel_limit=5000,
)  # fmt: skip


@pytest.fixture(scope="module")
def pi3() -> Pi3:
    torch.manual_seed(0)
    return build(CONFIG).eval()


@pytest.fixture(scope="module")
def latents(pi3: Pi3) -> Pi3Latents:
    return look(pi3, torch.rand(1, 2, 3, 28, 42, generator=torch.Generator().manual_seed(1)))[0]


def trained(in_dim: int = 64, out_dim: int = 12, tokens: int = 6, **more: Any) -> Pi3FeatureAdapter:
    """An adapter whose last layer is not zero."""
    adapter = Pi3FeatureAdapter(in_dim, out_dim, tokens, **more)
    torch.manual_seed(2)
    torch.nn.init.normal_(adapter.proj[3].weight)
    return adapter


@settings(max_examples=60, deadline=None)
@given(tokens=st.integers(1, 300), rows=st.integers(1, 9), columns=st.integers(1, 9), surplus=st.integers(0, 3))
def test_the_true_number_of_tokens_is_the_grid_below_the_target(
    tokens: int, rows: int, columns: int, surplus: int
) -> None:
    adapter = Pi3FeatureAdapter(4, 6, tokens)
    assert 1 <= adapter.num_tokens <= tokens
    assert adapter.num_tokens > tokens - max(1, int(tokens**0.5))
    assert adapter(torch.randn(2, rows * columns + surplus, 4), (rows, columns)).shape == (2, adapter.num_tokens, 6)


def test_surplus_tokens_are_dropped_and_the_mean_is_over_views(latents: Pi3Latents) -> None:
    adapter = trained()
    patches = latents.hidden[:, 5:].unflatten(0, (1, 2)).mean(1)
    expected = adapter(patches, latents.grid)
    torch.testing.assert_close(guidance_tokens(adapter, latents), expected)
    torch.testing.assert_close(adapter(torch.cat([patches, patches], 1), latents.grid), expected)


def test_an_untrained_adapter_is_silent_and_gradients_wake_it(latents: Pi3Latents) -> None:
    adapter = Pi3FeatureAdapter(64, 12)
    assert is_silent(adapter)
    assert not guidance_tokens(adapter, latents).any()
    guidance_tokens(adapter, latents).sum().backward()
    assert adapter.proj[3].bias.grad is not None
    assert not is_silent(trained())


@pytest.mark.parametrize("space", ["dit", "text"])
def test_an_adapter_comes_back_from_its_file(space: str, tmp_path: Path, latents: Pi3Latents) -> None:
    adapter = trained(tokens=10, context_space=space)
    found = load_adapter(save_adapter(adapter, tmp_path / "a.safetensors", {"recipe": "none"}))
    assert (found.target_tokens, found.num_tokens, found.context_space) == (10, 9, space)
    assert torch.equal(guidance_tokens(found, latents), guidance_tokens(adapter, latents))


def test_files_that_are_no_adapters_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(2)}, tmp_path / "other.safetensors")
    save_file({"proj.1.weight": torch.zeros(3, 2)}, tmp_path / "part.safetensors")
    for name in ("other", "part"):
        with pytest.raises(CheckpointError, match=f"{name}.safetensors is no adapter"):
            load_adapter(tmp_path / f"{name}.safetensors")


def test_an_adapter_of_another_pi3_or_another_count_is_refused() -> None:
    check_adapter(trained(), 64, None)
    with pytest.raises(ConfigError, match="width 32, this Pi3 gives 64"):
        check_adapter(trained(in_dim=32), 64)
    with pytest.raises(ConfigError, match="--adapter-tokens 6, got 7"):
        check_adapter(trained(), 64, 7)


@pytest.mark.parametrize("size", [(64, 64), (101, 37), (9, 300)])
def test_any_picture_fits_pi3(size: tuple[int, int], pi3: Pi3) -> None:
    views = image_views(Image.new("RGB", size, (200, 10, 30)), pi3)
    assert views.shape[:3] == (1, 1, 3)
    assert views.shape[3] % 14 == views.shape[4] % 14 == 0
    assert look(pi3, views)[1].points.shape == (1, 1, *views.shape[3:], 3)


def conditioning(channels: int = 24, frames: int = 3) -> Conditioning:
    first = torch.randn(1, channels, 1, 4, 6, generator=torch.Generator().manual_seed(3))
    return Conditioning(
        positive=DiTInputs(context=torch.randn(1, 5, 16)),
        negative=DiTInputs(context=torch.zeros(1, 2, 16)),
        latent_shape=(1, channels, frames, 4, 6),
        anchors=Anchors.leading(first, frames),
    )


def test_tokens_join_both_branches_or_one() -> None:
    tokens, base = torch.randn(1, 4, 12), conditioning()
    both = guide(base, tokens)
    assert both.negative is not None
    assert both.positive.extra_context is tokens
    assert both.negative.extra_context is tokens
    one = guide(base, tokens, drop_in_negative=True)
    assert one.negative is not None
    assert one.negative.extra_context is None


def test_tokens_in_the_text_space_are_rows_of_text() -> None:
    tokens, base = torch.randn(1, 4, 16), conditioning()
    joined = guide(base, tokens, space="text")
    assert joined.positive.extra_context is None
    assert torch.equal(joined.positive.context, torch.cat([base.positive.context, tokens], 1))


def test_equal_seeds_make_equal_adapters_and_leave_the_generator_alone() -> None:
    state = torch.get_rng_state()
    first, second = (Pi3FeatureAdapter(8, 4, seed=5, zero_last=False) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not is_silent(first)
    assert not torch.equal(first.proj[1].weight, Pi3FeatureAdapter(8, 4, seed=6).proj[1].weight)


def test_tokens_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"takes \[B, 6, 8\] for 2 x 3"):
        Pi3FeatureAdapter(8, 4)(torch.randn(1, 5, 8), (2, 3))
    with pytest.raises(ConfigError, match="got"):
        Pi3FeatureAdapter(8, 4)(torch.randn(1, 6, 9), (2, 3))


def test_findings_name_the_latents_as_the_reference_does(pi3: Pi3) -> None:
    views = torch.rand(1, 1, 3, 28, 42)
    seen, output = look(pi3, views)
    found = Findings(views=views, latents=seen, output=output)
    tensors = found.latent_tensors()
    assert tensors["decoder_hidden"].shape == (1, 5 + 6, 64)
    assert tensors["pos"].dtype == torch.int64
    assert tensors["hw"].tolist() == [28, 42]
    arrays = found.arrays()
    assert arrays["depth"].shape == (1, 28, 42)
    assert arrays["rgb"].shape == (1, 28, 42, 3)


def test_what_pi3_saw_is_the_old_or_the_new_at_every_crash_point(pi3: Pi3, tmp_path: Path) -> None:
    found = []
    for level in (0.2, 0.8):
        views = torch.full((1, 2, 3, 28, 42), level)
        seen, output = look(pi3, views)
        found.append(Findings(views=views, latents=seen, output=output))

    def prepare(folder: Path) -> None:
        write_findings(found[0], folder / "seen", "a")
        (folder / "seen/a_0007.ply").write_bytes(b"of more views")

    assert crash_everywhere(tmp_path, prepare, lambda folder: write_findings(found[1], folder / "seen", "a")) >= 6
    assert not (tmp_path / "whole/seen/a_0007.ply").exists()


def test_the_task_says_when_nothing_guides(tmp_path: Path) -> None:
    from poze import PozeRequest

    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    untrained = replace(TINY_POZE, task=GuidedImageToVideo())
    request = PozeRequest(prompt="p", image=tmp_path / "a.png")
    assert "no trained adapter" in untrained.plan(request).notes[-1]
    save_adapter(trained(in_dim=192), tmp_path / "a.safetensors")
    told = replace(request, adapter=tmp_path / "a.safetensors")
    assert untrained.plan(told).notes == ()
