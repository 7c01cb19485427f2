"""A step cache around the blocks of a network, which stays plain: the blocks are called, or their change is put in."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn

from wan_core.errors import ConfigError
from wan_core.models import WanDiT
from wan_core.sampling import StepCache


class SkippableBlocks(nn.ModuleList):
    """The same blocks under the same names; with a ``cache`` an iteration gives calls that may leave them out."""

    cache: StepCache | None = None

    def __iter__(self) -> Iterator[Any]:
        blocks = super().__iter__()
        return blocks if self.cache is None else iter(_Step([*blocks], self.cache).calls())


class _Step:
    """One step through all blocks, or past them.

    Processes that share the tokens must decide alike: they do where all frames have one time, and a run with others
    has no step cache.
    """

    def __init__(self, blocks: Sequence[nn.Module], cache: StepCache) -> None:
        self._blocks = blocks
        self._cache = cache
        self._before: Tensor | None = None

    def calls(self) -> list[Callable[..., tuple[Tensor, Any]]]:
        return [partial(self._call, index) for index in range(len(self._blocks))]

    def _call(
        self,
        index: int,
        tokens: Tensor,
        modulation: Tensor,
        shared: Any,
        context: Any,
        states: Any = None,
        memory: Any = None,
    ) -> tuple[Tensor, Any]:
        if memory is not None:
            raise ConfigError("a step cache leaves blocks out, and this network remembers the keys of each; take one")
        if index == 0 and self._cache.skips(modulation):
            return self._cache.restore(tokens), states
        if index == 0:
            self._before = tokens.clone()  # blocks may change their tokens in place
        if self._before is None:
            return tokens, states
        tokens, states = self._blocks[index](tokens, modulation, shared, context, states, memory)
        if index + 1 == len(self._blocks):
            self._cache.keep(self._before, tokens)
        return tokens, states


def apply_step_cache(model: nn.Module) -> None:
    """Make the ``blocks`` of every transformer in ``model`` skippable, in place; a second call changes nothing.

    Raises ConfigError for a network that works between its blocks, where nothing can be left out.
    """
    for network in list(model.modules()):
        if not isinstance(network, WanDiT) or isinstance(network.blocks, SkippableBlocks):
            continue
        if type(network).after_block is not WanDiT.after_block:
            raise ConfigError(
                f"a step cache leaves blocks out, and {type(network).__name__} works between them; run it without one"
            )
        network.blocks = SkippableBlocks(network.blocks)


@contextmanager
def step_cached(model: WanDiT, cache: StepCache) -> Iterator[None]:
    """Forwards of ``model`` within the ``with`` block are steps of ``cache``.

    Raises ConfigError where :func:`apply_step_cache` was not called.
    """
    blocks = model.blocks
    if not isinstance(blocks, SkippableBlocks):
        raise ConfigError("this network was prepared without a step cache; load it with one")
    blocks.cache = cache
    try:
        yield
    finally:
        blocks.cache = None
