"""Damaged and hostile GGUF files: one typed error, quickly, without memory."""

import random
import struct
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from wan_core.checkpoints import read_weights
from wan_core.errors import CheckpointError

from .gguf_files import write_gguf
from .memory import peak_memory, reset_peak


def header(version: int = 3, tensors: int = 0, fields: int = 0, rest: bytes = b"") -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, fields) + rest


def string(text: str, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(text) if length is None else length) + text.encode()


BROKEN: dict[str, tuple[bytes, str]] = {
    "version": (header(version=9), "version 9"),
    "empty": (header(rest=b"\0" * 60), "no tensors"),
    "many tensors": (header(tensors=2**60), "announces"),
    "many fields": (header(fields=2**60), "announces"),
    "ends early": (header(fields=3), "ends too early"),
    "long key": (header(fields=1, rest=string("a", 2**62)), "longer than the file"),
    "field type": (header(fields=1, rest=string("a") + struct.pack("<I", 77)), "type 77"),
    "endless list": (header(fields=1, rest=string("a") + struct.pack("<IIQ", 9, 4, 2**50)), "lists have"),
    "list of lists": (header(fields=1, rest=string("a") + struct.pack("<IIQ", 9, 9, 2)), "entries of type 9"),
    "strings beyond the end": (header(fields=1, rest=string("a") + struct.pack("<IIQ", 9, 8, 10**6)), "ends too early"),
    "many dims": (header(tensors=1, rest=string("t") + struct.pack("<I", 99)), "99 dimensions"),
    "huge side": (header(tensors=1, rest=string("t") + struct.pack("<IQIQ", 1, 2**50, 0, 0)), "has shape"),
    "unknown type": (header(tensors=1, rest=string("t") + struct.pack("<IQIQ", 1, 1, 99, 0)), "ggml type 99"),
    "half a block": (header(tensors=1, rest=string("t") + struct.pack("<IQIQ", 1, 33, 8, 0)), "whole number of blocks"),
    "no data": (header(tensors=1, rest=string("t") + struct.pack("<IQIQ", 1, 32, 0, 0)), "outside the file"),
    "no alignment": (header(fields=1, rest=string("general.alignment") + struct.pack("<II", 4, 0)), "alignment is 0"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_gguf_files_are_one_error(tmp_path: Path, name: str) -> None:
    content, words = BROKEN[name]
    (tmp_path / "w.gguf").write_bytes(content)
    with pytest.raises(CheckpointError, match=words):
        read_weights(tmp_path / "w.gguf")


def long_header(item: bytes, count: int, *, tensors: bool = False) -> Callable[[], bytes]:
    """``count`` fields or tensors, each a numbered name and then ``item``."""

    def make() -> bytes:
        entries = b"".join(string(f"{number:06}") + item for number in range(count))
        return header(tensors=count, rest=entries) if tensors else header(fields=count, rest=entries)

    return make


BOMBS: dict[str, Callable[[], bytes]] = {
    "fields": long_header(struct.pack("<IB", 0, 1), 20_001),
    "long strings": long_header(struct.pack("<I", 8) + string("a" * 999_000), 70),
    "vocabulary": lambda: header(fields=1, rest=string("a") + struct.pack("<IIQ", 9, 8, 10**6 + 1) + bytes(9_000_000)),
    "vocabularies": long_header(struct.pack("<IIQ", 9, 8, 300_000) + bytes(2_400_000), 4),
    "tensors": long_header(struct.pack("<IQIQ", 1, 32, 0, 0), 10_001, tensors=True),
    "tensors without data": long_header(struct.pack("<IQIQ", 1, 2**39, 0, 0), 9_999, tensors=True),
    "overflow": long_header(struct.pack("<I8QIQ", 8, *[2**40] * 8, 8, 0), 2, tensors=True),
    "far away": long_header(struct.pack("<IQIQ", 1, 32, 0, 2**63), 2, tensors=True),
}


@pytest.mark.parametrize("name", BOMBS)
def test_hostile_gguf_files_cost_neither_time_nor_memory(tmp_path: Path, name: str) -> None:
    (tmp_path / "w.gguf").write_bytes(BOMBS[name]())
    before, started = reset_peak(), time.process_time()
    with pytest.raises(CheckpointError):
        read_weights(tmp_path / "w.gguf")
    assert time.process_time() - started < 1
    assert peak_memory() - before < 100e6


def mutated(good: bytes, seed: int) -> bytes:
    """A good file with some bytes of its header changed, taken out or put in, or cut off."""
    chance = random.Random(seed)
    content = bytearray(good)
    for _ in range(chance.randint(1, 4)):
        kind, place = chance.randrange(4), chance.randrange(320 if chance.random() < 0.9 else len(content))
        if kind == 0:
            content[place % len(content)] = chance.randrange(256)
        elif kind == 1:
            content[place : place + 8] = chance.choice([0, 1, 33, 2**31, 2**63, 2**64 - 1]).to_bytes(8, "little")
        elif kind == 2:
            del content[place : place + chance.randint(1, 9)]
        else:
            content[place:place] = chance.randbytes(chance.randint(1, 9))
    return bytes(content[: chance.choice([len(content), chance.randrange(1, len(content))])])


def test_a_thousand_damaged_gguf_files_are_refused_or_harmless(tmp_path: Path) -> None:
    write_gguf(tmp_path / "w.gguf", {"a.weight": torch.randn(4, 256), "b": torch.ones(3)}, "Q8_0")
    good = (tmp_path / "w.gguf").read_bytes()
    refused = 0
    for seed in range(1000):
        (tmp_path / "w.gguf").write_bytes(mutated(good, seed))
        started = time.monotonic()
        try:
            source = read_weights(tmp_path / "w.gguf")
            assert sum(source.read(name).numel() for name in source) < 1e5, seed
        except CheckpointError:
            refused += 1
        assert time.monotonic() - started < 1, seed
    assert refused > 500
