"""Cleaning, tokenizer files and what happens when they are missing or damaged."""

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import sentencepiece
import tokenizers

from wan_core.errors import CheckpointError, ConfigError
from wan_core.models import load_tokenizer
from wan_core.models.text.tokenizer import clean_prompt

SENTENCES = ["a red ball moves left, quickly!", "猫 在 草地 上 奔跑", "12 birds sing <tag> under_score"] * 20
PROMPTS = ["a red ball moves left.", "猫 在 草地 xyz", "  quick   brown\n", "Zebra 😀 q", "", "<tag> a<b", "a b " * 30]


def write_sentencepiece(folder: Path, *, end_token: str = "</s>") -> Path:
    """A small unigram model with T5's special ids."""
    buffer = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES),
        model_writer=buffer,
        vocab_size=90,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        pad_piece="<pad>",
        eos_piece=end_token,
        minloglevel=2,
        num_threads=1,
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "spiece.model").write_bytes(buffer.getvalue())
    return folder


def write_json(folder: Path) -> Path:
    """The unigram model as the ``tokenizer.json`` that T5's converter makes of it."""
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(write_sentencepiece(folder) / "spiece.model"))
    vocabulary = [(pieces.id_to_piece(i), pieces.get_score(i)) for i in range(pieces.get_piece_size())]
    tokenizer = tokenizers.Tokenizer(tokenizers.models.Unigram(vocabulary, unk_id=2))
    tokenizer.normalizer = tokenizers.normalizers.NFKC()
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [
            tokenizers.pre_tokenizers.WhitespaceSplit(),
            tokenizers.pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always"),
        ]
    )
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer.enable_truncation(5)
    tokenizer.enable_padding(length=5)
    (folder / "spiece.model").unlink()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def test_json_gives_the_ids_of_transformers(tmp_path: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    peer = PreTrainedTokenizerFast(tokenizer_file=str(write_json(tmp_path) / "tokenizer.json"))
    ours = load_tokenizer(tmp_path)
    for prompt in PROMPTS:
        expected = peer(clean_prompt(prompt), max_length=20, truncation=True, padding=False).input_ids
        assert ours(prompt, 20) == expected, prompt


def test_sentencepiece_and_json_give_the_same_ids(tmp_path: Path) -> None:
    from_model = load_tokenizer(write_sentencepiece(tmp_path / "model"))
    from_json = load_tokenizer(write_json(tmp_path / "json"))
    assert from_model.vocab_size == from_json.vocab_size
    for prompt in PROMPTS:
        assert from_model(prompt, 20) == from_json(prompt, 20), prompt


def test_json_is_preferred_and_files_can_be_given_directly(tmp_path: Path) -> None:
    write_json(tmp_path)
    (tmp_path / "spiece.model").write_bytes(b"not read")
    assert load_tokenizer(tmp_path)("a red ball", 9) == load_tokenizer(tmp_path / "tokenizer.json")("a red ball", 9)


def test_ids_end_with_the_end_token_at_any_length(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(write_json(tmp_path))
    whole = tokenizer("a red ball", 100)
    assert whole[-1] == tokenizer.end_id == 1
    assert tokenizer("a red ball", len(whole)) == whole
    assert tokenizer("a red ball", 3) == [*whole[:2], 1]
    assert tokenizer("a red ball", 1) == tokenizer("", 7) == [1]


def test_a_folder_without_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no tokenizer in .*: it must hold tokenizer.json or spiece.model"):
        load_tokenizer(tmp_path)
    with pytest.raises(CheckpointError, match="no tokenizer in"):
        load_tokenizer(tmp_path / "absent")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer.json", b"{"),
        ("tokenizer.json", b"\xff\xfe"),
        ("tokenizer.json", b"[]"),
        ("tokenizer.json", json.dumps({"model": {"type": "Unigram"}}).encode()),
        ("spiece.model", b"damaged"),
        ("spiece.model", b""),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=f"cannot read the tokenizer .*{name}") as caught:
        load_tokenizer(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_vocabulary_without_end_token_is_refused(tmp_path: Path) -> None:
    tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0}, unk_token="a")).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(CheckpointError, match="has no end token"):
        load_tokenizer(tmp_path)
    with pytest.raises(CheckpointError, match="has no end token"):
        load_tokenizer(write_sentencepiece(tmp_path / "other", end_token="<end>"))


def test_cleaning_modes() -> None:
    prompt = " The  “Caf&amp;eacute;”\u00a0of a_b; \n"
    assert clean_prompt(prompt) == 'The "Café" of a_b;'
    assert clean_prompt(prompt, "lower") == 'the "café" of a_b;'
    assert clean_prompt(prompt, "canonicalize") == "the café of a b"
    with pytest.raises(ConfigError, match="cleaning must be one of whitespace, lower, canonicalize, got 'upper'"):
        clean_prompt(prompt, "upper")  # type: ignore[arg-type]


def test_cleaning_is_idempotent() -> None:
    for prompt in PROMPTS:
        assert clean_prompt(clean_prompt(prompt)) == clean_prompt(prompt)


@pytest.mark.parametrize("write", [write_sentencepiece, write_json])
def test_words_without_a_token_are_named_once(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    tokenizer = load_tokenizer(write(tmp_path))
    assert tokenizer.unknown("a red 😀 ball 猫 😀") == ["😀"]
    assert tokenizer.unknown("") == []


@pytest.mark.parametrize("write", [write_sentencepiece, write_json])
def test_the_lost_end_begins_with_the_first_word_that_is_cut(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    tokenizer = load_tokenizer(write(tmp_path))
    text = "a red ball moves left, quickly!  a red ball"
    for length in range(1, 40):
        lost = tokenizer.lost(text, length)
        kept = " ".join(text.split())[: -len(lost)] if lost else " ".join(text.split())
        assert lost == "" or lost[0] != " "
        assert len(tokenizer(kept.strip(), 1000)) <= length
    assert tokenizer.lost(text, 1000) == ""


@pytest.mark.parametrize("pattern", ["(a*)*b", "(a+)+$", "a*a*a*a*b", "(?:x|x)+y", "(a{1,9}){1,9}"])
def test_patterns_without_a_bound_are_refused(tmp_path: Path, pattern: str) -> None:
    file = write_json(tmp_path) / "tokenizer.json"
    for place in ("normalizer", "pre_tokenizer"):
        content = json.loads(file.read_text())
        rule = {"type": "Replace", "pattern": {"Regex": pattern}, "content": "x"}
        split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
        content[place] = rule if place == "normalizer" else {"type": "Sequence", "pretokenizers": [split]}
        (tmp_path / "odd.json").write_text(json.dumps(content))
        with pytest.raises(CheckpointError, match=r"cannot read the tokenizer .* could take for ever"):
            load_tokenizer(tmp_path / "odd.json")


@pytest.mark.parametrize("text", ["", "[]", "null", "[" * 100_000, '{"a": 1}', '{"model": {"type": "WordLevel"}}'])
def test_a_description_that_nobody_writes_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(CheckpointError, match="cannot read the tokenizer"):
        load_tokenizer(tmp_path)
