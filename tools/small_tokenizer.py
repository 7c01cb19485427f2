"""A small tokenizer of the same kind as UMT5's, trained on a few sentences: the files that a real folder holds."""

import io
import json
from functools import cache
from pathlib import Path

import sentencepiece
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

VOCAB_SIZE = 120
END_TOKEN, PAD_TOKEN, UNKNOWN_TOKEN = "</s>", "<pad>", "<unk>"

_SENTENCES = (
    "a red circle moves to the left while a blue square grows",
    "two anthropomorphic cats in comfy boxing gear fight on a spotlighted stage",
    "summer beach vacation style, a white cat wearing sunglasses sits on a surfboard",
    "the camera pans slowly over snowy mountains at dawn; 24 frames per second, 720p!",
    "your prompt here: a quick brown fox jumps over the lazy dog, again and again.",
    "worst quality, low quality, JPEG artefacts, blurry details, static picture",
)


def write_tokenizer(folder: Path) -> None:
    """Write ``spiece.model``, ``tokenizer.json`` and their configs into ``folder``; both files give the same ids."""
    folder.mkdir(parents=True, exist_ok=True)
    model = trained_model()
    (folder / "spiece.model").write_bytes(model)
    unigram(model).save(str(folder / "tokenizer.json"))
    tokens = {"pad_token": PAD_TOKEN, "eos_token": END_TOKEN, "unk_token": UNKNOWN_TOKEN}
    (folder / "special_tokens_map.json").write_text(json.dumps(tokens, indent=2) + "\n")
    config = {"tokenizer_class": "T5Tokenizer", "model_max_length": 512, "extra_ids": 0, **tokens}
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")


@cache
def trained_model() -> bytes:
    """A sentencepiece unigram model with UMT5's special ids: padding 0, end 1, unknown 2."""
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(_SENTENCES * 4),
        model_writer=written,
        vocab_size=VOCAB_SIZE,
        model_type="unigram",
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        hard_vocab_limit=False,
        num_threads=1,
        minloglevel=2,
    )
    return written.getvalue()


def unigram(model: bytes) -> Tokenizer:
    """The same model for the ``tokenizers`` library."""
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    pieces = [(processor.id_to_piece(index), processor.get_score(index)) for index in range(processor.get_piece_size())]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=processor.unk_id(), byte_fallback=False))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {END_TOKEN}", special_tokens=[(END_TOKEN, processor.eos_id())]
    )
    tokenizer.add_special_tokens([PAD_TOKEN, END_TOKEN, UNKNOWN_TOKEN])
    return tokenizer
