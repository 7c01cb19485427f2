"""TeaCache: steps that do not run a network's blocks, since its time embedding has hardly changed since they were run.

Liu et al., "Timestep Embedding Tells: It's Time to Cache for Video Diffusion Model" (arXiv 2411.19108). The code is our
own. Here are the decisions and what is kept; `wan_core.runtime.apply_step_cache` puts them around a network's blocks.
"""

import math
from dataclasses import dataclass

from torch import Tensor

from wan_core.errors import ConfigError


@dataclass(frozen=True)
class StepCacheRule:
    """When blocks are skipped: while the estimated change of their output, summed up, stays below ``threshold``.

    ``coefficients`` are those of the polynomial, highest power first, that estimates it from the relative change of the
    time embedding; they belong to one model. Raises ConfigError without any, and for a threshold that is not positive
    and finite.
    """

    coefficients: tuple[float, ...]
    threshold: float

    def __post_init__(self) -> None:
        if not self.coefficients:
            raise ConfigError("a step cache needs the coefficients of its model, and none are known; leave it out")
        if not (math.isfinite(self.threshold) and self.threshold > 0):
            raise ConfigError(f"the threshold of a step cache must be a positive number, got {self.threshold}")

    def estimate(self, change: float) -> float:
        """The estimated change of the blocks' output for a relative change of the time embedding."""
        value = 0.0
        for coefficient in self.coefficients:
            value = value * change + coefficient
        return value


class StepCache:
    """What one branch of guidance remembers between the steps of a run of ``num_steps``.

    Every step asks :meth:`skips` once, then takes :meth:`restore` or, when its blocks have run, gives :meth:`keep`. The
    first and the last step of a run are always computed. ``computed`` and ``skipped`` count steps.
    """

    def __init__(self, rule: StepCacheRule, num_steps: int) -> None:
        self.computed = 0
        self.skipped = 0
        self._rule = rule
        self._num_steps = num_steps
        self._sum = 0.0
        self._embedding: Tensor | None = None
        self._change: Tensor | None = None

    def skips(self, embedding: Tensor) -> bool:
        """Whether the next step does without its blocks; ``embedding``: what the timestep gives to all of them.

        Waits for the device: the decision is made by the host.
        """
        step = (self.computed + self.skipped) % self._num_steps
        before, self._embedding = self._embedding, embedding
        if before is None or step in (0, self._num_steps - 1):
            self._sum = math.inf
        else:
            change = ((embedding - before).abs().mean() / before.abs().mean()).item()
            self._sum += self._rule.estimate(change)
        if self._sum < self._rule.threshold:
            self.skipped += 1
            return True
        self._sum = 0.0
        self.computed += 1
        return False

    def keep(self, before: Tensor, after: Tensor) -> None:
        """Take what the blocks made of ``before``: ``after``, of the same shape."""
        self._change = after - before

    def restore(self, tokens: Tensor) -> Tensor:
        """``tokens`` with the change of the last step that was computed."""
        if self._change is None:
            raise ValueError("no step was computed yet")
        return tokens + self._change


class StepCaches:
    """A cache for each set of conditions that a run gives to one network: those of every branch and window."""

    def __init__(self, rule: StepCacheRule, num_steps: int) -> None:
        self._rule = rule
        self._num_steps = num_steps
        self._caches: dict[int, tuple[object, StepCache]] = {}

    def of(self, inputs: object) -> StepCache:
        """The cache of these very conditions, kept alive with them."""
        if id(inputs) not in self._caches:
            self._caches[id(inputs)] = inputs, StepCache(self._rule, self._num_steps)
        return self._caches[id(inputs)][1]

    @property
    def computed(self) -> int:
        """How often blocks were run."""
        return sum(cache.computed for _, cache in self._caches.values())

    @property
    def skipped(self) -> int:
        """How often they were not."""
        return sum(cache.skipped for _, cache in self._caches.values())
