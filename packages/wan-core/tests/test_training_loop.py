import dataclasses
import json
import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest
import torch
from safetensors import SafetensorError
from torch import nn

from wan_core.errors import BackendError, CheckpointError, ConfigError, MediaError, RequestError
from wan_core.training import (
    OPTIMIZERS,
    AveragedWeights,
    CheckpointFolder,
    LoopSettings,
    Muon,
    Stage,
    TrainingState,
    TrainSettings,
    WeightUpdate,
    build_optimizers,
    train,
)
from wan_core.training.loop import seed_step
from wan_core.training.muon import orthogonalize
from wan_core.training.optimizers import require_optimizer


def parts():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.SiLU(), nn.Linear(8, 2))
    matrices = [p for p in model.parameters() if p.ndim == 2]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    optimizers = [Muon(matrices, lr=0.02), torch.optim.AdamW(vectors, lr=1e-2)]

    def loss_of(step, index):
        x = torch.randn(16, 4)
        return (model(x) - x[:, :2] * x[:, 2:]).square().mean()

    return model, optimizers, loss_of, AveragedWeights(model, 0.9)


def run(folder, steps, save_seconds=0.0, **options):
    model, optimizers, loss_of, average = parts()
    settings = LoopSettings(
        steps=steps, warmup_steps=3, save_seconds=save_seconds, log_steps=5, decay_share=0.0, **options
    )
    result = train(Stage.of(model, optimizers, loss_of, average), settings, checkpoints=CheckpointFolder(folder))
    return result, [*model.parameters(), *average.tensors.values()]


def duel(folder, *steps):
    """A generator and its critic, each with a loss and an optimizer of its own; the generator every second step."""
    for count in steps:
        torch.manual_seed(0)
        generator, critic = nn.Linear(2, 2), nn.Linear(2, 1)
        model = nn.ModuleDict({"generator": generator, "critic": critic})

        def judge(step, index, generator=generator, critic=critic):
            made, real = generator(torch.randn(8, 2)).detach(), torch.randn(8, 2) + 3
            gap = critic(made).mean() - critic(real).mean()
            return {"loss": gap + critic(real).square().mean(), "gap": gap}

        updates = [
            WeightUpdate(
                loss=lambda step, index, g=generator, c=critic: -c(g(torch.randn(8, 2))).mean(),
                optimizers=[torch.optim.SGD(generator.parameters(), lr=0.1)],
                name="generator",
                every=2,
            ),
            WeightUpdate(loss=judge, optimizers=[torch.optim.AdamW(critic.parameters(), lr=0.1)], name="critic"),
        ]
        seen = []
        settings = LoopSettings(steps=count, warmup_steps=0, log_steps=1, decay_share=0.0, clip_norm=None)
        train(
            Stage(model=model, updates=updates),
            settings,
            checkpoints=CheckpointFolder(folder),
            report=seen.append,
        )
    return model, seen


def test_several_networks_are_trained_each_by_its_own_loss_and_go_on_together(tmp_path) -> None:
    whole, seen = duel(tmp_path / "whole", 5)
    parts, _ = duel(tmp_path / "parts", 2, 5)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), parts.parameters(), strict=True))
    assert ["generator_loss" in line for line in seen] == [True, False, True, False, True]
    assert all({"critic_loss", "critic_gap", "critic_norm"} <= set(line) for line in seen)
    two, three = duel(tmp_path / "two", 2)[0], duel(tmp_path / "three", 3)[0]
    one = duel(tmp_path / "one", 1)[0]
    assert torch.equal(one["generator"].weight, two["generator"].weight), "not due, and out of the critic's reach"
    assert not torch.equal(two["generator"].weight, three["generator"].weight)
    assert not torch.equal(one["critic"].weight, two["critic"].weight)


def test_training_lowers_the_loss(tmp_path) -> None:
    first, _ = run(tmp_path / "a", 5)
    last, _ = run(tmp_path / "b", 200, save_seconds=1e9)
    assert last.loss < first.loss / 2
    assert last.step == 200


