"""The parts of `wan train`: settings, order of data, losses on several ranks, logs, optimizers, recomputed blocks."""

import errno
import json
import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn

from wan_core.checkpoints import DIT, write_shards
from wan_core.errors import CheckpointError, ConfigError, MediaError
from wan_core.models import DiTInputs, WanDiT, WanDiTConfig
from wan_core.runtime.recompute import apply_recompute
from wan_core.sampling import FlowTable
from wan_core.tasks import TextImageToVideo
from wan_core.training import (
    Cache,
    CheckpointFolder,
    LoopSettings,
    LoRASettings,
    NoiseLevels,
    Ranks,
    Stage,
    TrainSettings,
    attach_lora,
    build_optimizers,
    read_config,
    train,
    write_cache,
)
from wan_core.training.estimate import activation_bytes
from wan_core.training.examples import Sampler
from wan_core.training.export import save_network
from wan_core.training.flow_loss import FlowLoss

from .networks import build

CONFIG = WanDiTConfig(
    in_dim=4, out_dim=4, dim=32, ffn_dim=64, num_heads=2, num_layers=2, freq_dim=16, text_dim=8, text_len=6
)


def network() -> WanDiT:
    torch.manual_seed(0)
    return build(CONFIG)


@pytest.fixture
def cache(tmp_path) -> Cache:
    def encode(number):
        generator = torch.Generator().manual_seed(number)
        shape = (4, 3, 4, 4) if number % 2 else (4, 3, 4, 8)
        latents = torch.randn(shape, generator=generator).half()
        context = torch.randn(2 + number % 3, 8, generator=generator)
        return {"latents": latents, "context": context, "empty": torch.zeros(1, 8), "first": latents[:, :1] + 1}

    write_cache(tmp_path / "cache", 12, encode, {"examples": "x"}, shard_size=5)
    return Cache(tmp_path / "cache")


def loss_of(cache, model, *, batch, rank=0, world=1, **settings) -> FlowLoss:
    chosen = TrainSettings(batch=batch, seed=3, **settings)
    return FlowLoss(
        model=model, task=TextImageToVideo(), cache=cache, settings=chosen, levels=NoiseLevels(),
        sampler=Sampler(cache, batch=batch, seed=3, held_out=2, world=world),
        device=torch.device("cpu"), rank=rank, world=world,
    )  # fmt: skip


def test_two_ranks_of_two_see_what_one_rank_of_four_sees(cache) -> None:
    model = network()
    whole = loss_of(cache, model, batch=4)
    parts = [loss_of(cache, model, batch=2, rank=rank, world=2) for rank in range(2)]
    for step in range(4):
        means = torch.stack([part(step, 0) for part in parts]).mean()
        torch.testing.assert_close(means, whole(step, 0), atol=1e-6, rtol=0)


class Forgetful(TextImageToVideo):
    """Counts the samples that go without conditions, and adds them to the loss through the context."""

    condition_dropout = 0.5

    def unpack_example(self, row):
        return {**row, "context": row["context"] + 1}

    def training_inputs(self, batch, context, networks):
        dropped = batch.get("dropped")
        kept = context if dropped is None else context * (~dropped).view(-1, 1, 1)
        return DiTInputs(context=kept)


class Ragged(TextImageToVideo):
    """Examples of two lengths, of which only the mean of all is shown."""

    mixed_lengths = ("notes",)

    def without_caption(self, row):
        return {**row, "notes": torch.zeros_like(row["notes"])}

    def training_inputs(self, batch, context, networks):
        return DiTInputs(context=context + batch["notes"].mean(dim=(1, 2))[:, None, None])


def test_examples_of_several_lengths_are_shown_in_one_batch_without_padding(tmp_path) -> None:
    def encode(number):
        generator = torch.Generator().manual_seed(number)
        return {
            "latents": torch.randn(4, 3, 4, 4, generator=generator), "context": torch.ones(2, 8),
            "empty": torch.zeros(2, 8), "notes": torch.randn(2 + number % 2, 3, generator=generator),
        }  # fmt: skip

    write_cache(tmp_path / "cache", 6, encode, {"examples": "x"})
    cache, model = Cache(tmp_path / "cache"), network()
    whole = replace(loss_of(cache, model, batch=4, caption_dropout=0.5), task=Ragged())
    parts = [
        replace(loss_of(cache, model, batch=1, rank=rank, world=4, caption_dropout=0.5), task=Ragged())
        for rank in range(4)
    ]
    assert {cache.shape(number, "notes")[0] for number in whole.sampler.numbers(0)} == {2, 3}
    for step in range(3):
        means = torch.stack([part(step, 0) for part in parts]).mean()
        torch.testing.assert_close(means, whole(step, 0), atol=1e-6, rtol=0)


