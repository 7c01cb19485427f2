"""The causal transformer: one masked forward is the same as block after block through a memory."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from selfforcing_unianimate import CAUSAL_DIT, CausalDiTConfig
from selfforcing_unianimate.causal_dit import CausalDiT, CausalInputs
from selfforcing_unianimate.frame_blocks import FrameBlocks
from selfforcing_unianimate.memory import CausalMemory
from wan_core import CheckpointError, ConfigError, RequestError
from wan_core.checkpoints import MemorySource, load_model, native_weights

FRAMES = 7
CONFIG = CausalDiTConfig(
    in_dim=4, out_dim=4, dim=24, ffn_dim=32, num_heads=2, num_layers=2, freq_dim=16, text_dim=8, text_len=4, pose_dim=10
)


@pytest.fixture(scope="module")
def network() -> CausalDiT:
    torch.manual_seed(0)
    made = CausalDiT(CONFIG).eval().requires_grad_(False)
    torch.nn.init.normal_(made.pose_proj.weight, std=0.3)
    return made


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


LATENTS, CLEAN, TIMES = drawn(1, 4, FRAMES, 4, 4), drawn(1, 4, FRAMES, 4, 4) * 0.5, drawn(1, FRAMES).abs() * 500
CONDITIONS = CausalInputs(context=drawn(1, 3, 8), add_condition=drawn(1, FRAMES, 4, 10))

LAYOUTS = [
    FrameBlocks(size=1),
    FrameBlocks(size=2),
    FrameBlocks(size=3),
    FrameBlocks(size=3, first_alone=True),
    FrameBlocks(size=2, first_alone=True),
    FrameBlocks(size=1, window=3),
    FrameBlocks(size=2, window=5),
    FrameBlocks(size=3, window=4),
    FrameBlocks(size=2, first_alone=True, window=3),
    FrameBlocks(size=1, window=3, sink=1),
    FrameBlocks(size=2, window=5, sink=2),
    FrameBlocks(size=10),
]


def through_memory(network: CausalDiT, inputs: CausalInputs, *, forced: bool = False) -> Tensor:
    """Block after block; ``forced``: the clean frames, at timestep 5, take the place of each."""
    inputs = replace(inputs.with_cache(), memory=CausalMemory(inputs.blocks, FRAMES))
    parts = []
    for start, stop in inputs.blocks.spans(FRAMES):
        block = inputs.frames(start, stop)
        parts.append(network(LATENTS[:, :, start:stop], TIMES[:, start:stop], block))
        if forced:
            network(CLEAN[:, :, start:stop], torch.tensor([5.0]), block)
    return torch.cat(parts, dim=2)


@pytest.mark.parametrize("blocks", LAYOUTS, ids=str)
def test_level_1_wiring_the_rollout_with_poses_is_the_masked_forward(network: CausalDiT, blocks: FrameBlocks) -> None:
    inputs = replace(CONDITIONS, blocks=blocks)
    torch.testing.assert_close(through_memory(network, inputs), network(LATENTS, TIMES, inputs), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("blocks", LAYOUTS, ids=str)
def test_level_1_6_train_path_teacher_forcing_is_the_rollout_over_clean_frames(
    network: CausalDiT, blocks: FrameBlocks
) -> None:
    inputs = replace(CONDITIONS, blocks=blocks)
    forced = replace(inputs, clean_latents=CLEAN, clean_timesteps=torch.full((1, FRAMES), 5.0))
    expected = through_memory(network, inputs, forced=True)
    torch.testing.assert_close(network(LATENTS, TIMES, forced), expected, rtol=1e-4, atol=1e-4)


def test_a_block_does_not_see_what_comes_later(network: CausalDiT) -> None:
    inputs = replace(CONDITIONS, blocks=FrameBlocks(size=2))
    later = LATENTS.clone()
    later[:, :, 4:] += 1
    before, after = network(LATENTS, TIMES, inputs), network(later, TIMES, inputs)
    assert torch.allclose(before[:, :, :4], after[:, :, :4], atol=1e-5)
    assert not torch.allclose(before[:, :, 4:], after[:, :, 4:], atol=1e-2)


def test_memory_is_allocated_once_and_its_bytes_are_known_before(network: CausalDiT) -> None:
    blocks = FrameBlocks(size=2, window=4)
    memory = CausalMemory(blocks, FRAMES)
    inputs = replace(CONDITIONS, blocks=blocks, memory=memory)
    network(LATENTS[:, :, :2], TIMES[:, :2], inputs.frames(0, 2))
    keys = [layer.key for layer in memory.layers]
    assert memory.nbytes == blocks.memory_bytes(CONFIG, FRAMES, tokens=4, itemsize=4)
    for start in (2, 4):
        network(LATENTS[:, :, start : start + 2], TIMES[:, start : start + 2], inputs.frames(start, start + 2))
    assert all(layer.key is key for layer, key in zip(memory.layers, keys, strict=True))


def test_with_gradients_the_past_is_a_constant_and_nothing_is_written(network: CausalDiT) -> None:
    memory = CausalMemory(FrameBlocks(size=2), FRAMES)
    inputs = replace(CONDITIONS, blocks=memory.blocks, memory=memory)
    network(LATENTS[:, :, :2], TIMES[:, :2], inputs.frames(0, 2))
    before = memory.layers[0].key.clone()  # type: ignore[union-attr]
    latents = LATENTS[:, :, 2:4].clone().requires_grad_()
    expected = network(LATENTS[:, :, 2:4], TIMES[:, 2:4], inputs.frames(2, 4))
    stored = memory.layers[0].key.clone()  # type: ignore[union-attr]
    velocity = network(latents, TIMES[:, 2:4], inputs.frames(2, 4))
    velocity.sum().backward()
    assert latents.grad is not None
    assert latents.grad.abs().sum() > 0
    torch.testing.assert_close(velocity.detach(), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(memory.layers[0].key, stored)
    assert not torch.equal(before, stored)


@pytest.mark.parametrize(
    ("start", "frames", "tokens", "said"),
    [(4, 2, 4, "leaves a gap"), (2, 6, 4, "do not fit into a memory of 7"), (2, 2, 5, "frames of 4 tokens")],
)
def test_frames_that_have_no_place_are_refused(start: int, frames: int, tokens: int, said: str) -> None:
    memory = CausalMemory(FrameBlocks(size=2), FRAMES)
    memory.place(0, 2, 4, 1)
    with pytest.raises(RequestError, match=said):
        memory.place(start, frames, tokens, 1)


def test_forgotten_frames_are_not_run_again() -> None:
    memory = CausalMemory(FrameBlocks(size=2, window=4), FRAMES)
    for start in (0, 2, 4, 4):
        memory.place(start, 2, 4, 1)
    with pytest.raises(RequestError, match="partly forgotten"):
        memory.place(2, 2, 4, 1)
    assert memory.kept_frames == [4, 5, 2, 3]


def test_another_batch_needs_another_memory(network: CausalDiT) -> None:
    inputs = replace(CONDITIONS, blocks=FrameBlocks(size=2), memory=CausalMemory(FrameBlocks(size=2), FRAMES))
    network(LATENTS[:, :, :2], TIMES[:, :2], inputs.frames(0, 2))
    twice = replace(CONDITIONS, context=CONDITIONS.context.repeat(2, 1, 1), add_condition=None, memory=inputs.memory)
    with pytest.raises(RequestError, match="a batch of 1"):
        network(LATENTS[:, :, 2:4].repeat(2, 1, 1, 1, 1), TIMES[:, 2:4].repeat(2, 1), replace(twice, start=2))


@pytest.mark.parametrize(
    "options", [{"size": 0}, {"sink": 1}, {"size": 3, "window": 2}, {"size": 2, "window": 3, "sink": 2}]
)
def test_layouts_without_room_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(ConfigError):
        FrameBlocks(**options)  # type: ignore[arg-type]


def test_pose_tokens_of_another_width_or_number_are_refused(network: CausalDiT) -> None:
    with pytest.raises(RequestError, match="of width 10 here, got 9"):
        network(LATENTS, TIMES, replace(CONDITIONS, add_condition=drawn(1, FRAMES, 4, 9)))
    with pytest.raises(RequestError, match="add_condition must be"):
        network(LATENTS, TIMES, replace(CONDITIONS, add_condition=drawn(1, FRAMES, 5, 10)))


def test_a_file_without_pose_projection_gives_a_network_that_ignores_poses(network: CausalDiT) -> None:
    weights = {name: tensor for name, tensor in network.state_dict().items() if not name.startswith("pose_proj")}
    trainer = {f"generator_ema.model._fsdp_wrapped_module.{name}": tensor for name, tensor in weights.items()}
    trainer |= {f"generator.model.{name}": torch.zeros_like(tensor) for name, tensor in weights.items()}
    source = MemorySource(trainer)
    assert any("pose_proj.weight" in note for note in native_weights(source, CAUSAL_DIT).notes)
    plain = load_model(CONFIG, source, family=CAUSAL_DIT)
    with torch.no_grad():
        assert torch.equal(
            plain(LATENTS, TIMES, CONDITIONS), plain(LATENTS, TIMES, replace(CONDITIONS, add_condition=None))
        )
    assert torch.equal(plain.blocks[0].ffn[0].weight, network.blocks[0].ffn[0].weight)


def test_half_a_pose_projection_is_refused(network: CausalDiT) -> None:
    weights = {name: tensor for name, tensor in network.state_dict().items() if name != "pose_proj.bias"}
    with pytest.raises(CheckpointError, match=r"1 missing: pose_proj\.bias"):
        load_model(CONFIG, MemorySource(weights), family=CAUSAL_DIT)