def test_a_resumed_run_equals_the_uninterrupted_one_bit_for_bit(tmp_path) -> None:
    _, whole = run(tmp_path / "whole", 40, save_seconds=1e9, accumulation=2)
    for stop in (1, 7, 23, 40):
        _, resumed = run(tmp_path / "parts", stop, accumulation=2)
    assert all(torch.equal(a, b) for a, b in zip(whole, resumed, strict=True))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_goes_on_bit_for_bit(name, tmp_path) -> None:
    def weights(folder, steps):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(64, 128), nn.SiLU(), nn.Linear(128, 64))  # bitsandbytes keeps small ones whole

        def loss_of(step, index):
            x = torch.randn(16, 64)
            return (model(x) - x * x.roll(1, 1)).square().mean()

        settings = LoopSettings(steps=steps, warmup_steps=3, save_seconds=1e9, decay_share=0.0)
        train(
            Stage.of(model, build_optimizers(model, name, 1e-2), loss_of),
            settings,
            checkpoints=CheckpointFolder(folder),
        )
        return list(model.parameters())

    whole = weights(tmp_path / "whole", 12)
    for stop in (3, 12):
        resumed = weights(tmp_path / "parts", stop)
    assert all(torch.equal(a, b) for a, b in zip(whole, resumed, strict=True))


def test_an_8_bit_optimizer_is_refused_for_divided_weights() -> None:
    with pytest.raises(BackendError, match="2 processes share; use adamw"):
        require_optimizer("adamw8bit", world=2)


def test_only_the_last_checkpoints_stay(tmp_path) -> None:
    run(tmp_path, 9)
    assert CheckpointFolder(tmp_path).steps() == [8, 9]
    assert not list(tmp_path.glob(".*.part"))


def test_going_on_with_other_settings_names_them(tmp_path) -> None:
    run(tmp_path, 3)
    with pytest.raises(ConfigError, match="accumulation"):
        run(tmp_path, 6, accumulation=2)


def test_a_damaged_checkpoint_is_refused_and_the_one_before_works(tmp_path) -> None:
    run(tmp_path, 5)
    newest = CheckpointFolder(tmp_path).path(5) / "training.safetensors"
    newest.write_bytes(newest.read_bytes()[:-7])
    with pytest.raises(CheckpointError, match="damaged"):
        run(tmp_path, 6)
    for file in newest.parent.iterdir():
        file.unlink()
    newest.parent.rmdir()
    assert run(tmp_path, 6)[0].step == 6


