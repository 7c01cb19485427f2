"""BindWeave's transformer: what its parts do, one at a time; goldens hold the numbers."""

from dataclasses import replace

import pytest
import torch

from bindweave import BINDWEAVE, BindWeaveConfig
from bindweave.dit import BindWeaveDiT, BindWeaveInputs, count_tokens
from wan_core import ConfigError, RequestError
from wan_core.checkpoints import MemorySource, in_format, native_weights

CONFIG = BindWeaveConfig(
    dim=48, ffn_dim=32, num_heads=4, num_layers=2, freq_dim=16, text_dim=20, text_len=6, image_dim=24, image_tokens=5,
    mllm_dim=28,
)  # fmt: skip


@pytest.fixture(scope="module")
def network() -> BindWeaveDiT:
    torch.manual_seed(0)
    built = BindWeaveDiT(CONFIG).eval()
    for parameter in built.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return built


def inputs(batch: int = 1, frames: int = 2) -> BindWeaveInputs:
    torch.manual_seed(1)
    return BindWeaveInputs(
        context=torch.randn(batch, 4, 20), hidden_states=torch.randn(batch, 3, 28),
        image_context=torch.randn(batch, 20, 24), channel_concat=torch.randn(batch, 20, frames, 4, 4),
        references=torch.randn(batch, 20, 4, 4, 4),
    )  # fmt: skip


def latents(batch: int = 1, frames: int = 2) -> torch.Tensor:
    return torch.randn(batch, 16, frames, 4, 4, generator=torch.Generator().manual_seed(2))


@torch.no_grad()
def velocity(network: BindWeaveDiT, given: BindWeaveInputs, batch: int = 1) -> torch.Tensor:
    out: torch.Tensor = network(latents(batch), torch.full((batch,), 500.0), given)
    return out


def test_the_velocity_is_that_of_the_video_alone(network: BindWeaveDiT) -> None:
    assert velocity(network, inputs()).shape == (1, 16, 2, 4, 4)


@pytest.mark.parametrize("field", ["context", "hidden_states", "image_context", "channel_concat", "references"])
def test_every_condition_changes_the_velocity(network: BindWeaveDiT, field: str) -> None:
    given = inputs()
    other = replace(given, **{field: getattr(given, field).flip(-1)})
    assert not torch.allclose(velocity(network, given), velocity(network, other), atol=1e-6)


def test_every_weight_changes_the_velocity(network: BindWeaveDiT) -> None:
    given, first = inputs(), velocity(network, inputs())
    for name, parameter in network.named_parameters():
        kept = parameter.detach().clone()
        with torch.no_grad():
            parameter.add_(torch.randn_like(parameter))
        changed = velocity(network, given)
        with torch.no_grad():
            parameter.copy_(kept)
        assert name.endswith("self_attn.k.bias") or not torch.equal(first, changed), name


def test_a_batch_of_two_is_twice_a_batch_of_one(network: BindWeaveDiT) -> None:
    given = inputs(2)
    names = ("context", "hidden_states", "image_context", "channel_concat", "references")
    both = velocity(network, given, 2)
    for row in range(2):
        one = replace(given, **{name: getattr(given, name)[row : row + 1] for name in names})
        with torch.no_grad():
            alone = network(latents(2)[row : row + 1], torch.full((1,), 500.0), one)
        torch.testing.assert_close(both[row : row + 1], alone, rtol=0, atol=2e-5)


def test_only_the_first_references_tokens_take_the_image_branch(network: BindWeaveDiT) -> None:
    given = inputs()
    text, image = network.embed_context(given)
    assert image is not None
    assert (text.shape[1], image.shape[1]) == (15 + 3 + 6, 5)
    text, image = network.embed_context(replace(given, all_in_branch=True))
    assert image is not None
    assert (text.shape[1], image.shape[1]) == (3 + 6, 20)


def test_positions_go_on_through_the_references(network: BindWeaveDiT) -> None:
    given = inputs()
    sequence = network.embed_latents(latents(), given)
    assert (sequence.grid, sequence.start, sequence.length) == ((2, 2, 2), 16, 24)
    alone = network.embed_latents(latents(), replace(given, references=None))
    assert not torch.equal(sequence.rope[16:], alone.rope)


def test_a_cache_gives_the_same_velocity(network: BindWeaveDiT) -> None:
    given, cached = inputs(), inputs().with_cache()
    velocity(network, cached)
    assert torch.equal(velocity(network, cached), velocity(network, given))


def test_states_of_the_width_of_text_are_not_projected(network: BindWeaveDiT) -> None:
    given = replace(inputs(), hidden_states=torch.ones(1, 3, 20))
    assert torch.equal(network.text_states(given)[:, :3], torch.ones(1, 3, 20))


def test_rows_behind_the_count_are_zero(network: BindWeaveDiT) -> None:
    count = count_tokens(torch.ones(1, 1, 3), torch.tensor([[[1, 1, 0, 0]]]))
    assert count.tolist() == [5]
    states = network.text_states(replace(inputs(), num_tokens=count))
    assert bool((states[:, 5:] == 0).all())
    assert bool((states[:, :5] != 0).any(-1).all())


BAD = {
    "states of another width": ({"hidden_states": torch.zeros(1, 3, 9)}, r"\[1, S, 28\]"),
    "no states": ({"hidden_states": torch.zeros(1, 0, 28)}, r"\[1, S, 28\]"),
    "references of another size": ({"references": torch.zeros(1, 20, 4, 4, 6)}, "in frames only"),
    "references alone": ({"channel_concat": None}, "there are none"),
}


@pytest.mark.parametrize("kind", BAD)
def test_conditions_that_do_not_fit_are_refused(network: BindWeaveDiT, kind: str) -> None:
    changes, words = BAD[kind]
    with pytest.raises(RequestError, match=words):
        velocity(network, replace(inputs(), **changes))


def test_what_cannot_be_is_refused(network: BindWeaveDiT) -> None:
    with pytest.raises(RequestError, match="one timestep"):
        network(latents(), torch.zeros(1, 2), inputs())
    with pytest.raises(ConfigError, match="--cfg batched"):
        BindWeaveInputs.batch([inputs(), inputs()])
    with pytest.raises(RequestError, match="padding"):
        count_tokens(torch.tensor([[1, 0]]), torch.ones(1, 2))
    with pytest.raises(ConfigError, match="mllm_dim"):
        replace(CONFIG, mllm_dim=0)
    with pytest.raises(ConfigError, match="image branch"):
        replace(CONFIG, image_dim=None)


@pytest.mark.parametrize("name", ["diffusers", "mm", "official"])
def test_each_naming_leads_back_to_the_native_names(network: BindWeaveDiT, name: str) -> None:
    native = MemorySource(network.state_dict())
    named = in_format(native, BINDWEAVE, name)
    back = native_weights(MemorySource({key: named.read(key) for key in named}), BINDWEAVE)
    assert back.format == name
    assert set(back) == set(native)
    assert all(torch.equal(back.read(key), native.read(key)) for key in native)


@pytest.mark.parametrize("name", ["diffusers", "mm"])
def test_tables_leave_native_names_as_they_are(network: BindWeaveDiT, name: str) -> None:
    from wan_core.checkpoints.formats import rename

    rules = dict(next(each for each in BINDWEAVE.formats if each.name == name).table(()))
    assert all(rename(key.rpartition(".")[0], rules) == key.rpartition(".")[0] for key in network.state_dict())
