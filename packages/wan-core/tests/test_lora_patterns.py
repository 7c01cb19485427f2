"""Regular expressions in peft's settings: matched as peft matches them, and never for long."""

import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from peft.utils.other import get_pattern_key

from wan_core.checkpoints.lora.patterns import PatternTable
from wan_core.errors import CheckpointError

LAYERS = [f"blocks.{block}.{part}" for block in (0, 1, 12) for part in ("self_attn.q", "cross_attn.k", "ffn.0")]
NAMES = [*LAYERS, "head.head", "pipe.dit.blocks.1.self_attn.q", "blocks_0.ffn.0", "a\n", ""]

PATTERNS = [
    "q", "ffn.0", r"ffn\.0", "^blocks.0.self_attn.q", "^self_attn.q", r"blocks\.1\..*", r"blocks\.\d+\.ffn\.[02]",
    r"(self|cross)_attn\.[qk]", r"blocks\.(?:0|12)\..+", r".*\.k$", "blocks.1", "head", "head.head", r"\w+\.q",
    r"blocks\.[^1]\.", r"(?!.*ffn).*", r"blocks\.1{1,2}\.ffn\.0", r"\d+\.ffn.0", "b?locks.0.ffn.0|head.head",
    r"(?:.*\.)?self_attn\.q\b", r"blocks\.1(2)?\.(ffn\.0|self_attn\.q)?", "", r"\Ablocks.*?0\Z", r"\D*", r"a\s", ".*",
    "q)|(ffn.0",
]  # fmt: skip


def theirs(patterns: list[str], name: str) -> int:
    """The position of the pattern whose value peft takes; -1 where it takes the default."""
    key = get_pattern_key(patterns, name)
    return patterns.index(key) if key in patterns else -1


def ours(patterns: list[str], name: str) -> int:
    found = PatternTable({pattern: float(index) for index, pattern in enumerate(patterns)}, "here").get(name)
    return -1 if found is None else int(found)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_pattern_matches_what_it_matches_in_peft(pattern: str) -> None:
    assert [ours([pattern], name) for name in NAMES] == [theirs([pattern], name) for name in NAMES]


ATOMS = st.sampled_from(["a", "b", ".", r"\.", r"\d", r"\w", "[ab]", "[^a.]", "^", "$", r"\b", "1"])
EXPRESSIONS = st.recursive(
    ATOMS,
    lambda inner: st.one_of(
        st.tuples(inner, inner).map("".join),
        st.tuples(inner, inner).map(lambda pair: f"(?:{pair[0]}|{pair[1]})"),
        st.tuples(inner, st.sampled_from(["*", "+", "?", "*?", "{2}", "{1,2}", "{,2}"])).map(
            lambda pair: f"(?:{pair[0]}){pair[1]}"
        ),
        inner.map(lambda one: f"({one})"),
        inner.map(lambda one: f"(?={one})"),
        inner.map(lambda one: f"(?!{one})"),
    ),
    max_leaves=6,
)


@settings(max_examples=400, deadline=None)
@given(patterns=st.lists(EXPRESSIONS, min_size=1, max_size=3, unique=True), name=st.text("ab.1", max_size=7))
def test_the_first_that_matches_wins_as_in_peft(patterns: list[str], name: str) -> None:
    assert ours(patterns, name) == theirs(patterns, name)


@pytest.mark.parametrize(
    "pattern",
    ["(a+)+", "(a*)*b", "(a|a)*", r"(.*)*x", ".*" * 40 + "x", "(a|aa)+c", "(" * 40 + "a*" + ")*" * 40, "(.*.*.*)*y",
     "(?=.*(?=.*(?=.*(?=.*x))))", "(a|a)" * 60 + "b", "a{0,65000}" * 30 + "b", "(a?){400}a{400}"],
)  # fmt: skip
def test_no_pattern_takes_long(pattern: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wan_core.checkpoints.lora.patterns._SECONDS", 0.2)
    start = time.process_time()
    try:
        table = PatternTable({pattern: 1.0}, "alpha_pattern in here")
        for number in range(100):
            table.get(f"blocks.{number}." + "a" * 120 + ".!")
    except CheckpointError as error:
        assert "alpha_pattern in here" in str(error)  # noqa: PT017 - either is an answer
    assert time.process_time() - start < 15


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("(", "no regular expression"),
        ("*a", "no regular expression"),
        (r"(?i)ffn", "no regular expression"),
        (r"\p{L}", "no regular expression"),
        ("a" * 2_000, "2000 characters"),
    ],
)
def test_what_is_no_pattern_is_refused_by_name(pattern: str, words: str) -> None:
    with pytest.raises(CheckpointError, match=words) as caught:
        PatternTable({pattern: 1.0}, "rank_pattern in x.json").get("a.b")
    assert "rank_pattern in x.json" in str(caught.value)
    assert repr(pattern)[1:40] in str(caught.value)


def test_a_table_for_every_layer_is_quick() -> None:
    layers = [f"blocks.{block}.self_attn.{part}" for block in range(60) for part in "qkvo"]
    table = PatternTable({f"^{re.escape(layer)}": float(index) for index, layer in enumerate(layers)}, "here")
    start = time.process_time()
    assert [table.get(layer) for layer in layers] == [float(index) for index in range(len(layers))]
    assert time.process_time() - start < 3


def test_a_table_out_of_proportion_is_refused() -> None:
    with pytest.raises(CheckpointError, match="6000 patterns"):
        PatternTable({str(index): 1.0 for index in range(6000)}, "here")
