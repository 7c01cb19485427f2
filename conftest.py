"""Tests compute with one thread: their networks are tiny, and two threads on a busy machine wait for each other."""

import os

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--weights DIR``: a folder of real weights for the levels of sfu's testing ladder that can use one."""
    parser.addoption("--weights", help="folder of Wan2.1-T2V-1.3B for test_ladder.py; without it a tiny one is made")
