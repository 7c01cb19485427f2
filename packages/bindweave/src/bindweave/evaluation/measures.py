"""What is measured: OpenS2V-Eval's seven measures with their ranges and weights, and our own, which have other names.

Yuan et al., "OpenS2V-Nexus" (2025); ranges, limits and weights are those of version 1.1 of its released code.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

Domain = Literal["open", "human"]
Value = float | None
THEIRS, OURS = "OpenS2V-Eval", "ours"


@dataclass(frozen=True)
class BenchmarkMeasure:
    """One of OpenS2V-Eval's.

    Raw values of videos from ``low`` to ``high`` become 0 to 100 %; a value above counts as ``high``, one below as
    ``low`` where it ``has_floor``. ``weights`` in the total are of the open and of the human domain. ``keys`` are its
    names in the benchmark's own files, ``needs`` what computes it.
    """

    title: str
    low: float
    high: float
    weights: Mapping[Domain, float]
    keys: tuple[str, ...]
    needs: str
    has_floor: bool = False
    skips_zero: bool = False


BENCHMARK: Mapping[str, BenchmarkMeasure] = {
    "aesthetic": BenchmarkMeasure(
        "AestheticScore", 4, 7, {"open": 0.16, "human": 0.18}, ("aes_score",),
        "CLIP ViT-L/14 of OpenAI and --aesthetic-head", has_floor=True,
    ),
    "motion_smoothness": BenchmarkMeasure(
        "MotionSmoothness", 0, 1, {"open": 0.06, "human": 0.09}, ("motion_smoothness",), "Q-Align, by --scores",
    ),
    "motion_amplitude": BenchmarkMeasure(
        "MotionAmplitude", 0, 1, {"open": 0.02, "human": 0.03}, ("motion_fb", "motion_amplitude"), "nothing",
    ),
    "facesim": BenchmarkMeasure(
        "FaceSim", 0, 1, {"open": 0.20, "human": 0.25}, ("cur_score", "facesim_cur"), "CurricularFace, by --scores",
    ),
    "gme_score": BenchmarkMeasure(
        "GmeScore", 0, 1, {"open": 0.12, "human": 0.15}, ("gme_score",), "GME-Qwen2-VL-7B",
    ),
    "nexus_score": BenchmarkMeasure(
        "NexusScore", 0, 0.05, {"open": 0.20, "human": 0.0}, ("nexus_score",), "YOLO-World and GME, by --scores",
        skips_zero=True,
    ),
    "natural_score": BenchmarkMeasure(
        "NaturalScore", 1, 5, {"open": 0.24, "human": 0.30}, ("natural_score",), "GPT-4o, by --scores", has_floor=True,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Measure:
    """A number of a report: its ``unit`` (empty for a cosine or a share), which value is ``better``, whose it is."""

    unit: str
    better: str
    source: str


_FIXED: Mapping[str, Measure] = {
    **{name: Measure("", "higher", THEIRS) for name in BENCHMARK},
    "aesthetic": Measure("1 to 10", "higher", THEIRS),
    "natural_score": Measure("1 to 5", "higher", THEIRS),
    "motion_amplitude": Measure("px", "higher", THEIRS),
    "aesthetic_head": Measure("1 to 10", "higher", OURS),
    "flow_magnitude": Measure("% of diagonal", "", OURS),
    "warp_error": Measure("", "lower", OURS),
    "face_similarity": Measure("", "higher", OURS),
    "face_found": Measure("", "higher", OURS),
}


def describe(name: str) -> Measure:
    """What is known of a measure; one of an encoder (``clip_text``) is a mean cosine."""
    return _FIXED.get(name, Measure("", "higher", OURS))


def percent(name: str, values: Iterable[Value]) -> float | None:
    """A benchmark measure's score in percent over the raw values of videos; None without a value."""
    its = BENCHMARK[name]
    known = [value for value in values if value is not None and not (its.skips_zero and value == 0)]
    if not known:
        return None
    limited = [min(max(value, its.low) if its.has_floor else value, its.high) for value in known]
    return 100 * (sum(limited) / len(limited) - its.low) / (its.high - its.low)


def total(scores: Mapping[str, Value], domain: Domain = "open") -> float | None:
    """The benchmark's TotalScore of percents by name; None unless all measures of the domain are there."""
    mean, left_out = weighted_mean(scores, domain)
    return None if left_out else mean


def weighted_mean(scores: Mapping[str, Value], domain: Domain = "open") -> tuple[float | None, tuple[str, ...]]:
    """The mean of those percents that are there, by the total's weights, and the measures that are not in it."""
    weights = {name: its.weights[domain] for name, its in BENCHMARK.items() if its.weights[domain]}
    there = {name: value for name in weights if (value := scores.get(name)) is not None}
    left_out = tuple(name for name in weights if name not in there)
    if not there:
        return None, left_out
    return sum(weights[name] * value for name, value in there.items()) / sum(weights[name] for name in there), left_out
