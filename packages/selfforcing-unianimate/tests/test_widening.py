"""A widened network is the one it was made of, until its new weights have learned."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from selfforcing_unianimate import CAUSAL_DIT, CausalDiTConfig
from selfforcing_unianimate.causal_dit import CausalDiT, CausalInputs
from selfforcing_unianimate.frame_blocks import FrameBlocks
from selfforcing_unianimate.memory import CausalMemory
from selfforcing_unianimate.widening import widened
from wan_core import ConfigError
from wan_core.checkpoints import MemorySource, load_model, read_weights, write_file

CONFIG = CausalDiTConfig(
    in_dim=4, out_dim=4, dim=24, ffn_dim=32, num_heads=2, num_layers=2, freq_dim=16, text_dim=8, text_len=4, pose_dim=10
)
CHANNELS, IMAGE = 8, 6


@pytest.fixture
def network() -> CausalDiT:
    torch.manual_seed(0)
    return CausalDiT(CONFIG).double().eval()


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


LATENTS, TIMES = drawn(1, 4, 4, 4, 4), drawn(1, 4).abs() * 500
PLAIN = CausalInputs(context=drawn(1, 3, 8), add_condition=drawn(1, 4, 4, 10), blocks=FrameBlocks(size=2))
PICTURED = replace(PLAIN, channel_concat=drawn(1, CHANNELS, 4, 4, 4))


@pytest.mark.parametrize("image_dim", [None, IMAGE])
def test_the_widened_network_is_the_text_only_one(network: CausalDiT, image_dim: int | None) -> None:
    wide = widened(network, CHANNELS, image_dim)
    inputs = PICTURED if image_dim is None else replace(PICTURED, image_context=drawn(1, 257, IMAGE))
    assert (wide.config.in_dim, wide.config.image_dim) == (12, image_dim)
    with torch.no_grad():
        expected = network(LATENTS, TIMES, PLAIN)
        torch.testing.assert_close(wide(LATENTS, TIMES, inputs), expected, rtol=1e-13, atol=1e-13)
        remembering = replace(inputs.with_cache(), memory=CausalMemory(inputs.blocks, 4))
        for start, stop in inputs.blocks.spans(4):
            block = wide(LATENTS[:, :, start:stop], TIMES[:, start:stop], remembering.frames(start, stop))
            torch.testing.assert_close(block, expected[:, :, start:stop], rtol=1e-5, atol=1e-5)


def test_all_that_is_new_learns_and_the_rest_is_shared(network: CausalDiT) -> None:
    wide = widened(network, CHANNELS, IMAGE)
    assert wide.blocks[0].ffn[0].weight is network.blocks[0].ffn[0].weight
    torch.nn.init.normal_(wide.head.head.weight)
    wide(LATENTS, TIMES, replace(PICTURED, image_context=drawn(1, 257, IMAGE))).square().sum().backward()
    gradient = wide.patch_embedding.weight.grad
    assert gradient is not None
    assert gradient[:, 4:].abs().amax(dim=(0, 2, 3, 4)).min() > 0
    assert all(block.cross_attn.v_img.weight.grad.abs().sum() > 0 for block in wide.blocks)


def test_a_widened_network_is_written_and_read_as_any_other(network: CausalDiT, tmp_path: Path) -> None:
    wide = widened(network.float(), CHANNELS, IMAGE)
    write_file(MemorySource(wide.state_dict()), tmp_path / "wide.safetensors")
    source = read_weights(tmp_path / "wide.safetensors")
    config = replace(CONFIG, in_dim=12, image_dim=IMAGE)
    read = load_model(config, source, family=CAUSAL_DIT)
    assert read.state_dict().keys() == wide.state_dict().keys()
    assert all(torch.equal(tensor, wide.state_dict()[name]) for name, tensor in read.state_dict().items())


def test_seeds_draw_the_embedding_and_nothing_else(network: CausalDiT) -> None:
    state = torch.random.get_rng_state()
    one, same, other = (widened(network, CHANNELS, IMAGE, seed=seed).img_emb.proj[1].weight for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert torch.equal(state, torch.random.get_rng_state())


def test_what_is_wide_already_is_refused(network: CausalDiT) -> None:
    with pytest.raises(ConfigError, match="by 1 channel or more, got 0"):
        widened(network, 0)
    with pytest.raises(ConfigError, match="with image branch"):
        widened(widened(network, CHANNELS, IMAGE), CHANNELS)
