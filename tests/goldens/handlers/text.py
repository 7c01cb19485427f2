"""Text encoder and prompt cleaning."""

import json
from typing import Any

from torch import Tensor

from tests.goldens.harness import Computed, GoldenCase, handles
from wan_core.models import TextEncoder, UMT5Config, UMT5Encoder
from wan_core.models.text.tokenizer import Tokenizer, clean_prompt
from wan_core.models.text.umt5 import relative_position_bucket


def umt5_config(config: dict[str, Any]) -> UMT5Config:
    return UMT5Config(
        vocab_size=config["vocab"],
        dim=config["dim"],
        dim_attn=config["dim_attn"],
        dim_ffn=config["dim_ffn"],
        num_heads=config["num_heads"],
        num_layers=config["num_layers"],
        num_buckets=config["num_buckets"],
        shared_position_bias=config["shared_pos"],
    )


@handles("umt5")
def umt5(case: GoldenCase) -> dict[str, Tensor]:
    config = umt5_config(case.config)
    model = UMT5Encoder(config).eval()
    model.load_state_dict(case.weights)
    ids, mask = case.inputs["ids"], case.inputs["mask"]
    computed = {"out.hidden": model(ids, mask)}
    for index, length in enumerate(mask.sum(dim=1).tolist()):
        # A tokenizer that reads ids from text: the reference's padded rows against our unpadded run.
        *words, end = ids[index, :length].tolist()
        tokenizer = Tokenizer(
            lambda text: [int(word) for word in text.split()], end_id=end, vocab_size=config.vocab_size
        )
        encoder = TextEncoder(model, tokenizer, text_len=ids.shape[1])
        computed[f"out.trimmed.{index}"] = encoder([" ".join(map(str, words))])[0]
    for name in case.expected:
        if name.startswith("out.hidden_nomask_sample"):
            index = int(name.removeprefix("out.hidden_nomask_sample"))
            computed[name] = model(ids[index : index + 1])
        if name.startswith("mid.rel_bucket_bidirectional_"):
            buckets = int(name.rpartition("_")[2])
            computed[name] = relative_position_bucket(case.tensors["mid.rel_pos"], buckets, config.max_distance)
    return computed


@handles("text_clean")
def text_clean(case: GoldenCase) -> Computed:
    prompts = json.loads(case.metadata["inputs"])
    return Computed({}, records={mode: [clean_prompt(p, mode) for p in prompts] for mode in case.records})
