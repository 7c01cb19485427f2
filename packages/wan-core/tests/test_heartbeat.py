"""A process that gives no sign of life is found, by its number; one that is slow or has left is not."""

import threading
import time
from collections.abc import Sequence

import pytest
from torch.distributed import HashStore

from wan_core.runtime import heartbeat


class Watcher:
    """Who was found to be lost."""

    def __init__(self) -> None:
        self.found: list[int] = []
        self.has_found = threading.Event()

    def __call__(self, silent: Sequence[int]) -> None:
        self.found = list(silent)
        self.has_found.set()


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "_BEAT", 0.01)


def test_a_process_without_a_sign_is_lost() -> None:
    store, watcher = HashStore(), Watcher()
    with heartbeat.watched(store, 0, 3, watcher), heartbeat.watched(store, 2, 3, Watcher()):
        assert watcher.has_found.wait(20)
    assert watcher.found == [1]


def test_processes_that_live_or_have_left_are_not_lost() -> None:
    store, watcher = HashStore(), Watcher()
    with heartbeat.watched(store, 0, 3, watcher), heartbeat.watched(store, 1, 3, Watcher()):
        with heartbeat.watched(store, 2, 3, Watcher()):
            pass
        assert not watcher.has_found.wait(0.3)
    assert watcher.found == []


class Holder:
    """A store whose process has stopped: it answers nothing."""

    def __init__(self) -> None:
        self.goes_on = threading.Event()

    def add(self, key: str, count: int) -> int:
        self.goes_on.wait(20)
        return count


def test_a_store_that_does_not_answer_is_that_of_the_first_process() -> None:
    store, watcher = Holder(), Watcher()
    with heartbeat.watched(store, 1, 2, watcher):
        assert watcher.has_found.wait(20)
        store.goes_on.set()
    assert watcher.found == [0]


def test_a_store_that_is_gone_ends_the_watch() -> None:
    class Gone:
        def add(self, key: str, count: int) -> int:
            raise RuntimeError("Connection reset by peer")

    watcher = Watcher()
    with heartbeat.watched(Gone(), 1, 2, watcher):
        time.sleep(0.2)
    assert watcher.found == []
