"""Prompts to token ids: cleaning, the tokenizer files of a checkpoint folder, truncation and the end token.

The files are read by the libraries that made them, ``tokenizers`` and ``sentencepiece``: neither costs the seconds
that importing transformers does, and the ids are those of transformers' T5 tokenizer.
"""

import bisect
import html
import json
import re
import string
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, get_args

from wan_core.errors import CheckpointError, ConfigError

Cleaning = Literal["whitespace", "lower", "canonicalize"]

END_TOKEN = "</s>"
UNKNOWN_TOKEN = "<unk>"
TOKENIZER_FILES = ("tokenizer.json", "spiece.model")

_LONGEST_WORD = 40
_MOST_REPEATS = 2
_WITHOUT_PUNCTUATION = str.maketrans({"_": " ", **dict.fromkeys(string.punctuation.replace("_", ""))})


def clean_prompt(prompt: str, cleaning: Cleaning = "whitespace") -> str:
    """The prompt as the text encoder was trained to see it.

    All modes mend wrongly decoded text, resolve HTML entities (written twice, too) and turn each run of white space
    into one space. ``lower`` adds lower case; ``canonicalize`` also reads underscores as spaces and drops ASCII
    punctuation. Wan uses ``whitespace``. Raises ConfigError for an unknown mode.
    """
    import ftfy

    text = html.unescape(html.unescape(ftfy.fix_text(prompt)))
    match cleaning:
        case "whitespace":
            pass
        case "lower":
            text = text.lower()
        case "canonicalize":
            text = text.translate(_WITHOUT_PUNCTUATION).lower()
        case _:
            raise ConfigError(f"cleaning must be one of {', '.join(get_args(Cleaning))}, got {cleaning!r}")
    return re.sub(r"\s+", " ", text).strip()


class Tokenizer:
    """Cleans a prompt and turns it into token ids that end with the end token.

    ``encode`` gives the ids of cleaned text without special tokens; ``end_id``, ``unknown_id`` (that of what has no
    token; ``None`` where everything has one) and ``vocab_size`` (ids are below it) belong to the same vocabulary.
    """

    def __init__(
        self,
        encode: Callable[[str], list[int]],
        *,
        end_id: int,
        vocab_size: int,
        unknown_id: int | None = None,
        cleaning: Cleaning = "whitespace",
    ) -> None:
        self._encode = encode
        self.end_id = end_id
        self.unknown_id = unknown_id
        self.vocab_size = vocab_size
        self.cleaning: Cleaning = cleaning

    def __call__(self, prompt: str, max_length: int) -> list[int]:
        """Between 1 and ``max_length`` token ids; a longer prompt loses its tail, never the end token."""
        return [*self._encode(clean_prompt(prompt, self.cleaning))[: max_length - 1], self.end_id]

    def lost(self, prompt: str, max_length: int) -> str:
        """The end of the cleaned prompt that does not fit into ``max_length`` ids, from the first word that is cut."""
        text, room = clean_prompt(prompt, self.cleaning), max_length - 1
        if len(self._encode(text)) <= room:
            return ""
        words = text.split(" ")
        whole = self._fitting(room, len(words), lambda count: " ".join(words[:count]))
        start = len(" ".join([*words[:whole], ""]))
        if len(words[whole]) > _LONGEST_WORD:  # writing without spaces is cut where it is
            start += self._fitting(room, len(words[whole]), lambda count: text[: start + count])
        return text[start:]

    def unknown(self, prompt: str) -> list[str]:
        """The words of the cleaned prompt that the model has no token for, each once."""
        if self.unknown_id is None:
            return []
        words = clean_prompt(prompt, self.cleaning).split(" ")
        return [word for word in dict.fromkeys(words) if self.unknown_id in self._encode(word)]

    def _fitting(self, room: int, most: int, start: Callable[[int], str]) -> int:
        """The largest count, up to ``most``, whose ``start(count)`` of a text has at most ``room`` ids."""
        counts = range(1, most + 1)
        return bisect.bisect_right(counts, room, key=lambda count: len(self._encode(start(count))))


def load_tokenizer(path: str | Path, cleaning: Cleaning = "whitespace") -> Tokenizer:
    """The tokenizer of a folder with ``tokenizer.json`` or ``spiece.model``, in this order, or of one such file.

    Raises CheckpointError when there is none, or when it is damaged or has no end token ``</s>``.
    """
    path = Path(path)
    file = next((path / name for name in TOKENIZER_FILES if (path / name).is_file()), path)
    if not file.is_file():
        raise CheckpointError(f"no tokenizer in {path}: it must hold {' or '.join(TOKENIZER_FILES)}")
    read = _read_json if file.suffix == ".json" else _read_sentencepiece
    return read(file, cleaning)


def _read_json(file: Path, cleaning: Cleaning) -> Tokenizer:
    import tokenizers

    try:
        text = file.read_text(encoding="utf-8")
        costly = next((each for each in _patterns(json.loads(text)) if _is_costly(each)), None)
        if costly is not None:
            raise ValueError(f"the pattern {costly[:60]!r} could take for ever")
        tokenizer = tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # the library raises nothing more specific
        raise _damaged(file, error) from error
    end_id = tokenizer.token_to_id(END_TOKEN)
    if end_id is None:
        raise CheckpointError(f"the tokenizer {file} has no end token {END_TOKEN!r}; it belongs to another model")
    # What a file says about lengths is for the caller to say.
    tokenizer.no_padding()
    tokenizer.no_truncation()

    def encode(text: str) -> list[int]:
        ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    size, unknown_id = tokenizer.get_vocab_size(), tokenizer.token_to_id(UNKNOWN_TOKEN)
    return Tokenizer(encode, end_id=end_id, vocab_size=size, unknown_id=unknown_id, cleaning=cleaning)


def _patterns(tree: Any) -> Iterator[str]:
    """The regular expressions in a tokenizer's description."""
    inner = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ()
    if isinstance(tree, dict) and isinstance(tree.get("Regex"), str):
        yield tree["Regex"]
    for each in inner:
        yield from _patterns(each)


def _is_costly(pattern: str) -> bool:
    """Whether a pattern may have many ways to match: several repetitions, or one of a group. Wan's has one."""
    repeats = len(re.findall(r"(?<!\\)[*+{]", pattern))
    return repeats > _MOST_REPEATS or (repeats > 0 and re.search(r"(?<!\\)\)[*+{?]", pattern) is not None)


def _read_sentencepiece(file: Path, cleaning: Cleaning) -> Tokenizer:
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor()
    try:
        processor.LoadFromSerializedProto(file.read_bytes())
    except (OSError, RuntimeError) as error:
        raise _damaged(file, error) from error
    end_id = processor.piece_to_id(END_TOKEN)
    if processor.id_to_piece(end_id) != END_TOKEN:
        raise CheckpointError(f"the tokenizer {file} has no end token {END_TOKEN!r}; it belongs to another model")

    def encode(text: str) -> list[int]:
        ids: list[int] = processor.encode(text, out_type=int)
        return ids

    size, unknown_id = processor.get_piece_size(), processor.unk_id()
    return Tokenizer(encode, end_id=end_id, vocab_size=size, unknown_id=unknown_id, cleaning=cleaning)


def _damaged(file: Path, error: Exception) -> CheckpointError:
    reason = str(error).partition("\n")[0]
    return CheckpointError(f"cannot read the tokenizer {file}: {reason}; fetch it again")
