"""What variants and the runtime hang on: extra tokens, segments, memories, masks, layouts, the rotary tables."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from wan_core.models import DiTInputs, InnerAttention, WanDiT, WanDiTConfig
from wan_core.models.dit.layout import TokenLayout, TokenSequence
from wan_core.models.dit.model import TimeRows
from wan_core.models.dit.rope import rotary_positions, rotary_table, rotate

from .dit_networks import BOTH, CONFIG, IMAGE, conditions, latents, network, noise

TIME = torch.tensor([640.0])


def velocity(model: WanDiT, noisy: Tensor, timesteps: Tensor, inputs: DiTInputs) -> Tensor:
    with torch.no_grad():
        return model(noisy, timesteps, inputs)


def assert_close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-5)


# -- tokens in front and behind, segments ------------------------------------------------------------------------------


class TailDiT(WanDiT):
    """Five clean tokens behind the noisy ones, at negative frames and timestep 0 (as in sound to video)."""

    tail_timestep = 0.0
    hidden_tail = False

    def embed_latents(self, latents: Tensor, inputs: DiTInputs, start: Any = (0, 0, 0)) -> TokenSequence:
        base = super().embed_latents(latents, inputs, start)
        batch = latents.shape[0]
        tail = rotary_positions(self.config.head_dim, (-3,), (0,), (0, 2, 4, 6, 8))
        return replace(
            base,
            tokens=torch.cat([base.tokens, noise(1, 5, self.config.dim).expand(batch, -1, -1)], dim=1),
            rope=torch.cat([base.rope, tail]),
            key_lengths=torch.full((batch,), base.length) if self.hidden_tail else None,
        )

    def embed_timesteps(self, timesteps: Tensor, sequence: TokenSequence, inputs: DiTInputs) -> TimeRows:
        clean = torch.full_like(timesteps, self.tail_timestep)
        return self.time_rows(torch.stack([timesteps, clean], dim=1), (sequence.stop, sequence.length - sequence.stop))


@BOTH
def test_tokens_that_nobody_attends_to_change_nothing(built: Callable[..., WanDiT]) -> None:
    base, tail = built(), built(kind=TailDiT)
    tail.hidden_tail = True
    inputs = conditions(batch=2)
    timesteps = torch.tensor([640.0, 3.0])
    ours = velocity(tail, latents(2), timesteps, inputs)
    assert_close(ours, velocity(base, latents(2), timesteps, inputs))


@BOTH
def test_segments_of_uneven_length_have_their_own_timestep(built: Callable[..., WanDiT]) -> None:
    model, inputs = built(kind=TailDiT), conditions()
    clean = velocity(model, latents(), TIME, inputs)
    model.tail_timestep = 640.0
    same = velocity(model, latents(), TIME, inputs)
    assert not torch.allclose(clean, same, atol=1e-3)
    model.embed_timesteps = lambda timesteps, sequence, inputs: model.time_rows(timesteps[:, None], (sequence.length,))
    assert_close(same, velocity(model, latents(), TIME, inputs))


class FrontDiT(WanDiT):
    """One zero frame in front of the video, cut off the velocity again (as for reference pictures)."""

    def embed_latents(self, latents: Tensor, inputs: DiTInputs, start: Any = (0, 0, 0)) -> TokenSequence:
        base = super().embed_latents(functional.pad(latents, (0, 0, 0, 0, 1, 0)), inputs, start)
        frames, rows, columns = base.grid
        return replace(base, grid=(frames - 1, rows, columns), start=rows * columns)


def test_frames_in_front_are_cut_off_the_velocity() -> None:
    front, base = network(kind=FrontDiT), network()
    inputs = conditions(frames=4)
    padded = functional.pad(latents(), (0, 0, 0, 0, 1, 0))
    assert_close(velocity(front, latents(), TIME, inputs), velocity(base, padded, TIME, inputs)[:, :, 1:])


def test_after_block_sees_every_block_in_order_and_may_change_the_tokens() -> None:
    seen = []

    class Adapted(WanDiT):
        def after_block(self, index: int, tokens: Tensor, sequence: TokenSequence, inputs: DiTInputs) -> Tensor:
            seen.append((index, tokens.shape[1] == sequence.length))
            return tokens + 1.0 if index == 0 else tokens

    adapted = velocity(network(kind=Adapted), latents(), TIME, conditions())
    assert seen == [(0, True), (1, True)]
    assert not torch.allclose(adapted, velocity(network(), latents(), TIME, conditions()))


# -- memories, offsets, masks ------------------------------------------------------------------------------------------


@dataclass
class Memory:
    """Everything so far; functional, so that gradients are right."""

    keys: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)

    def extend(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        self.keys.append(key)
        self.values.append(value)
        return torch.cat(self.keys, dim=1), torch.cat(self.values, dim=1)


class CausalDiT(WanDiT):
    """Chunks of frames that attend to what came before, or all frames under the mask that says the same."""

    first_frame = 0
    memories: Sequence[Memory] | None = None

    def embed_latents(self, latents: Tensor, inputs: DiTInputs, start: Any = (0, 0, 0)) -> TokenSequence:
        base = super().embed_latents(latents, inputs, (self.first_frame, 0, 0))
        if self.memories is not None:
            return replace(base, memories=self.memories)
        frame = torch.arange(base.length) // (base.grid[1] * base.grid[2])
        return replace(base, mask=frame[:, None] >= frame)


@BOTH
def test_frame_by_frame_with_a_memory_equals_all_frames_under_a_causal_mask(built: Callable[..., WanDiT]) -> None:
    model, inputs, noisy = built(kind=CausalDiT), conditions(), latents()
    timesteps = torch.tensor([[900.0, 30.0, 500.0]])
    whole = velocity(model, noisy, timesteps, inputs)
    model.memories = [Memory() for _ in model.blocks]
    frames = []
    for index in range(3):
        model.first_frame = index
        cut = slice(index, index + 1)
        part = inputs.frames(index, index + 1)
        frames.append(velocity(model, noisy[:, :, cut], timesteps[:, cut], part))
    assert_close(whole, torch.cat(frames, dim=2))


def test_masked_keys_are_as_if_they_were_not_there() -> None:
    attention = InnerAttention()
    query, key, value = (noise(2, 5, 3, 4, seed=seed) for seed in range(3))
    out = attention(query, key, value, torch.tensor([5, 2]))
    assert_close(out[:1], attention(query[:1], key[:1], value[:1]))
    assert_close(out[1:], attention(query[1:], key[1:, :2], value[1:, :2]))
    both = attention(query, key, value, torch.tensor([4, 4]), (torch.arange(5) > 0).expand(5, 5))
    assert_close(both, attention(query, key[:, 1:4], value[:, 1:4]))


# -- layouts -----------------------------------------------------------------------------------------------------------


class PaddedLayout(TokenLayout):
    """What a sequence split over processes does to uneven lengths: padding behind, masked as keys, cut off again."""

    padding = 3

    def shard(self, tokens: Tensor, axis: int = 1) -> Tensor:
        return torch.cat([tokens, torch.ones_like(tokens.narrow(axis, 0, self.padding))], dim=axis)

    def gather(self, tokens: Tensor, length: int, axis: int = 1) -> Tensor:
        return tokens.narrow(axis, 0, length)

    def segments(self, lengths: tuple[int, ...]) -> tuple[int, ...]:
        return (*lengths[:-1], lengths[-1] + self.padding)

    def key_lengths(self, lengths: Tensor | None, tokens: Tensor) -> Tensor | None:
        return torch.full((tokens.shape[0],), tokens.shape[1])


@BOTH
@pytest.mark.parametrize("timesteps", [TIME.expand(2), torch.tensor([[0.0, 9.0, 9.0], [7.0, 7.0, 8.0]])])
def test_the_amount_of_padding_does_not_matter(timesteps: Tensor, built: Callable[..., WanDiT]) -> None:
    model, inputs = built(), conditions(batch=2)
    plain = velocity(model, latents(2), timesteps, inputs)
    for padding in (1, 3):
        model.layout = PaddedLayout()
        model.layout.padding = padding
        assert_close(velocity(model, latents(2), timesteps, inputs), plain)


# -- rotary tables -----------------------------------------------------------------------------------------------------


def test_a_start_is_a_cut_of_the_larger_grid() -> None:
    whole = rotary_table(12, (5, 3, 4)).view(5, 3, 4, 6, 2)
    assert torch.equal(rotary_table(12, (2, 3, 4), (3, 0, 0)), whole[3:].flatten(0, 2))
    assert torch.equal(rotary_table(12, (5, 2, 2), (0, 1, 2)), whole[:, 1:, 2:].flatten(0, 2))


def test_negative_positions_turn_the_other_way() -> None:
    ahead, behind = rotary_positions(8, (3,), (0,), (2,)), rotary_positions(8, (-3,), (0,), (-2,))
    assert torch.equal(ahead * torch.tensor([1.0, -1.0]), behind)


def test_sides_beyond_a_thousand_stay_exact() -> None:
    table = rotary_table(12, (1, 1, 1500))[-1].double()
    angle = torch.tensor(1499.0, dtype=torch.float64)  # the first pair of the columns turns by one radian per position
    assert (table[-2] - torch.stack([angle.cos(), angle.sin()])).abs().max() < 1e-7


@pytest.mark.parametrize("head_dim", [2, 4, 6, 10, 16, 20, 128])
def test_rotation_keeps_lengths_and_leaves_later_tokens_alone(head_dim: int) -> None:
    heads = noise(2, 14, 3, head_dim)
    turned = rotate(heads, rotary_table(head_dim, (2, 2, 3)))
    assert_close(turned.norm(dim=-1), heads.norm(dim=-1))
    assert torch.equal(turned[:, 12:], heads[:, 12:])
    assert torch.equal(turned[:, 0], heads[:, 0])


def test_a_table_made_in_inference_mode_serves_a_training_step() -> None:
    size = (1, 3, 1, 14, 2)
    model = network().requires_grad_(True)
    with torch.inference_mode():
        model(noise(*size), TIME, DiTInputs(context=noise(1, 2, 6)))
    model(noise(*size), TIME, DiTInputs(context=noise(1, 2, 6))).sum().backward()


def test_a_traced_or_meta_forward_leaves_no_table_behind() -> None:
    size = (1, 3, 1, 18, 2)
    with torch.device("meta"):
        meta = WanDiT(CONFIG)
        assert meta(torch.empty(size), torch.empty(1), DiTInputs(context=torch.empty(1, 2, 6))).shape == size
    with FakeTensorMode():
        fake = WanDiT(CONFIG)
        fake(torch.empty(size), torch.empty(1), DiTInputs(context=torch.empty(1, 2, 6)))
    out = velocity(network(), noise(*size), TIME, DiTInputs(context=noise(1, 2, 6)))
    assert type(out) is Tensor
    assert out.isfinite().all()


# -- compilers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "timesteps", "gradients"),
    [(CONFIG, TIME, False), (CONFIG, TIME, True), (IMAGE, torch.tensor([[0.0, 9.0, 9.0]]), True)],
    ids=["inference", "training", "image-per-frame"],
)
@pytest.mark.slow
def test_a_network_is_traced_in_one_piece(config: WanDiTConfig, timesteps: Tensor, gradients: bool) -> None:
    model, inputs = network(config).requires_grad_(gradients), conditions(config)
    compiled = torch.compile(network(config).requires_grad_(gradients), backend="aot_eager", fullgraph=True)
    with torch.set_grad_enabled(gradients):
        traced = compiled(latents(), timesteps, inputs)
        assert traced.requires_grad == gradients
        assert_close(traced, model(latents(), timesteps, inputs))
    torch.compiler.reset()


def test_a_network_is_one_graph_without_breaks() -> None:
    explained = torch._dynamo.explain(network())(latents(), TIME, conditions())
    assert (explained.graph_count, explained.graph_break_count) == (1, 0)
    torch.compiler.reset()


def test_no_complex_number_is_in_a_network() -> None:
    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            assert not any(isinstance(leaf, Tensor) and leaf.is_complex() for leaf in tree_leaves(out))
            return out

    with Watch():
        network()(noise(1, 3, 1, 26, 2), TIME, DiTInputs(context=noise(1, 2, 6)))


def test_a_part_of_a_batch_without_added_conditions_gets_none() -> None:
    model = network()
    posed = conditions()
    bare = replace(posed, add_condition=None)
    timesteps = torch.tensor([500.0, 500.0])
    both = model(latents(2), timesteps, DiTInputs.batch([posed, bare]))
    assert torch.allclose(both[:1], model(latents(2)[:1], timesteps[:1], posed), atol=1e-5)
    assert torch.allclose(both[1:], model(latents(2)[1:], timesteps[:1], bare), atol=1e-5)