def test_a_bell_of_weights_changes_the_loss_by_the_noise_level_alone(cache) -> None:
    model = network()
    plain = loss_of(cache, model, batch=1)
    weighed = replace(plain, table=FlowTable(5.0))
    torch.manual_seed((3 * 1_000_003 + 2) * 4099)
    level = plain.levels.sample(1)
    torch.testing.assert_close(weighed(2, 0), plain(2, 0) * FlowTable(5.0).weight(level * 1000)[0])


def test_samples_without_conditions_are_the_same_for_any_number_of_ranks(cache) -> None:
    model = network()
    whole = replace(loss_of(cache, model, batch=4), task=Forgetful())
    parts = [replace(loss_of(cache, model, batch=2, rank=rank, world=2), task=Forgetful()) for rank in range(2)]
    plain = loss_of(cache, model, batch=4)
    for step in range(4):
        means = torch.stack([part(step, 0) for part in parts]).mean()
        torch.testing.assert_close(means, whole(step, 0), atol=1e-6, rtol=0)
    assert any(whole(step, 0) != plain(step, 0) for step in range(4))
    assert whole.held_out() == whole.held_out()


def test_a_step_is_the_same_in_whatever_order_it_is_asked_for(cache) -> None:
    model = network()
    loss = loss_of(cache, model, batch=2, clean_frames=2, caption_dropout=0.5)
    first = [loss(step, 0).item() for step in range(5)]
    assert [loss(step, 0).item() for step in (4, 2, 0)] == [first[4], first[2], first[0]]
    assert len(set(first)) == 5


def test_the_order_of_data_covers_every_example_but_the_held_out(cache) -> None:
    sampler = Sampler(cache, batch=2, seed=1, held_out=3, world=2)
    shown = {
        n for position in range(sampler.steps_per_epoch) for rank in range(2) for n in sampler.numbers(position, rank)
    }
    assert shown == set(range(12)) - set(sampler.held_out)
    for position in range(4):
        both = [*sampler.numbers(position, 0), *sampler.numbers(position, 1)]
        assert len({tuple(cache.shape(number, "latents")) for number in both}) == 1


def test_the_held_out_loss_is_the_same_every_time_and_leaves_the_generator(cache) -> None:
    loss = loss_of(cache, network(), batch=2)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    assert loss.held_out() == loss.held_out()
    assert torch.equal(torch.get_rng_state(), state)


def test_clean_frames_are_shown_as_the_given_picture(cache) -> None:
    seen = []

    class Watching(nn.Module):
        def forward(self, latents, timesteps, inputs: DiTInputs):
            seen.append((latents, timesteps))
            return torch.zeros_like(latents)

    loss = loss_of(cache, Watching(), batch=2, clean_frames=1, clean_share=1.0)
    loss(0, 0)
    numbers = loss.sampler.numbers(0)
    (latents, timesteps) = seen[0]
    assert timesteps.shape == (2, 3)
    assert timesteps[:, 0].eq(0).all()
    for row, number in enumerate(numbers):
        torch.testing.assert_close(latents[row, :, :1], cache[number]["first"].float())


def test_a_damaged_shard_is_named_when_it_is_read(cache) -> None:
    path = cache.folder / "shard-00001.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-3] + bytes([content[-3] ^ 1]) + content[-2:])
    fresh = Cache(cache.folder)
    fresh.check_headers()
    with pytest.raises(CheckpointError, match=r"shard-00001.*damaged"):
        fresh[6]


def test_recomputed_blocks_keep_names_gradients_and_adapters() -> None:
    gradients = []
    for recompute in (False, True):
        model = network()
        attach_lora(model, LoRASettings(rank=2))
        if recompute:
            apply_recompute(model)
            apply_recompute(model)
        model(torch.ones(1, 4, 1, 4, 4), torch.tensor([500.0]), DiTInputs(context=torch.ones(1, 2, 8))).sum().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    assert all(torch.equal(gradients[0][name], gradients[1][name]) for name in gradients[0])


def test_the_estimate_of_activations_is_near_what_is_kept() -> None:
    model = WanDiT(
        WanDiTConfig(
            in_dim=4, out_dim=4, dim=64, ffn_dim=256, num_heads=4, num_layers=4, freq_dim=16, text_dim=8, text_len=4
        )
    )
    kept: dict[int, int] = {}
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def pack(tensor):
        place = tensor.untyped_storage()
        if place.data_ptr() not in weights:
            kept[place.data_ptr()] = place.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = model(torch.ones(2, 4, 4, 16, 16), torch.tensor([1.0, 2.0]), DiTInputs(context=torch.ones(2, 2, 8)))
    estimate = activation_bytes(model.config, 2 * 4 * 64, 4, recompute=False)
    assert out.requires_grad
    assert estimate == pytest.approx(sum(kept.values()), rel=0.35)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_optimizers_train_every_weight_once(name) -> None:
    model = network()
    optimizers = build_optimizers(model, name, 1e-3)
    taken = [id(p) for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]]
    assert sorted(taken) == sorted(id(p) for p in model.parameters())