def test_a_checkpoint_of_another_model_is_refused(tmp_path) -> None:
    run(tmp_path, 2)
    other = nn.Linear(4, 4)
    saved = json.loads((CheckpointFolder(tmp_path).path(2) / "state.json").read_text())
    state = TrainingState(other, [], None, saved["settings"])
    with pytest.raises(CheckpointError, match="another model"):
        CheckpointFolder(tmp_path).restore(state)


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_checkpoint(tmp_path) -> None:
    model, optimizers, loss_of, _ = parts()

    def failing(step, index):
        return loss_of(step, index) * (float("nan") if step == 4 else 1.0)

    settings = LoopSettings(steps=9, save_seconds=0.0)
    with pytest.raises(RequestError, match=r"nan at step 4.*lower learning rate, in another output"):
        train(Stage.of(model, optimizers, failing), settings, checkpoints=CheckpointFolder(tmp_path))
    assert CheckpointFolder(tmp_path).steps()[-1] == 4


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_stops_and_leaves_the_last_checkpoint_whole(tmp_path, monkeypatch, error) -> None:
    run(tmp_path, 2)

    def full(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("wan_core.training.state.save_file", full)
    with pytest.raises(MediaError, match=r"the disk is full; free some space.*step-00000002"):
        run(tmp_path, 4)
    assert CheckpointFolder(tmp_path).steps() == [1, 2]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000001", "step-00000002"]


def test_sigterm_saves_and_returns(tmp_path) -> None:
    model, optimizers, loss_of, _ = parts()

    def interrupted(step, index):
        if step == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return loss_of(step, index)

    settings = LoopSettings(steps=50)
    result = train(Stage.of(model, optimizers, interrupted), settings, checkpoints=CheckpointFolder(tmp_path))
    assert result.was_interrupted
    assert CheckpointFolder(tmp_path).steps() == [3]  # a step that had changed nothing yet is made again
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_step_that_a_signal_cuts_short_is_made_again_bit_for_bit(tmp_path) -> None:
    model, optimizers, loss_of, average = parts()

    def interrupted(step, index):
        loss = loss_of(step, index)
        if step == 3 and index == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return loss

    settings = LoopSettings(steps=6, warmup_steps=3, save_seconds=99.0, log_steps=5, decay_share=0.0, accumulation=2)
    stage = Stage.of(model, optimizers, interrupted, average)
    assert train(stage, settings, checkpoints=CheckpointFolder(tmp_path / "parts")).signal == signal.SIGINT
    parted = run(tmp_path / "parts", 6, save_seconds=99.0, accumulation=2)[1]
    whole = run(tmp_path / "whole", 6, save_seconds=99.0, accumulation=2)[1]
    assert all(torch.equal(one, other) for one, other in zip(whole, parted, strict=True))


def validated_run(folder, steps, seen, interrupt_at=None):
    model, optimizers, loss_of, average = parts()

    def validate(step):
        if step == interrupt_at:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(30)
        seen.append((step, model[0].weight.detach().clone()))
        return {"validation_loss": float(step)}

    settings = LoopSettings(steps=steps, warmup_steps=3, save_seconds=99.0, log_steps=5, validate_steps=2)
    result = train(
        Stage.of(model, optimizers, loss_of, average), settings, checkpoints=CheckpointFolder(folder),
        validate=validate, log_path=folder / "log.jsonl",
    )  # fmt: skip
    return result, [*model.parameters(), *average.tensors.values()]


@pytest.mark.parametrize("at", [0, 2, 6])
def test_a_signal_ends_a_validation_which_is_made_when_the_run_goes_on(tmp_path, at) -> None:
    whole_seen, seen = [], []
    _, whole = validated_run(tmp_path / "whole", 6, whole_seen)
    started = time.monotonic()
    first, _ = validated_run(tmp_path / "parts", 6, seen, interrupt_at=at)
    assert time.monotonic() - started < 20  # not the thirty seconds of the validation
    assert (first.step, first.signal) == (at, signal.SIGINT)
    last, parted = validated_run(tmp_path / "parts", 6, seen)
    assert not last.was_interrupted
    assert [step for step, _ in seen] == [step for step, _ in whole_seen] == [0, 2, 4, 6]
    pairs = zip([w for _, w in whole_seen] + whole, [w for _, w in seen] + parted, strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


def test_a_second_signal_ends_at_once_and_keeps_what_was_saved(tmp_path) -> None:
    before = signal.getsignal(signal.SIGINT)
    run(tmp_path, 2, save_seconds=99.0)
    model, optimizers, loss_of, average = parts()

    class Slow(CheckpointFolder):
        def save(self, state, step):
            os.kill(os.getpid(), signal.SIGINT)
            raise AssertionError("the second signal ends it")

    def interrupted(step, index):
        if step == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return loss_of(step, index)

    settings = LoopSettings(steps=9, warmup_steps=3, save_seconds=99.0, log_steps=5, decay_share=0.0)
    with pytest.raises(KeyboardInterrupt, match=r"after step 3; the last good checkpoint is .*step-00000002"):
        train(Stage.of(model, optimizers, interrupted, average), settings, checkpoints=Slow(tmp_path))
    assert CheckpointFolder(tmp_path).steps() == [2]
    assert signal.getsignal(signal.SIGINT) is before


def test_logs_have_one_line_per_interval(tmp_path) -> None:
    model, optimizers, loss_of, _ = parts()
    seen = []
    settings = LoopSettings(steps=12, log_steps=5)
    folder = CheckpointFolder(tmp_path / "run")
    train(
        Stage.of(model, optimizers, loss_of),
        settings,
        checkpoints=folder,
        log_path=tmp_path / "log.jsonl",
        report=seen.append,
    )
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [5, 10, 12]
    assert seen == lines


def test_the_rate_rises_stays_and_falls() -> None:
    settings = LoopSettings(steps=100, warmup_steps=10, decay_share=0.5, final_rate=0.1)
    factors = [settings.rate_factor(step) for step in range(100)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[10:50] == [1.0] * 40
    assert factors[99] == pytest.approx(0.1 + 0.9 * 0.02)


@pytest.mark.parametrize(
    "wrong",
    [{"steps": 0}, {"steps": 1, "accumulation": 0}, {"steps": 1, "decay_share": 2.0}, {"steps": 1, "warmup_steps": -1}],
)
def test_impossible_settings_are_refused(wrong) -> None:
    with pytest.raises(ConfigError):
        LoopSettings(**wrong)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("kind", [TrainSettings, LoopSettings])
def test_no_number_of_the_settings_may_be_endless(kind, value) -> None:
    needed = {"steps": 1} if kind is LoopSettings else {"lora_rank": 2}
    for field in (each for each in dataclasses.fields(kind) if "float" in str(each.type)):
        with pytest.raises(ConfigError, match=f"must be a finite number, got {value}"):
            kind(**needed, **{field.name: value})


@pytest.mark.parametrize("kind", [TrainSettings, LoopSettings])
def test_a_seed_has_31_bits_so_that_no_step_overflows(kind) -> None:
    needed = {"steps": 1} if kind is LoopSettings else {}
    assert kind(seed=2**31 - 1, **needed)
    seed_step(2**31 - 1, 10**6, 4000)
    for seed in (2**31, 2**64, -1):
        with pytest.raises(ConfigError, match=f"seed must be from 0 to 2147483647, got {seed}"):
            kind(seed=seed, **needed)


@pytest.mark.parametrize("shape", [(6, 20), (20, 6), (8, 8)])
def test_orthogonalized_matrices_have_singular_values_near_one(shape) -> None:
    torch.manual_seed(3)
    values = torch.linalg.svdvals(orthogonalize(torch.randn(shape)))
    assert values.min() > 0.3
    assert values.max() < 1.3


def test_muon_refuses_vectors_and_bad_rates() -> None:
    with pytest.raises(ConfigError, match="matrices"):
        Muon([nn.Parameter(torch.zeros(3))])
    with pytest.raises(ConfigError, match="lr"):
        Muon([nn.Parameter(torch.zeros(3, 3))], lr=0.0)


KILLED = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_training_loop import run
run(Path(sys.argv[2]), 400)
"""


@pytest.mark.slow
def test_ten_kills_at_random_times_change_nothing(tmp_path) -> None:
    _, whole = run(tmp_path / "whole", 400, save_seconds=1e9)
    command = [sys.executable, "-c", textwrap.dedent(KILLED), os.path.dirname(__file__), str(tmp_path / "killed")]
    generator = torch.Generator().manual_seed(4)
    for _ in range(10):
        process = subprocess.Popen(command)
        started = time.monotonic()
        while not CheckpointFolder(tmp_path / "killed").steps() and time.monotonic() - started < 60:
            time.sleep(0.05)
        time.sleep(2.5 + torch.rand(1, generator=generator).item())
        process.kill()
        process.wait()
    _, resumed = run(tmp_path / "killed", 400)
    assert all(torch.equal(a, b) for a, b in zip(whole, resumed, strict=True))
