"""UMT5: shapes, weights, masks, precision, and transformers' encoder as a live peer."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from wan_core.errors import CheckpointError, ConfigError
from wan_core.models import UMT5_XXL, TextEncoder, UMT5Config, UMT5Encoder
from wan_core.models.text.tokenizer import Tokenizer
from wan_core.models.text.umt5 import relative_position_bucket

from .networks import build

TINY = UMT5Config(vocab_size=40, dim=16, dim_attn=24, dim_ffn=20, num_heads=3, num_layers=2)

# The published file: what every one of its 24 blocks holds.
XXL_BLOCK = {
    "norm1.weight": (4096,),
    "attn.q.weight": (4096, 4096),
    "attn.k.weight": (4096, 4096),
    "attn.v.weight": (4096, 4096),
    "attn.o.weight": (4096, 4096),
    "norm2.weight": (4096,),
    "ffn.gate.0.weight": (10240, 4096),
    "ffn.fc1.weight": (10240, 4096),
    "ffn.fc2.weight": (4096, 10240),
    "pos_embedding.embedding.weight": (32, 64),
}
# Transformers' name of each of our modules inside a block (UMT5EncoderModel and T5EncoderModel).
PEER_BLOCK_NAMES = {
    "norm1": "layer.0.layer_norm",
    "attn": "layer.0.SelfAttention",
    "pos_embedding.embedding": "layer.0.SelfAttention.relative_attention_bias",
    "norm2": "layer.1.layer_norm",
    "ffn.gate.0": "layer.1.DenseReluDense.wi_0",
    "ffn.fc1": "layer.1.DenseReluDense.wi_1",
    "ffn.fc2": "layer.1.DenseReluDense.wo",
}


def make_encoder(config: UMT5Config = TINY, seed: int = 0) -> UMT5Encoder:
    torch.manual_seed(seed)
    model = build(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


def make_batch(lengths: list[int], vocab_size: int = TINY.vocab_size) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return torch.randint(1, vocab_size, mask.shape, generator=generator) * mask, mask


def word_tokenizer(vocab_size: int = TINY.vocab_size) -> Tokenizer:
    return Tokenizer(lambda text: [int(word) for word in text.split()], end_id=1, vocab_size=vocab_size)


def peer_name(name: str) -> str:
    if name == "token_embedding.weight":
        return "shared.weight"
    if name == "norm.weight":
        return "encoder.final_layer_norm.weight"
    if name == "pos_embedding.embedding.weight":
        return "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    _, index, inner = name.split(".", 2)
    ours = next(module for module in PEER_BLOCK_NAMES if inner.startswith(f"{module}."))
    return f"encoder.block.{index}.{PEER_BLOCK_NAMES[ours]}{inner.removeprefix(ours)}"


def peer_states(model: UMT5Encoder, ids: Tensor, mask: Tensor) -> Tensor:
    import transformers

    config = model.config
    options = {
        "vocab_size": config.vocab_size,
        "d_model": config.dim,
        "d_kv": config.dim_attn // config.num_heads,
        "d_ff": config.dim_ffn,
        "num_layers": config.num_layers,
        "num_heads": config.num_heads,
        "relative_attention_num_buckets": config.num_buckets,
        "relative_attention_max_distance": config.max_distance,
        "feed_forward_proj": "gated-gelu",
        "layer_norm_epsilon": config.eps,
    }
    if config.shared_position_bias:
        peer = transformers.T5EncoderModel(transformers.T5Config(**options))
    else:
        peer = transformers.UMT5EncoderModel(transformers.UMT5Config(**options))
    state = {peer_name(name): tensor for name, tensor in model.state_dict().items()}
    missing, unexpected = peer.load_state_dict(state, strict=False)
    assert not unexpected
    assert set(missing) <= {"encoder.embed_tokens.weight"}
    with torch.no_grad():
        return peer.eval()(input_ids=ids, attention_mask=mask.long()).last_hidden_state


def test_xxl_has_the_published_names_and_shapes() -> None:
    published = {f"blocks.{index}.{name}": shape for index in range(24) for name, shape in XXL_BLOCK.items()}
    published |= {"token_embedding.weight": (256384, 4096), "norm.weight": (4096,)}
    with torch.device("meta"):
        model = build(UMT5_XXL)
    assert {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()} == published


@settings(max_examples=12, deadline=None)
@given(
    heads=st.integers(1, 4),
    head_dim=st.integers(1, 9),
    dim=st.integers(2, 20),
    num_layers=st.integers(1, 3),
    num_buckets=st.sampled_from([8, 16, 32]),
    shared=st.booleans(),
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=3),
)
def test_states_equal_transformers(
    heads: int, head_dim: int, dim: int, num_layers: int, num_buckets: int, shared: bool, lengths: list[int]
) -> None:
    config = UMT5Config(
        vocab_size=40,
        dim=dim,
        dim_attn=heads * head_dim,
        dim_ffn=dim + 3,
        num_heads=heads,
        num_layers=num_layers,
        num_buckets=num_buckets,
        max_distance=20,
        shared_position_bias=shared,
    )
    model = make_encoder(config)
    ids, mask = make_batch(lengths)
    with torch.no_grad():
        ours = model(ids, mask)
    torch.testing.assert_close(ours[mask], peer_states(model, ids, mask)[mask], atol=1e-4, rtol=1e-4)


def test_batch_equals_single_prompts() -> None:
    encoder = TextEncoder(make_encoder(), word_tokenizer(), text_len=12)
    prompts = ["3 4 5 6 7 8 9", "", "10 11 12"]
    together = encoder(prompts)
    assert [len(states) for states in together] == [8, 1, 4]
    for prompt, states in zip(prompts, together, strict=True):
        torch.testing.assert_close(states, encoder([prompt])[0], atol=1e-5, rtol=1e-5)


def test_padding_content_and_amount_do_not_matter() -> None:
    model = make_encoder()
    ids, mask = make_batch([5, 9])
    wider = torch.nn.functional.pad(ids, (0, 7), value=13)
    wider_mask = torch.nn.functional.pad(mask, (0, 7))
    with torch.no_grad():
        torch.testing.assert_close(model(wider, wider_mask)[:, :9][mask], model(ids, mask)[mask])


def test_mask_of_ones_equals_no_mask() -> None:
    model = make_encoder()
    ids, mask = make_batch([6, 6])
    with torch.no_grad():
        torch.testing.assert_close(model(ids, mask), model(ids))
        torch.testing.assert_close(model(ids, mask.long()), model(ids))


def test_a_row_without_any_real_token_is_finite() -> None:
    ids, mask = make_batch([4, 4])
    mask[1] = False
    with torch.no_grad():
        assert make_encoder()(ids, mask).isfinite().all()


@pytest.mark.parametrize("name", [name for name, _ in build(TINY).named_parameters()])
def test_every_weight_influences_the_states(name: str) -> None:
    model = make_encoder()
    ids, mask = make_batch([9, 3])
    with torch.no_grad():
        before = model(ids, mask)
        parameter = model.get_parameter(name)
        parameter.add_(torch.randn_like(parameter) * 0.1)
        assert (model(ids, mask) - before)[mask].abs().max() > 1e-4


def test_long_prompts_keep_the_end_token() -> None:
    encoder = TextEncoder(make_encoder(), word_tokenizer(), text_len=4)
    long, short = encoder(["3 4 5 6 7 8", "3 4 5"])
    torch.testing.assert_close(long, short)


def test_no_prompts_give_no_states() -> None:
    assert TextEncoder(make_encoder(), word_tokenizer())([]) == []


def test_states_carry_no_gradient() -> None:
    (states,) = TextEncoder(make_encoder(), word_tokenizer())(["3"])
    assert not states.requires_grad


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"41 tokens .* only 40"):
        TextEncoder(make_encoder(), word_tokenizer(41))


@pytest.mark.parametrize(("dtype", "bound"), [(torch.bfloat16, 0.15), (torch.float16, 0.02)])
def test_half_precision_stays_close_to_float32(dtype: torch.dtype, bound: float) -> None:
    torch.manual_seed(0)
    model = build(TINY).eval()
    ids, mask = make_batch([9, 3])
    with torch.no_grad():
        exact = model(ids, mask)
        half = model.to(dtype)(ids, mask)
    assert half.dtype == dtype
    assert (half.float() - exact)[mask].abs().max() < bound


def test_float16_overflow_is_clamped() -> None:
    model = make_encoder()
    ids, mask = make_batch([9, 3])
    with torch.no_grad():
        for block in model.blocks:
            block.ffn.fc1.weight.mul_(3e3)
            block.ffn.gate[0].weight.mul_(3e2)
        assert model(ids, mask).isfinite().all()
        assert model.half()(ids, mask).isfinite().all()


def test_buckets_are_exact_near_and_logarithmic_far() -> None:
    relative = torch.tensor([0, 1, 7, 8, 15, 16, 31, 32, 64, 127, 128, 10_000])
    before = [0, 1, 7, 8, 9, 10, 11, 12, 14, 15, 15, 15]
    assert relative_position_bucket(-relative, 32, 128).tolist() == before
    after = [0, *(bucket + 16 for bucket in before[1:])]
    assert relative_position_bucket(relative, 32, 128).tolist() == after


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("num_layers", 0, "num_layers must be at least 1, got 0"),
        ("num_heads", 5, "dim_attn must be a multiple of num_heads, got 4096 and 5"),
        ("num_buckets", 30, "num_buckets must be a multiple of 4, got 30"),
        ("max_distance", 8, r"max_distance must be above a quarter of num_buckets \(8\), got 8"),
    ],
)
def test_impossible_dims_are_refused(field: str, value: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        UMT5Config(**{field: value})
