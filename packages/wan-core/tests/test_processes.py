"""How the processes of a run divide its work among them, and what they refuse, by name, before anything is read."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from wan_core.cli import share_of_work, wan
from wan_core.errors import BackendError, ConfigError, RequestError, WanError
from wan_core.runtime import Launch, Processes, plan_processes, working_together

TORCHRUN = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
PLAN = ["generate", "tiny-t2v", "--prompt", "a ring", "--dry-run"]


def of(world: int, rank: int = 0, **asked: Any) -> Processes:
    return plan_processes(Launch(rank, world, rank) if world > 1 else None, **asked)


def test_processes_that_share_nothing_make_videos_of_their_own() -> None:
    assert [of(4, rank).own(range(6)) for rank in range(4)] == [[0, 4], [1, 5], [2], [3]]
    assert of(1).own(range(3)) == [0, 1, 2]


def test_neighbours_make_a_video_together_and_the_first_writes_it() -> None:
    ranks = [of(8, rank, sequence=2, splits_guidance=True) for rank in range(8)]
    assert [each.own("ab") for each in ranks] == [["a"]] * 4 + [["b"]] * 4
    assert [each.is_first for each in ranks] == [True, False, False, False] * 2
    assert [each.tells for each in ranks] == [True] + [False] * 7


def test_divided_weights_make_all_share_a_video() -> None:
    assert of(8, divides_dit=True).sequence == 8
    assert of(8, divides_text=True, splits_guidance=True).sequence == 4
    assert of(8, divides_dit=True, sequence=2).num_groups == 4


def test_processes_of_a_video_have_one_share_of_samples() -> None:
    ranks = [of(4, rank, sequence=2) for rank in range(4)]
    assert [share_of_work(None, each) for each in ranks] == [(0, 2), (0, 2), (1, 2), (1, 2)]


@pytest.mark.parametrize(
    ("refused", "error", "words"),
    [
        (lambda: of(1, sequence=8), ConfigError, ("--ulysses-size 8", "there is one", "--nproc 8")),
        (lambda: of(1, splits_guidance=True), ConfigError, ("--cfg-parallel", "--nproc_per_node=2")),
        (lambda: of(1, divides_dit=True), ConfigError, ("--dit-fsdp", "there is one")),
        (lambda: of(1, divides_text=True), ConfigError, ("--t5-fsdp", "there is one")),
        (lambda: of(8, sequence=3), ConfigError, ("8 processes", "groups of 3")),
        (lambda: of(4, sequence=4, splits_guidance=True), ConfigError, ("4 processes", "2 branches of guidance x 4")),
        (lambda: of(3, splits_guidance=True), ConfigError, ("3 processes", "2 branches of guidance")),
        (lambda: of(4, sequence=8), ConfigError, ("4 processes", "groups of 8")),
        (lambda: of(3, splits_guidance=True, divides_dit=True), ConfigError, ("3 processes", "multiple of 2")),
        (lambda: of(4, sequence=1, divides_dit=True), ConfigError, ("--dit-fsdp", "--ulysses-size 1")),
        (lambda: of(2, device="cuda:1"), ConfigError, ("--device cuda:1", "2 processes", "--device cuda ")),
        (lambda: of(8).own([1]), RequestError, ("one video for 8 processes", "--ulysses-size 8", "--prompt-file")),
        (lambda: of(8).own([1, 2]), RequestError, ("2 videos for 8 processes",)),
        (lambda: of(8, sequence=2).own([1, 2]), RequestError, ("2 videos for 4 groups of 2 processes",)),
    ],
)
def test_numbers_that_do_not_fit_are_refused(
    refused: Callable[[], object], error: type[WanError], words: tuple[str, ...]
) -> None:
    with pytest.raises(error) as found:
        refused()
    assert all(word in str(found.value) for word in words), found.value


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--ulysses_size", "8"], ("--ulysses-size 8", "there is one")),
        (["--ulysses_size", "0"], ("--ulysses-size", "0")),
        (["--ulysses_size", "two"], ("--ulysses-size", "two")),
        (["--nproc", "0"], ("--nproc",)),
        (["--nproc", "2"], ("one video for 2 processes",)),
        (["--nproc", "8", "--ulysses_size", "3"], ("8 processes", "groups of 3")),
        (["--nproc", "2", "--dit_fsdp", "--t5_fsdp", "--t5_cpu"], ("--t5-fsdp", "--t5-cpu")),
        (["--nproc", "2", "--cfg_parallel", "--cfg", "batched"], ("--cfg-parallel", "--cfg batched")),
        (["--nproc", "2", "--cfg_parallel", "--sample_guide_scale", "1"], ("guidance is off", "--cfg-parallel")),
        (["--nproc", "2", "--device", "cuda:0"], ("--device cuda:0", "2 processes")),
        (["--nproc", "-2"], ("--nproc", "-2")),
        (["--nproc", "two"], ("--nproc", "two")),
        (["--nproc", "1", "--cfg_parallel"], ("--cfg-parallel", "there is one", "--nproc 2")),
        (["--nproc", "1", "--t5_fsdp"], ("--t5-fsdp", "there is one")),
        (["--nproc", "2", "--ulysses_size", "2", "--cfg_parallel"], ("2 processes", "multiple of 4")),
        (["--nproc", "2", "--ulysses_size", "1", "--t5_fsdp"], ("--t5-fsdp", "--ulysses-size 1")),
        (["--nproc", "4", "--ulysses_size", "2"], ("one video for 2 groups of 2 processes", "--prompt-file")),
    ],
)
def test_options_that_do_not_fit_are_refused_in_one_sentence(options: list[str], words: tuple[str, ...]) -> None:
    result = CliRunner().invoke(wan, [*PLAN, *options])
    assert result.exit_code == 2, result.output
    assert all(word in result.output for word in words), result.output
    assert "Traceback" not in result.output


def test_torchrun_and_nproc_that_differ_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**TORCHRUN, "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    result = CliRunner().invoke(wan, [*PLAN, "--seed", "1", "--nproc", "4"])
    assert result.exit_code == 2
    assert "torchrun has started 2" in result.output


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"RANK": "0"}, ("WORLD_SIZE", "is missing", "torchrun")),
        ({"WORLD_SIZE": "2"}, ("RANK", "is missing", "torchrun")),
        ({**TORCHRUN, "MASTER_ADDR": None}, ("MASTER_ADDR is missing",)),
        ({**TORCHRUN, "RANK": "2"}, ("RANK 2 of WORLD_SIZE 2",)),
        ({**TORCHRUN, "RANK": "-1"}, ("RANK -1 of WORLD_SIZE 2",)),
        ({**TORCHRUN, "WORLD_SIZE": "0"}, ("RANK 0 of WORLD_SIZE 0",)),
        ({**TORCHRUN, "LOCAL_RANK": "first"}, ("LOCAL_RANK", "whole numbers", "'first'")),
    ],
)
def test_what_torchrun_would_not_say_is_refused_in_one_sentence(
    variables: dict[str, str | None], words: tuple[str, ...]
) -> None:
    result = CliRunner(env=variables).invoke(wan, PLAN)
    assert result.exit_code == 5, result.output
    assert all(word in result.output for word in words), result.output
    assert "Traceback" not in result.output


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with (
        pytest.raises(BackendError, match="process 2 of 4 has no GPU of its own: this machine has 2; start as many"),
        working_together(of(4, 2), torch.device("cuda:2")),
    ):
        pass


def test_a_plan_says_what_the_processes_divide() -> None:
    result = CliRunner().invoke(wan, [*PLAN, "--nproc", "4", "--ulysses_size", "2", "--cfg_parallel"])
    assert result.exit_code == 0, result.output
    assert "1 x 2 x 2 (videos x guidance branches x shares of tokens)" in result.output


def test_a_plan_of_several_videos_needs_no_other_process() -> None:
    result = CliRunner().invoke(wan, [*PLAN, "--num-videos", "2", "--nproc", "2", "--ulysses_size", "2"])
    assert result.exit_code == 0, result.output
    assert result.output.count("placement ") == 2