def test_schedules_fall_as_they_say() -> None:
    rates = {
        name: [
            LoopSettings(steps=100, warmup_steps=0, decay_share=1.0, schedule=name).rate_factor(s) for s in (0, 50, 99)
        ]
        for name in ("linear", "cosine", "constant")
    }
    assert rates["linear"] == pytest.approx([1.0, 0.5, 0.01])
    assert rates["cosine"] == pytest.approx([1.0, 0.5, (1 - math.cos(math.pi / 100)) / 2])
    assert rates["constant"] == [1.0, 1.0, 1.0]


def plain_run(folder, **options):
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    settings = LoopSettings(
        **({"steps": 6, "log_steps": 2, "save_steps": 2, "validate_steps": 3} | options.pop("loop", {}))
    )
    return train(
        Stage.of(model, [optimizer], lambda step, index: model(torch.randn(4, 3)).square().mean()), settings,
        checkpoints=CheckpointFolder(folder, keep=9), **options,
    )  # fmt: skip


def test_checkpoints_and_validations_come_at_their_steps(tmp_path) -> None:
    asked: list[int] = []

    def validate(step):
        asked.append(step)
        return {"validation_loss": float(step)}

    plain_run(tmp_path / "run", validate=validate, log_path=tmp_path / "log.jsonl")
    assert asked == [0, 3, 6]
    assert CheckpointFolder(tmp_path / "run").steps() == [2, 4, 6]
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "validation_loss" in line] == [0, 3, 6]
    assert [line["step"] for line in lines if "loss" in line] == [2, 4, 6]


def test_all_ranks_stop_when_one_is_told_to(tmp_path) -> None:
    result = plain_run(tmp_path, reduce=lambda values: [0.5, values[1]] if len(values) == 2 else values)
    assert (result.step, result.was_interrupted) == (1, True)


def test_only_the_first_rank_writes_the_log(tmp_path) -> None:
    plain_run(tmp_path / "run", rank=1, log_path=tmp_path / "log.jsonl")
    assert not (tmp_path / "log.jsonl").exists()


def test_a_log_that_cannot_be_written_is_an_error(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(MediaError, match="log"):
        plain_run(tmp_path / "run", log_path=tmp_path / "file" / "log.jsonl")


def test_settings_that_differ_are_named_one_by_one(tmp_path) -> None:
    plain_run(tmp_path, recipe={"batch": 1, "rate": 0.1})
    with pytest.raises(ConfigError, match=r"settings: recipe\.rate was 0\.1, is 0\.2; set them back"):
        plain_run(tmp_path, recipe={"batch": 1, "rate": 0.2}, loop={"steps": 9})


def test_a_network_is_saved_as_an_official_folder(tmp_path) -> None:
    from wan_core.checkpoints import load_model, native_weights, read_weights

    model = network()
    save_network(model, tmp_path / "dit", dtype=torch.bfloat16)
    source = native_weights(read_weights(tmp_path / "dit"), "dit")
    assert DIT.read_config(tmp_path / "dit", source) == CONFIG
    loaded = load_model(CONFIG, source, family="dit", dtype=torch.float32)
    for name, weight in model.state_dict().items():
        exact = any(f".{part}." in f".{name}." for part in model.float32_modules)
        expected = weight if exact else weight.bfloat16().float()
        assert torch.equal(loaded.state_dict()[name], expected), name
    save_network(model, tmp_path / "second", dtype=torch.float32, ranks=Ranks(rank=1, world=2))
    assert not (tmp_path / "second").exists()


def test_an_export_over_an_older_one_is_never_mixed(tmp_path, monkeypatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr("wan_core.training.export.write_shards", partial(write_shards, max_shard_bytes=30_000))
    model = network()
    save_network(model, tmp_path / "dit", dtype=torch.float32)
    (tmp_path / "dit/vae.pth").write_bytes(b"beside")
    before = {path.name: path.read_bytes() for path in (tmp_path / "dit").iterdir()}
    assert len(before) > 4
    with torch.no_grad():
        model.patch_embedding.weight += 1
    monkeypatch.setattr("wan_core.training.export.write_json", full)
    with pytest.raises(MediaError, match="the disk is full"):
        save_network(model, tmp_path / "dit", dtype=torch.float32)
    assert {path.name: path.read_bytes() for path in (tmp_path / "dit").iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["dit"]


def test_a_config_is_read_as_a_command_line_would_say_it(tmp_path) -> None:
    (tmp_path / "c.toml").write_text('lora-rank = 4\nlr = 1e-3\nquiet = true\nlora_targets = ["a", "b"]\n')
    values = read_config(tmp_path / "c.toml", ["lora_rank", "lr", "quiet", "lora_targets"])
    assert values == {"lora_rank": "4", "lr": "0.001", "quiet": "true", "lora_targets": ["a", "b"]}
