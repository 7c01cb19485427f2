"""A mean over clips, and how sure it is."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from wan_core.errors import RequestError

RESAMPLES = 10_000
LEVEL = 0.95
_DRAWN_AT_ONCE = 1_000_000


@dataclass(frozen=True)
class Interval:
    """The ``mean`` of ``count`` clips, and the bounds ``low`` and ``high``, which are None for a single clip."""

    mean: float
    low: float | None
    high: float | None
    count: int


def interval(
    values: Iterable[float | None], *, seed: int = 0, resamples: int = RESAMPLES, level: float = LEVEL
) -> Interval | None:
    """The mean of what is not None, with its percentile interval by the bootstrap (Efron 1979).

    The clips are drawn again, with replacement, ``resamples`` times; of the means, the middle ``level`` is the
    interval. The same seed gives the same interval. None without a value. Raises RequestError for fewer than 100
    resamples, a level that is not between 0 and 1, a value that is no number.
    """
    if resamples < 100 or not 0 < level < 1:
        raise RequestError(f"a bootstrap needs 100 resamples or more and a level in 0 to 1, got {resamples}, {level:g}")
    known = np.array([value for value in values if value is not None], dtype=np.float64)
    if not np.isfinite(known).all():
        raise RequestError("a mean of NaN or infinity says nothing; leave such clips out")
    if not len(known):
        return None
    mean = float(known.mean())
    if len(known) == 1:
        return Interval(mean, None, None, 1)
    random = np.random.default_rng(seed)
    tail = (1 - level) / 2
    rows = max(1, _DRAWN_AT_ONCE // len(known))
    means = [
        known[random.integers(0, len(known), (min(rows, resamples - start), len(known)))].mean(axis=1)
        for start in range(0, resamples, rows)
    ]
    low, high = np.percentile(np.concatenate(means), (100 * tail, 100 * (1 - tail)))
    return Interval(mean, float(low), float(high), len(known))
