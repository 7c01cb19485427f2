"""The word-level tokenizer of the tiny models, as a ``tokenizer.json`` that wan-core reads like any other."""

import os
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

SPECIAL_TOKENS = ("<pad>", "</s>", "<unk>")


def build_word_tokenizer(words: Iterable[str], path: Path) -> int:
    """Write a tokenizer that knows ``words`` (case does not matter) to ``path``; returns the size of its vocabulary.

    Ids: padding 0, end token 1, unknown words 2, then the words in their first order. Punctuation separates words and
    is dropped; the end token closes every prompt. Raises ValueError for a word that could never be found.
    """
    vocabulary = {token: index for index, token in enumerate(SPECIAL_TOKENS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation(behavior="removed")]
    )
    for word in words:
        normal = tokenizer.normalizer.normalize_str(word)
        if [piece for piece, _ in tokenizer.pre_tokenizer.pre_tokenize_str(normal)] != [normal]:
            raise ValueError(f"{word!r} is not one word: it is empty or holds white space or punctuation")
        vocabulary.setdefault(normal, len(vocabulary))
    tokenizer.model = models.WordLevel(vocabulary, unk_token="<unk>")
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.draft")
    tokenizer.save(str(draft))
    os.replace(draft, path)
    return len(vocabulary)
