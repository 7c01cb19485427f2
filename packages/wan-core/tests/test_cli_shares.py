"""A share of the work: asked for as I/N, or torchrun's."""

import pytest

from wan_core import BackendError, RequestError
from wan_core.cli import share_of_work
from wan_core.cli.options import parse_share

TORCHRUN = {"RANK": "2", "LOCAL_RANK": "2", "WORLD_SIZE": "4", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}


@pytest.fixture
def torchrun(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    return monkeypatch


def test_a_share_is_the_asked_one_or_everything() -> None:
    assert parse_share("2/4") == (1, 4)
    assert share_of_work((1, 4)) == (1, 4)
    assert share_of_work(None) == (0, 1)


def test_torchrun_says_its_own_and_no_other(torchrun: pytest.MonkeyPatch) -> None:
    assert share_of_work(None) == (2, 4)
    with pytest.raises(RequestError, match="leave --shard out"):
        share_of_work((0, 2))


@pytest.mark.parametrize("rank", ["x", "4", "-1", ""])
def test_ranks_that_are_none_are_refused(torchrun: pytest.MonkeyPatch, rank: str) -> None:
    torchrun.setenv("RANK", rank)
    with pytest.raises(BackendError, match="RANK"):
        share_of_work(None)


@pytest.mark.parametrize("text", ["3/2", "0/2", "1", "a/b", "-1/2", "1/0", "", "1/1000000000"])
def test_shares_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(RequestError, match="I/N with I from 1 to N"):
        parse_share(text)
