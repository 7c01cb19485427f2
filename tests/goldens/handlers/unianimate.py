"""Families ua_*: the teacher's step cache, network and loop, windows and LoRA."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tests.goldens.harness import GoldenCase, handles
from wan_core.runtime.step_cache import SkippableBlocks
from wan_core.sampling import StepCache, StepCacheRule


class Doubled(nn.Module):
    """A block that maps h to 2h + 1."""

    def forward(self, tokens: Tensor, *_rest: Any) -> tuple[Tensor, None]:
        return 2 * tokens + 1, None


@handles("ua_teacache")
def check_step_cache(case: GoldenCase) -> Mapping[str, Tensor]:
    rule = StepCacheRule(tuple(case.inputs["coefficients"].double().tolist()), case.call["rel_l1_thresh"])
    cache = StepCache(rule, case.call["num_inference_steps"])
    blocks = SkippableBlocks([Doubled()])
    blocks.cache = cache
    skips, means = [], []
    for index, embedding in enumerate(case.inputs["t_mod"]):
        before, tokens = cache.skipped, torch.full((1, 2, 2), float(index))
        for block in blocks:
            tokens, _ = block(tokens, embedding, None, None)
        skips.append(cache.skipped - before)
        means.append(tokens.mean())
    return {"out.skip": torch.tensor(skips), "out.hidden_mean": torch.stack(means)}
