"""The tiny models' tokenizer: what it writes is what wan-core reads."""

from pathlib import Path

import pytest

from tools.tiny.tokenizer import build_word_tokenizer
from wan_core.models import load_tokenizer

WORDS = ["a", "red", "ball", "moves", "left", "Red"]


def test_words_get_ids_after_the_special_ones(tmp_path: Path) -> None:
    assert build_word_tokenizer(WORDS, tmp_path / "tokenizer.json") == 8
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.vocab_size == 8
    assert tokenizer("a red ball moves left", 32) == [3, 4, 5, 6, 7, 1]


def test_case_and_punctuation_do_not_matter_and_unknown_words_are_marked(tmp_path: Path) -> None:
    build_word_tokenizer(WORDS, tmp_path / "tokenizer.json")
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer("A RED ball; moves-left!", 32) == tokenizer("a red ball moves left", 32)
    assert tokenizer("a blue ball", 32) == [3, 2, 5, 1]
    assert tokenizer("", 32) == [1]
    assert tokenizer("a red ball", 3) == [3, 4, 1]


def test_writing_is_reproducible_and_leaves_one_file(tmp_path: Path) -> None:
    build_word_tokenizer(WORDS, tmp_path / "tokenizer.json")
    first = (tmp_path / "tokenizer.json").read_bytes()
    build_word_tokenizer(WORDS, tmp_path / "tokenizer.json")
    assert (tmp_path / "tokenizer.json").read_bytes() == first
    assert [path.name for path in tmp_path.iterdir()] == ["tokenizer.json"]


@pytest.mark.parametrize("word", ["", "two words", "semi-colon", "!"])
def test_what_is_not_one_word_is_refused(tmp_path: Path, word: str) -> None:
    with pytest.raises(ValueError, match="is not one word"):
        build_word_tokenizer(["a", word], tmp_path / "tokenizer.json")
    assert not list(tmp_path.iterdir())
